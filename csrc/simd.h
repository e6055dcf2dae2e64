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

// p[i], lane by lane.
DFPO_INLINE Vec gather(const float* p, IVec i) {
#if defined(__AVX512F__)
    return (Vec)_mm512_i32gather_ps((__m512i)i, p, 4);
#elif defined(__AVX2__)
    return (Vec)_mm256_i32gather_ps(p, (__m256i)i, 4);
#else
    Vec v{};
    for (int lane = 0; lane < kLanes; lane++) v[lane] = p[i[lane]];
    return v;
#endif
}

DFPO_INLINE bool on_vector(const float* p) { return (uintptr_t)p % sizeof(Vec) == 0; }

// Stores past the cache; p lies on a vector's boundary. finish_streams makes the stores visible to
// other threads.
DFPO_INLINE void stream(float* p, Vec v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
    _mm256_stream_ps(p, (__m256)v);
#else
    store(p, v);
#endif
}

DFPO_INLINE void finish_streams() {
#if defined(__AVX2__)
    _mm_sfence();
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

// exp2(n / kExpSteps) comes from a table in one register, the rest of the exponent from a
// polynomial on [-1/2, 1/2] steps, minimax in relative error. More steps need a lower degree.
#if defined(__AVX512F__)
constexpr int kExpStepBits = 4;
constexpr float kExpPolynomial[] = {1.0f, 0.0433242395f, 0.000938357275f};
#elif defined(__AVX2__)
constexpr int kExpStepBits = 3;
constexpr float kExpPolynomial[] = {1.0f, 0.0866434011f, 0.00375412614f, 0.00010839629f};
#else
constexpr int kExpStepBits = 0;
constexpr float kExpPolynomial[] = {1.0f,          0.693146967f,   0.240221197f,
                                    0.0555071327f, 0.00967554133f, 0.00132764722f};
#endif

// Bits of 2^(i / kExpSteps) less i << (23 - kExpStepBits), so that adding n << (23 - kExpStepBits)
// gives the bits of 2^(n / kExpSteps) for any n whose low bits are i.
DFPO_INLINE IVec exp_table() {
#if defined(__AVX512F__)
    return IVec{0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
#elif defined(__AVX2__)
    return IVec{0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
#else
    return splat_int(0x3f800000);
#endif
}

// table[i mod kExpSteps], lane by lane.
DFPO_INLINE IVec look_up(IVec table, IVec i) {
#if defined(__AVX512F__)
    return (IVec)_mm512_permutexvar_epi32((__m512i)i, (__m512i)table);
#elif defined(__AVX2__)
    return (IVec)_mm256_permutevar8x32_epi32((__m256i)table, (__m256i)i);
#else
    (void)i;
    return table;
#endif
}

// x with its magnitude cut to limit; a NaN gives any number.
DFPO_INLINE Vec clamp_magnitude(Vec x, float limit) {
#if defined(__AVX512DQ__)
    return (Vec)_mm512_range_ps((__m512)x, (__m512)splat(limit), 2);
#else
    return min(max(x, splat(-limit)), splat(limit));
#endif
}

// 1 / (1 + exp(-x)), absolute error below 2e-7. NaN at -infinity, so that x * sigmoid(x) is
// silu(x) there too, which PyTorch defines as NaN; a NaN is left to that same product.
DFPO_INLINE Vec sigmoid(Vec x) {
    // Beyond the cut a sigmoid is 0 or 1 in float32 sums; a wider one would breed subnormals.
    constexpr float kCut = 60.0f;
    constexpr float kMinusLog2E = -1.44269504089f;
    const Vec scale = splat(kMinusLog2E * (float)(1 << kExpStepBits));
    // Adding 1.5 * 2^23 rounds to an integer, which then lies in the low bits.
    const Vec magic = splat(12582912.0f);
    const Vec y = clamp_magnitude(x, kCut);
    const Vec shifted = y * scale + magic;
    const Vec fraction = y * scale - (shifted - magic);
    constexpr int kDegree = (int)(sizeof kExpPolynomial / sizeof(float)) - 1;
    Vec polynomial = splat(kExpPolynomial[kDegree]);
#pragma GCC unroll 8
    for (int i = kDegree - 1; i >= 0; i--) polynomial = polynomial * fraction + kExpPolynomial[i];
    const IVec n = (IVec)shifted;
    const Vec power = (Vec)(look_up(exp_table(), n) + (n << (23 - kExpStepBits)));
    const Vec d = power * polynomial + 1.0f;
#if defined(__AVX512F__)
    const Vec estimate = (Vec)_mm512_rcp14_ps((__m512)d);
    const Vec quotient = estimate * (2.0f - d * estimate);
    // Class 4 of an operand is -infinity, response 3 a NaN.
    return (Vec)_mm512_fixupimm_ps((__m512)quotient, (__m512)x, _mm512_set1_epi32(3 << 16), 0);
#else
    return (Vec)((IVec)(1.0f / d) | (IVec)(x == splat(-__builtin_inff())));
#endif
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
