// Tensors at the border of the native code: a matrix of rows in float32, bfloat16 or float16.
// Kernels compute in float32; conversion happens once per row, here.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"

namespace dfpo {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

// Row r starts `r * stride` elements after `data`; its elements are contiguous.
// stride 0 is one row shared by all; data null is an absent optional argument.
struct Rows {
    void* data;
    Dtype dtype;
    int64_t stride;
};

namespace DFPO_VARIANT {

DFPO_INLINE float bits_to_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

DFPO_INLINE uint32_t float_to_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

DFPO_INLINE float from_bf16(uint16_t h) { return bits_to_float((uint32_t)h << 16); }

// Round to nearest even; a NaN stays a NaN.
DFPO_INLINE uint16_t to_bf16(float x) {
    const uint32_t bits = float_to_bits(x);
    if (x != x) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE half by exponent rebias: multiplying by 2^112 maps half's exponent range onto float's, and
// treats half subnormals, infinities and NaN right.
DFPO_INLINE float from_f16(uint16_t h) {
    const uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13;
    float x = bits_to_float(magnitude) * bits_to_float(0x77800000u);
    if (magnitude >= 0x0f800000u) x = bits_to_float(magnitude | 0x7f800000u);
    return bits_to_float(float_to_bits(x) | ((uint32_t)(h & 0x8000u) << 16));
}

DFPO_INLINE uint16_t to_f16(float x) {
    const uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
    if (magnitude < 0x38800000u) {
        // Subnormal half: adding 0.5 lets the float adder round at the half's last bit.
        const float shifted = bits_to_float(magnitude) + 0.5f;
        return sign | (uint16_t)(float_to_bits(shifted) - 0x3f000000u);
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return sign | (uint16_t)((rounded - 0x38000000u) >> 13);
}

DFPO_INLINE float read_element(const void* data, Dtype dtype, int64_t i) {
    if (dtype == Dtype::f32) return ((const float*)data)[i];
    const uint16_t half = ((const uint16_t*)data)[i];
    return dtype == Dtype::bf16 ? from_bf16(half) : from_f16(half);
}

DFPO_INLINE void write_element(void* data, Dtype dtype, int64_t i, float x) {
    if (dtype == Dtype::f32)
        ((float*)data)[i] = x;
    else
        ((uint16_t*)data)[i] = dtype == Dtype::bf16 ? to_bf16(x) : to_f16(x);
}

// Row r as float32: the tensor's own memory when it is float32, else converted into scratch [n].
DFPO_INLINE const float* read_row(const Rows& x, int64_t r, int64_t n, float* scratch) {
    if (x.dtype == Dtype::f32) return (const float*)x.data + r * x.stride;
    const uint16_t* p = (const uint16_t*)x.data + r * x.stride;
    if (x.dtype == Dtype::bf16)
        for (int64_t i = 0; i < n; i++) scratch[i] = from_bf16(p[i]);
    else
        for (int64_t i = 0; i < n; i++) scratch[i] = from_f16(p[i]);
    return scratch;
}

// Where to compute row r of an output: its own memory when float32, else scratch [n] to be
// handed to write_row.
DFPO_INLINE float* row_buffer(const Rows& x, int64_t r, float* scratch) {
    return x.dtype == Dtype::f32 ? (float*)x.data + r * x.stride : scratch;
}

DFPO_INLINE void write_row(const Rows& x, int64_t r, int64_t n, const float* row) {
    if (x.dtype == Dtype::f32) return;
    uint16_t* p = (uint16_t*)x.data + r * x.stride;
    if (x.dtype == Dtype::bf16)
        for (int64_t i = 0; i < n; i++) p[i] = to_bf16(row[i]);
    else
        for (int64_t i = 0; i < n; i++) p[i] = to_f16(row[i]);
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
