// The tokens of a sequence in the order of a scan's walk, and the elements of its tensors.
#pragma once

#include "../scan_args.h"

namespace dfpo {
namespace DFPO_VARIANT {

// A token past the end of a sequence; beside the roles of scan_args.h.
constexpr int32_t kAbsent = 8;

// The tokens of one sequence in the order of a walk: position 0 is the first or the last token.
class Walk {
  public:
    DFPO_INLINE Walk(const Sequences& s, int64_t b, bool forth)
        : length((int32_t)sequence_length(s, b)),
          s_(s),
          forth_(forth),
          mask_(sequence_start(s, s.mask, b)),
          done_(sequence_start(s, s.done, b)) {}

    DFPO_INLINE int32_t token(int32_t position) const {
        return forth_ ? position : length - 1 - position;
    }

    DFPO_INLINE bool unmasked(int32_t position) const {
        return is_set(s_.mask, mask_ + (int64_t)token(position) * s_.mask.token_stride);
    }

    DFPO_INLINE int32_t role(int32_t position) const {
        if (position >= length) return kSkip | kAbsent;
        int32_t role = 0;
        if (s_.mask_mode != MaskMode::none && !unmasked(position)) role = masked_role(s_.mask_mode);
        if (s_.done.data &&
            is_set(s_.done, done_ + (int64_t)token(position) * s_.done.token_stride))
            role |= kStop;
        return role;
    }

    const int32_t length;

  private:
    const Sequences& s_;
    const bool forth_;
    const int64_t mask_, done_;
};

// One sequence of a tensor [B, T, Q] or [B, T].
class Column {
  public:
    DFPO_INLINE Column(const Sequences& s, const Tokens& x, int64_t b)
        : x_(x), start_(sequence_start(s, x, b)) {}

    DFPO_INLINE bool there() const { return x_.data != nullptr; }
    DFPO_INLINE Dtype dtype() const { return x_.dtype; }
    // Where element 0 of token t lies.
    DFPO_INLINE int64_t at(int32_t t) const { return start_ + (int64_t)t * x_.token_stride; }
    DFPO_INLINE float read(Dtype dtype, int64_t i) const { return read_element(x_.data, dtype, i); }
    DFPO_INLINE void write(Dtype dtype, int64_t i, float value) const {
        write_element(x_.data, dtype, i, value);
    }

  private:
    const Tokens x_;
    const int64_t start_;
};

// visit(dtype) with a constant: the choice is made once, and not for each element.
template <typename Visit>
DFPO_INLINE void with_dtype(Dtype dtype, const Visit& visit) {
    if (dtype == Dtype::f32)
        visit(Dtype::f32);
    else if (dtype == Dtype::bf16)
        visit(Dtype::bf16);
    else
        visit(Dtype::f16);
}

DFPO_INLINE float read_state(const Rows& x, int64_t b, int64_t q) {
    return x.data ? read_element(x.data, x.dtype, b * x.stride + q) : 0.0f;
}

// Sums of the groups of particles, group after group: [groups, B, T], packed [groups, N].
DFPO_INLINE void write_group_sum(const Sequences& s, const Tokens& x, int64_t b, int64_t group,
                                 int64_t t, float sum) {
    if (!x.data) return;
    const int64_t tokens = s.offsets ? s.offsets[s.count] : s.count * s.length;
    const int64_t at = group * tokens + sequence_start(s, x, b) + t * x.token_stride;
    ((float*)x.data)[at] = sum;
}

// by * x, where a zero cuts the flow off, also that of a NaN: nothing flows across the end of an
// episode.
DFPO_INLINE float flow(float by, float x) { return by != 0.0f ? by * x : 0.0f; }

}  // namespace DFPO_VARIANT
}  // namespace dfpo
