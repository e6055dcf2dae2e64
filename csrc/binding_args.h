// From Python's tuples to the argument structures of the kernels, for both native modules. No torch
// header: a tensor arrives as its address and layout, see dfpo_kernels/_dispatch.py. Tuples are
// taken apart here and not by pybind11's casters of nested types, which take a minute to compile.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "scan_args.h"

namespace dfpo {
namespace {

using Tuple = pybind11::tuple;

template <typename T>
T item(const Tuple& t, size_t i) {
    return t[i].cast<T>();
}

float* to_floats(uintptr_t address) { return (float*)address; }

// data, dtype, row stride
Rows to_rows(const Tuple& t) {
    return {(void*)item<uintptr_t>(t, 0), (Dtype)item<int>(t, 1), item<int64_t>(t, 2)};
}

// data, dtype, row stride, token stride
Tokens to_tokens(const Tuple& t) {
    return {(void*)item<uintptr_t>(t, 0), (Dtype)item<int>(t, 1), item<int64_t>(t, 2),
            item<int64_t>(t, 3)};
}

// data, log2 of the element size, is it floating, row stride, token stride
Flags to_flags(const Tuple& t) {
    return {(const void*)item<uintptr_t>(t, 0), item<int>(t, 1), item<bool>(t, 2),
            item<int64_t>(t, 3), item<int64_t>(t, 4)};
}

// count, length, offsets, num_quantiles, mask_mode, mask, done
Sequences to_sequences(const Tuple& t) {
    return {item<int64_t>(t, 0),
            item<int64_t>(t, 1),
            (const int64_t*)item<uintptr_t>(t, 2),
            item<int64_t>(t, 3),
            (MaskMode)item<int>(t, 4),
            to_flags(item<Tuple>(t, 5)),
            to_flags(item<Tuple>(t, 6))};
}

// The tuple that dfpo_kernels/distributional_gae/__init__.py passes to either module.
GaeArgs to_gae_args(const Tuple& t) {
    return {to_sequences(item<Tuple>(t, 0)),  to_tokens(item<Tuple>(t, 1)),
            to_tokens(item<Tuple>(t, 2)),     to_tokens(item<Tuple>(t, 3)),
            to_rows(item<Tuple>(t, 4)),       to_floats(item<uintptr_t>(t, 5)),
            to_floats(item<uintptr_t>(t, 6)), item<float>(t, 7),
            to_tokens(item<Tuple>(t, 8)),     to_tokens(item<Tuple>(t, 9))};
}

GaeGradArgs to_gae_grad_args(const Tuple& t) {
    return {to_sequences(item<Tuple>(t, 0)),
            to_tokens(item<Tuple>(t, 1)),
            to_tokens(item<Tuple>(t, 2)),
            to_floats(item<uintptr_t>(t, 3)),
            to_floats(item<uintptr_t>(t, 4)),
            item<float>(t, 5),
            item<bool>(t, 6),
            to_tokens(item<Tuple>(t, 7)),
            to_tokens(item<Tuple>(t, 8)),
            to_tokens(item<Tuple>(t, 9)),
            to_floats(item<uintptr_t>(t, 10))};
}

// As dfpo_kernels/distributional_gae/mixture.py passes them.
MixtureArgs to_mixture_args(const Tuple& t) {
    return {to_sequences(item<Tuple>(t, 0)),
            to_tokens(item<Tuple>(t, 1)),
            to_tokens(item<Tuple>(t, 2)),
            to_rows(item<Tuple>(t, 3)),
            to_floats(item<uintptr_t>(t, 4)),
            (const int64_t*)item<uintptr_t>(t, 5),
            item<uint64_t>(t, 6),
            item<float>(t, 7),
            to_tokens(item<Tuple>(t, 8))};
}

MixtureGradArgs to_mixture_grad_args(const Tuple& t) {
    return {to_sequences(item<Tuple>(t, 0)),
            to_tokens(item<Tuple>(t, 1)),
            to_floats(item<uintptr_t>(t, 2)),
            (const int64_t*)item<uintptr_t>(t, 3),
            item<uint64_t>(t, 4),
            item<float>(t, 5),
            to_tokens(item<Tuple>(t, 6)),
            to_tokens(item<Tuple>(t, 7)),
            to_floats(item<uintptr_t>(t, 8))};
}

}  // namespace
}  // namespace dfpo
