// Transposes of small square tiles in registers.
#pragma once

#include "../simd.h"

namespace dfpo {
namespace DFPO_VARIANT {

// Four vectors cut into groups of four lanes: within every group g, lane j of result i is what
// lane i of vector j was.
DFPO_INLINE void transpose_groups(Vec v[4]) {
#if defined(__AVX512F__)
    const __m512 a = _mm512_unpacklo_ps((__m512)v[0], (__m512)v[1]);
    const __m512 b = _mm512_unpackhi_ps((__m512)v[0], (__m512)v[1]);
    const __m512 c = _mm512_unpacklo_ps((__m512)v[2], (__m512)v[3]);
    const __m512 d = _mm512_unpackhi_ps((__m512)v[2], (__m512)v[3]);
    v[0] = (Vec)_mm512_shuffle_ps(a, c, 0x44);
    v[1] = (Vec)_mm512_shuffle_ps(a, c, 0xee);
    v[2] = (Vec)_mm512_shuffle_ps(b, d, 0x44);
    v[3] = (Vec)_mm512_shuffle_ps(b, d, 0xee);
#elif defined(__AVX2__)
    const __m256 a = _mm256_unpacklo_ps((__m256)v[0], (__m256)v[1]);
    const __m256 b = _mm256_unpackhi_ps((__m256)v[0], (__m256)v[1]);
    const __m256 c = _mm256_unpacklo_ps((__m256)v[2], (__m256)v[3]);
    const __m256 d = _mm256_unpackhi_ps((__m256)v[2], (__m256)v[3]);
    v[0] = (Vec)_mm256_shuffle_ps(a, c, 0x44);
    v[1] = (Vec)_mm256_shuffle_ps(a, c, 0xee);
    v[2] = (Vec)_mm256_shuffle_ps(b, d, 0x44);
    v[3] = (Vec)_mm256_shuffle_ps(b, d, 0xee);
#else
    float in[4 * kLanes];
    for (int i = 0; i < 4; i++) store(in + i * kLanes, v[i]);
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < kLanes; lane++)
            v[i][lane] = in[lane % 4 * kLanes + lane / 4 * 4 + i];
#endif
}

// Lane j of vector i becomes lane i of vector j. Loops over v are unrolled, here and at the
// callers, for v to stay in registers.
DFPO_INLINE void transpose(Vec v[kLanes]) {
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; i += 4) transpose_groups(v + i);
    // Now group g of v[4 i + h] holds lanes 4 i .. 4 i + 3 of row 4 g + h: transpose the groups.
#if defined(__AVX512F__)
#pragma GCC unroll 4
    for (int h = 0; h < 4; h++) {
        const __m512 r0 = (__m512)v[h], r1 = (__m512)v[4 + h];
        const __m512 r2 = (__m512)v[8 + h], r3 = (__m512)v[12 + h];
        const __m512 a = _mm512_shuffle_f32x4(r0, r1, 0x44), b = _mm512_shuffle_f32x4(r0, r1, 0xee);
        const __m512 c = _mm512_shuffle_f32x4(r2, r3, 0x44), d = _mm512_shuffle_f32x4(r2, r3, 0xee);
        v[h] = (Vec)_mm512_shuffle_f32x4(a, c, 0x88);
        v[4 + h] = (Vec)_mm512_shuffle_f32x4(a, c, 0xdd);
        v[8 + h] = (Vec)_mm512_shuffle_f32x4(b, d, 0x88);
        v[12 + h] = (Vec)_mm512_shuffle_f32x4(b, d, 0xdd);
    }
#elif defined(__AVX2__)
#pragma GCC unroll 4
    for (int h = 0; h < 4; h++) {
        const __m256 r0 = (__m256)v[h], r1 = (__m256)v[4 + h];
        v[h] = (Vec)_mm256_permute2f128_ps(r0, r1, 0x20);
        v[4 + h] = (Vec)_mm256_permute2f128_ps(r0, r1, 0x31);
    }
#endif
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
