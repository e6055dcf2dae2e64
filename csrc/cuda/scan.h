// Scans over the tokens of sequences, each an affine recursion of a small state per particle.
//
// Two ways to run one. Many quantiles: a warp walks along the tokens of a sequence, its lanes on
// neighbouring particles. Few quantiles: a block takes the tokens of a sequence tile by tile, its
// threads on neighbouring tokens and their particles. A thread first finds what its tokens do to
// any state, an affine map; the block composes the maps; and each thread walks its tokens from the
// right state.
//
// A Scan is made for one particle q of a sequence b, and has
//   Args, kState, kForth (first token first), kDraws (random bits), kSums (over particles)
//   Token read(t, role, number)     the inputs of a token; number: of the step, for random bits
//   Token::linear()                 the same token with all inputs 0
//   void start(state), Out step(token, state), void write(t, out), void finish(state)
//   void write_sum(group, t, sum)   of Out::sum over the particles of a group, with kSums
#pragma once

#include "../scan_args.h"
#include "launch.h"

namespace dfpo {
namespace DFPO_VARIANT {

constexpr int kWarp = 32;
// Tokens whose loads a thread has in flight.
constexpr int kBatch = 4;
// A token past the end of a sequence; beside the roles of scan_args.h.
constexpr int32_t kAbsent = 8;

DFPO_INLINE int64_t groups_of(const Sequences& s) { return (s.num_quantiles + kWarp - 1) / kWarp; }

// The tokens of one sequence in the order of a walk: position 0 is the first or the last token.
class Walk {
  public:
    DFPO_INLINE Walk(const Sequences& s, int64_t b, bool forth)
        : length(sequence_length(s, b)),
          s_(s),
          forth_(forth),
          mask_(sequence_start(s, s.mask, b)),
          done_(sequence_start(s, s.done, b)) {}

    DFPO_INLINE int64_t token(int64_t position) const {
        return forth_ ? position : length - 1 - position;
    }

    DFPO_INLINE bool unmasked(int64_t t) const {
        return is_set(s_.mask, mask_ + t * s_.mask.token_stride);
    }

    DFPO_INLINE int32_t role(int64_t position) const {
        if (position >= length) return kSkip | kAbsent;
        const int64_t t = token(position);
        int32_t role = 0;
        if (s_.mask_mode != MaskMode::none && !unmasked(t)) role = masked_role(s_.mask_mode);
        if (s_.done.data && is_set(s_.done, done_ + t * s_.done.token_stride)) role |= kStop;
        return role;
    }

    // Number of the step at token t, from the count of steps walked over before it. Steps count
    // from the first unmasked token, so that padding changes nothing.
    DFPO_INLINE int32_t number(int64_t t, int32_t walked) const {
        if (s_.mask_mode == MaskMode::none) return (int32_t)t;
        if (s_.mask_mode == MaskMode::zero) return (int32_t)t - first_unmasked;
        return forth_ ? walked : unmasked_count - 1 - walked;
    }

    const int64_t length;

    int32_t unmasked_count = 0;  // tokens, of the whole sequence
    int32_t first_unmasked = 0;  // unmasked token, or length

    // This thread's share of the two, the tokens from `begin` on in steps of `stride`.
    DFPO_INLINE void count_share(int64_t begin, int64_t stride) {
        first_unmasked = (int32_t)length;
        for (int64_t t = begin; t < length; t += stride)
            if (unmasked(t)) {
                unmasked_count++;
                if (first_unmasked > t) first_unmasked = (int32_t)t;
            }
    }

  private:
    const Sequences& s_;
    const bool forth_;
    const int64_t mask_, done_;
};

// --- many quantiles -----------------------------------------------------------------------------

DFPO_DEVICE float warp_sum(float x) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

DFPO_DEVICE void count_by_warp(Walk& walk, int lane) {
    walk.count_share(lane, kWarp);
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        walk.unmasked_count += __shfl_xor_sync(~0u, walk.unmasked_count, lanes);
        const int32_t other = __shfl_xor_sync(~0u, walk.first_unmasked, lanes);
        if (other < walk.first_unmasked) walk.first_unmasked = other;
    }
}

template <typename Scan>
__global__ void __launch_bounds__(kThreads, kBlocks) walk_kernel(typename Scan::Args args) {
    const Sequences& s = args.sequences;
    const int lane = (int)threadIdx.x % kWarp;
    const int64_t warp = (int64_t)blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
    const int64_t b = warp / groups_of(s), group = warp % groups_of(s);
    if (b >= s.count) return;
    // Lanes past the last particle repeat it, and write nothing.
    const int64_t q = group * kWarp + lane;
    const bool there = q < s.num_quantiles;
    const Scan scan(args, b, there ? q : s.num_quantiles - 1);
    Walk walk(s, b, Scan::kForth);
    int32_t walked = 0;
    if (Scan::kDraws) count_by_warp(walk, lane);

    float state[Scan::kState];
    scan.start(state);
    for (int64_t turn = 0; turn < walk.length; turn += kBatch) {
        int64_t first = turn;
        DFPO_OPAQUE(first);
        typename Scan::Token tokens[kBatch];
        int32_t roles[kBatch];
        for (int j = 0; j < kBatch; j++) {
            roles[j] = walk.role(first + j);
            if (roles[j] & kAbsent) continue;
            const int64_t t = walk.token(first + j);
            tokens[j] = scan.read(t, roles[j], walk.number(t, walked));
            walked += !(roles[j] & kSkip);
        }
        for (int j = 0; j < kBatch; j++) {
            if (roles[j] & kAbsent) continue;
            const int64_t t = walk.token(first + j);
            const auto out = scan.step(tokens[j], state);
            if (there) scan.write(t, out);
            if constexpr (Scan::kSums) {
                const float sum = warp_sum(there ? out.sum : 0.0f);
                if (lane == 0) scan.write_sum(group, t, sum);
            }
        }
    }
    if (there) scan.finish(state);
}

// --- few quantiles ------------------------------------------------------------------------------

// state -> sum_j by[j] state_j + constant
template <int kState>
struct Affine {
    float by[kState][kState];
    float constant[kState];

    static DFPO_INLINE Affine identity() {
        Affine map{};
        for (int i = 0; i < kState; i++) map.by[i][i] = 1.0f;
        return map;
    }

    DFPO_INLINE void apply(float state[kState]) const {
        float out[kState];
        for (int i = 0; i < kState; i++) out[i] = constant[i];
        add_linear(state, out);
        for (int i = 0; i < kState; i++) state[i] = out[i];
    }

    // What comes of this map after an earlier one.
    DFPO_INLINE Affine after(const Affine& earlier) const {
        Affine map{};
        for (int j = 0; j < kState; j++) add_linear(earlier.by[j], map.by[j]);
        for (int i = 0; i < kState; i++) map.constant[i] = constant[i];
        add_linear(earlier.constant, map.constant);
        return map;
    }

  private:
    // A zero cuts the flow off, also that of a NaN: nothing flows across the end of an episode.
    DFPO_INLINE void add_linear(const float state[kState], float out[kState]) const {
        for (int j = 0; j < kState; j++)
            for (int i = 0; i < kState; i++)
                if (by[j][i] != 0.0f) out[i] += by[j][i] * state[j];
    }
};

struct Count {
    int32_t steps;

    static DFPO_INLINE Count identity() { return {0}; }
    DFPO_INLINE Count after(const Count& earlier) const { return {earlier.steps + steps}; }
};

struct Unmasked {
    int32_t count, first;

    static DFPO_INLINE Unmasked identity() { return {0, INT32_MAX}; }
    DFPO_INLINE Unmasked after(const Unmasked& earlier) const {
        return {earlier.count + count, earlier.first < first ? earlier.first : first};
    }
};

// Composes the maps of a block's slots, `lanes` neighbouring threads each, and returns what comes
// before the own slot; total becomes what all slots do. Every thread of the block calls it.
template <typename Map>
DFPO_DEVICE Map compose_before(Map map, int slot, int slots, int lanes, Map* total) {
    DFPO_SHARED(Map, shared, kThreads);
    const int thread = (int)threadIdx.x;
    for (int distance = 1; distance < slots; distance *= 2) {
        shared[thread] = map;
        __syncthreads();
        if (slot >= distance) map = map.after(shared[thread - distance * lanes]);
        __syncthreads();
    }
    shared[thread] = map;
    __syncthreads();
    *total = shared[(slots - 1) * lanes + thread % lanes];
    map = slot > 0 ? shared[thread - lanes] : Map::identity();
    __syncthreads();
    return map;
}

template <typename Scan>
__global__ void __launch_bounds__(kThreads, kBlocks) scan_kernel(typename Scan::Args args) {
    using Map = Affine<Scan::kState>;
    DFPO_SHARED(float, sums, Scan::kSums ? kBatch * kThreads : 1);
    const Sequences& s = args.sequences;
    const int64_t b = blockIdx.x;
    const int lanes = (int)s.num_quantiles, slots = kThreads / lanes;
    const int slot = (int)threadIdx.x / lanes, q = (int)threadIdx.x % lanes;
    // Threads left over have no tokens.
    const bool idle = slot >= slots;
    const Scan scan(args, b, q);
    Walk walk(s, b, Scan::kForth);
    int32_t walked = 0;
    if (Scan::kDraws) {
        walk.count_share(threadIdx.x, kThreads);
        Unmasked all;
        compose_before(Unmasked{walk.unmasked_count, walk.first_unmasked}, (int)threadIdx.x,
                       kThreads, 1, &all);
        walk.unmasked_count = all.count;
        walk.first_unmasked = all.first;
    }

    float state[Scan::kState];
    scan.start(state);
    for (int64_t tile = 0; tile < walk.length; tile += slots * kBatch) {
        int64_t first = tile + slot * kBatch;
        DFPO_OPAQUE(first);
        int32_t roles[kBatch];
        for (int j = 0; j < kBatch; j++) roles[j] = idle ? kSkip | kAbsent : walk.role(first + j);

        int32_t number = walked;
        if (Scan::kDraws) {
            Count own{0}, all;
            for (int j = 0; j < kBatch; j++) own.steps += !(roles[j] & kSkip);
            number += compose_before(own, slot, slots, lanes, &all).steps;
            walked += all.steps;
        }

        typename Scan::Token tokens[kBatch];
        Map map = Map::identity();
        for (int j = 0; j < kBatch; j++) {
            if (roles[j] & kAbsent) continue;
            const int64_t t = walk.token(first + j);
            tokens[j] = scan.read(t, roles[j], walk.number(t, number));
            number += !(roles[j] & kSkip);
            for (int i = 0; i < Scan::kState; i++) scan.step(tokens[j].linear(), map.by[i]);
            scan.step(tokens[j], map.constant);
        }
        Map all;
        const Map before = compose_before(map, slot, slots, lanes, &all);
        float own[Scan::kState];
        for (int i = 0; i < Scan::kState; i++) own[i] = state[i];
        before.apply(own);
        all.apply(state);

        for (int j = 0; j < kBatch; j++) {
            if (roles[j] & kAbsent) continue;
            const auto out = scan.step(tokens[j], own);
            scan.write(walk.token(first + j), out);
            if constexpr (Scan::kSums) sums[j * kThreads + threadIdx.x] = out.sum;
        }
        if constexpr (Scan::kSums) {
            __syncthreads();
            for (int j = 0; j < kBatch && q == 0; j++) {
                if (roles[j] & kAbsent) continue;
                float sum = 0.0f;
                for (int i = 0; i < lanes; i++) sum += sums[j * kThreads + threadIdx.x + i];
                scan.write_sum(0, walk.token(first + j), sum);
            }
            __syncthreads();
        }
    }
    if (slot == 0) scan.finish(state);
}

// --- launch -------------------------------------------------------------------------------------

template <typename Scan>
const char* launch_scan(const typename Scan::Args& args, int device, uintptr_t stream) {
    const Sequences& s = args.sequences;
    if (s.num_quantiles < kWarp) return launch(scan_kernel<Scan>, args, s.count, device, stream);
    const int64_t warps = s.count * groups_of(s), per_block = kThreads / kWarp;
    return launch(walk_kernel<Scan>, args, (warps + per_block - 1) / per_block, device, stream);
}

// --- elements -----------------------------------------------------------------------------------

// One particle of a sequence in a tensor [B, T, Q], or one sequence in a tensor [B, T].
class Column {
  public:
    DFPO_INLINE Column(const Sequences& s, const Tokens& x, int64_t b, int64_t q)
        : x_(x), start_(sequence_start(s, x, b) + q) {}

    DFPO_INLINE bool there() const { return x_.data != nullptr; }
    DFPO_INLINE float read(int64_t t) const {
        return read_element(x_.data, x_.dtype, start_ + t * x_.token_stride);
    }
    DFPO_INLINE void write(int64_t t, float value) const {
        write_element(x_.data, x_.dtype, start_ + t * x_.token_stride, value);
    }

  private:
    const Tokens& x_;
    const int64_t start_;
};

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

}  // namespace DFPO_VARIANT
}  // namespace dfpo
