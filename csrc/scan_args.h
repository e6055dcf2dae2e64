// Arguments of the reverse scans over tokens, the same on the CPU and on CUDA.
#pragma once

#include <cstdint>

#include "inline.h"
#include "rows.h"

namespace dfpo {

// Element (b, t, q) of a float tensor lies b * row_stride + t * token_stride + q elements after
// data. Packed: (sequence start + t) * token_stride + q. data null is an absent optional argument.
struct Tokens {
    void* data;
    Dtype dtype;
    int64_t row_stride, token_stride;
};

// A tensor of any dtype of which nonzero counts.
struct Flags {
    const void* data;
    int log2_size;  // bytes per element: 1, 2, 4 or 8
    bool floating;  // -0.0 is zero, although it has a bit set
    int64_t row_stride, token_stride;
};

enum class MaskMode : int { carry = 0, zero = 1, none = 2 };

struct Sequences {
    int64_t count;
    int64_t length;          // of every row, when padded
    const int64_t* offsets;  // [count + 1], when packed, else null
    int64_t num_quantiles;
    MaskMode mask_mode;
    Flags mask;  // [B, T]
    Flags done;  // [B, T] or null
};

struct GaeArgs {
    Sequences sequences;
    Tokens rewards;           // [B, T]
    Tokens quantiles;         // [B, T, Q]
    Tokens next_quantiles;    // [B, T, Q] or null
    Rows bootstrap;           // [B, Q] or null
    const float* lam;         // [B]
    const float* target_lam;  // [B] or null
    float gamma;
    Tokens advantages;  // [B, T, Q]
    Tokens targets;     // [B, T, Q]
};

struct GaeGradArgs {
    Sequences sequences;
    Tokens grad_advantages;   // [B, T, Q] or null
    Tokens grad_targets;      // [B, T, Q] or null
    const float* lam;         // [B]
    const float* target_lam;  // [B] or null
    float gamma;
    bool explicit_successors;    // the forward pass had next_quantiles
    Tokens grad_rewards;         // [B, T] float32 or null
    Tokens grad_quantiles;       // [B, T, Q] or null
    Tokens grad_next_quantiles;  // [B, T, Q] or null
    float* grad_bootstrap;       // [B, Q] or null
};

struct MixtureArgs {
    Sequences sequences;
    Tokens rewards;       // [B, T]
    Tokens quantiles;     // [B, T, Q]
    Rows bootstrap;       // [B, Q] or null
    const float* lam;     // [B]
    const int64_t* rows;  // [B]
    uint64_t seed;
    float gamma;
    Tokens targets;  // [B, T, Q]
};

struct MixtureGradArgs {
    Sequences sequences;
    Tokens grad_targets;  // [B, T, Q]
    const float* lam;     // [B]
    const int64_t* rows;  // [B]
    uint64_t seed;
    float gamma;
    Tokens grad_rewards;    // [B, T] float32 or null
    Tokens grad_quantiles;  // [B, T, Q] or null
    float* grad_bootstrap;  // [B, Q] or null
};

namespace DFPO_VARIANT {

// What a token is to the scan: a sum of these.
constexpr int32_t kSkip = 1;   // no step: value and trace pass through, whatever else is set
constexpr int32_t kBlank = 2;  // a step whose reward and values are 0
constexpr int32_t kStop = 4;   // a step that no later value flows into

DFPO_INLINE int32_t masked_role(MaskMode mode) {
    return mode == MaskMode::carry ? kSkip : mode == MaskMode::zero ? kBlank : 0;
}

DFPO_INLINE bool is_set(const Flags& x, int64_t i) {
    switch (x.log2_size) {
        case 0:
            return ((const uint8_t*)x.data)[i] != 0;
        case 1:
            return (uint16_t)(((const uint16_t*)x.data)[i] << (int)x.floating) != 0;
        case 2:
            return ((const uint32_t*)x.data)[i] << (int)x.floating != 0;
        default:
            return ((const uint64_t*)x.data)[i] << (int)x.floating != 0;
    }
}

DFPO_INLINE int64_t sequence_length(const Sequences& s, int64_t b) {
    return s.offsets ? s.offsets[b + 1] - s.offsets[b] : s.length;
}

// Index of token 0 of sequence b; x is a Tokens or a Flags.
template <typename Tensor>
DFPO_INLINE int64_t sequence_start(const Sequences& s, const Tensor& x, int64_t b) {
    return s.offsets ? s.offsets[b] * x.token_stride : b * x.row_stride;
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
