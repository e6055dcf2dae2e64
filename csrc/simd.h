// Lanes of float32 for one CPU variant. Written once on GCC/Clang vector types; only what the
// compilers cannot find by themselves is an intrinsic. This header is compiled several times with
// different -m flags: everything lives in namespace DFPO_VARIANT and is always inlined, so that the
// linker can never pick an AVX-512 body for a machine without it. For the same reason kernel files
// use no std:: template.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dfpo {
namespace DFPO_VARIANT {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IVec __attribute__((vector_size(4 * kLanes)));

DFPO_INLINE Vec splat(float x) { return x - Vec{}; }
DFPO_INLINE IVec splat_int(int32_t x) { return x - IVec{}; }

DFPO_INLINE Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

DFPO_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

DFPO_INLINE IVec lane_number() {
    IVec v{};
    for (int i = 0; i < kLanes; i++) v[i] = i;
    return v;
}

// The first n lanes, 0 <= n <= kLanes; the other lanes are 0 and their memory is not touched.
DFPO_INLINE Vec load_first(const float* p, int n) {
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#elif defined(__AVX2__)
    return (Vec)_mm256_maskload_ps(p, (__m256i)(lane_number() < n));
#else
    Vec v{};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
#endif
}

DFPO_INLINE void store_first(float* p, Vec v, int n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#elif defined(__AVX2__)
    _mm256_maskstore_ps(p, (__m256i)(lane_number() < n), (__m256)v);
#else
    std::memcpy(p, &v, n * sizeof(float));
#endif
}

// A NaN in b is returned, as std::clamp-style code in PyTorch does.
DFPO_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

DFPO_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

DFPO_INLINE Vec lane_index() {
    Vec v{};
    for (int i = 0; i < kLanes; i++) v[i] = (float)i;
    return v;
}

// Sum of all lanes, in a fixed tree.
DFPO_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float part[kLanes];
    store(part, v);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
#endif
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
