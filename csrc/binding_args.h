// From Python's tuples to the argument structures of the kernels, for both native modules. No torch
// header: a tensor arrives as its address and layout, see dfpo_kernels/_dispatch.py.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "scan_args.h"

namespace dfpo {
namespace {

using RowsTuple = std::tuple<uintptr_t, int, int64_t>;             // data, dtype, row stride
using TokensTuple = std::tuple<uintptr_t, int, int64_t, int64_t>;  // data, dtype, strides
using FlagsTuple = std::tuple<uintptr_t, int, bool, int64_t, int64_t>;
// count, length, offsets, num_quantiles, mask_mode, mask, done
using SequencesTuple =
    std::tuple<int64_t, int64_t, uintptr_t, int64_t, int, FlagsTuple, FlagsTuple>;

Rows to_rows(const RowsTuple& t) {
    return {(void*)std::get<0>(t), (Dtype)std::get<1>(t), std::get<2>(t)};
}

Tokens to_tokens(const TokensTuple& t) {
    return {(void*)std::get<0>(t), (Dtype)std::get<1>(t), std::get<2>(t), std::get<3>(t)};
}

Flags to_flags(const FlagsTuple& t) {
    return {(const void*)std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t),
            std::get<4>(t)};
}

Sequences to_sequences(const SequencesTuple& t) {
    return {std::get<0>(t),          std::get<1>(t),           (const int64_t*)std::get<2>(t),
            std::get<3>(t),          (MaskMode)std::get<4>(t), to_flags(std::get<5>(t)),
            to_flags(std::get<6>(t))};
}

float* to_floats(uintptr_t address) { return (float*)address; }

// The tuple that dfpo_kernels/distributional_gae/__init__.py passes to either module.
using GaeTuple = std::tuple<SequencesTuple, TokensTuple, TokensTuple, TokensTuple, RowsTuple,
                            uintptr_t, uintptr_t, float, TokensTuple, TokensTuple>;

GaeArgs to_gae_args(const GaeTuple& t) {
    return {to_sequences(std::get<0>(t)), to_tokens(std::get<1>(t)),
            to_tokens(std::get<2>(t)),    to_tokens(std::get<3>(t)),
            to_rows(std::get<4>(t)),      to_floats(std::get<5>(t)),
            to_floats(std::get<6>(t)),    std::get<7>(t),
            to_tokens(std::get<8>(t)),    to_tokens(std::get<9>(t))};
}

}  // namespace
}  // namespace dfpo
