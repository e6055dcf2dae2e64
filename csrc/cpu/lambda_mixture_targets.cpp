// A random horizon for every particle, and the transposed scan:
//   y_t = r_t + gamma (bit ? y_{t+1} : z_{t+1}),   bit ~ Bernoulli(lam),
// over the steps of a sequence; scan_args.h says what mask and done make of a token. The bit is a
// function of (seed, row, step, particle) alone, so the backward pass draws it again.
#include "../philox.h"
#include "kernels.h"
#include "scan.h"

namespace dfpo {
namespace DFPO_VARIANT {

namespace {

typedef uint32_t UVec __attribute__((vector_size(4 * kLanes)));

// kLanes counters at a time.
struct VectorWords {
    using Word = UVec;

    static DFPO_INLINE void multiply(Word x, uint32_t multiplier, Word* high, Word* low) {
#if defined(__AVX512F__)
        const __m512i m = _mm512_set1_epi32((int)multiplier);
        const __m512i even = _mm512_mul_epu32((__m512i)x, m);
        const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)x, 32), m);
        *high = (Word)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
        *low = (Word)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
#elif defined(__AVX2__)
        const __m256i m = _mm256_set1_epi32((int)multiplier);
        const __m256i even = _mm256_mul_epu32((__m256i)x, m);
        const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)x, 32), m);
        *high = (Word)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
        *low = (Word)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
#else
        for (int lane = 0; lane < kLanes; lane++) {
            uint32_t lane_high, lane_low;
            ScalarWords::multiply(x[lane], multiplier, &lane_high, &lane_low);
            (*high)[lane] = lane_high;
            (*low)[lane] = lane_low;
        }
#endif
    }
};

DFPO_INLINE Vec uniform24(UVec word) {
    return __builtin_convertvector((IVec)(word >> 8), Vec) * 0x1p-24f;
}

// Four particles share a draw: particle q is word q % 4 of counter (q / 4, step, row).
struct Counter {
    UVec block, row_low, row_high;
    IVec step;
};

template <int kVecs>
DFPO_INLINE void draw(const ParticleLanes<kVecs>&, uint64_t seed, const Counter& counter,
                      Vec uniform[kVecs]) {
    UVec x[4] = {counter.block, (UVec)counter.step, counter.row_low, counter.row_high};
    philox4x32<VectorWords>(x, seed);
    Vec words[4];
    for (int i = 0; i < 4; i++) words[i] = (Vec)x[i];
    transpose_groups(words);
    for (int i = 0; i < kVecs; i++) uniform[i] = uniform24((UVec)words[i]);
}

DFPO_INLINE void draw(const SequenceLanes&, uint64_t seed, const Counter& counter, Vec uniform[1]) {
    UVec x[4] = {counter.block, (UVec)counter.step, counter.row_low, counter.row_high};
    philox4x32<VectorWords>(x, seed);
    uniform[0] = uniform24(x[0]);
}

// Number of the step at token 0 or, from the end, after the last one. Steps count from the first
// unmasked token, so that padding changes nothing.
inline int32_t start_step(const Sequences& s, int64_t b, bool from_end) {
    const int64_t length = sequence_length(s, b), mask = sequence_start(s, s.mask, b);
    if (s.mask_mode == MaskMode::none) return from_end ? (int32_t)length : 0;
    int64_t unmasked = 0, first = length;
    for (int64_t t = length - 1; t >= 0; t--)
        if (is_set(s.mask, mask + t * s.mask.token_stride)) {
            unmasked++;
            first = t;
        }
    if (s.mask_mode == MaskMode::carry) return from_end ? (int32_t)unmasked : 0;
    return (int32_t)(from_end ? length - first : -first);
}

template <int kVecs>
Counter start_counter(const ParticleLanes<kVecs>& lanes, const int64_t* rows, bool from_end) {
    const uint64_t row = (uint64_t)rows[lanes.b];
    // The order that makes words come out sorted, once transposed within groups of four lanes.
    UVec block{};
    for (uint32_t lane = 0; lane < kLanes; lane++)
        block[lane] = (uint32_t)lanes.q / 4 + lane % 4 * (kLanes / 4) + lane / 4;
    return {block, UVec{} + (uint32_t)row, UVec{} + (uint32_t)(row >> 32),
            splat_int(start_step(lanes.sequences, lanes.b, from_end))};
}

inline Counter start_counter(const SequenceLanes& lanes, const int64_t* rows, bool from_end) {
    Counter counter{};
    for (int lane = 0; lane < lanes.lanes; lane++) {
        const uint64_t row = (uint64_t)rows[lanes.b + lane];
        counter.row_low[lane] = (uint32_t)row;
        counter.row_high[lane] = (uint32_t)(row >> 32);
        counter.step[lane] = start_step(lanes.sequences, lanes.b + lane, from_end);
    }
    return counter;
}

template <typename Lanes>
DFPO_INLINE void walk_back(const MixtureArgs& a, Lanes& lanes) {
    constexpr int kVecs = Lanes::kVecs;
    const Vec gamma = splat(a.gamma), zero{}, lam = lanes.per_sequence(a.lam);
    Counter counter = start_counter(lanes, a.rows, true);
    Vec value[kVecs], target[kVecs], uniform[kVecs] = {};
    lanes.read_state(a.bootstrap, value);
    for (int i = 0; i < kVecs; i++) target[i] = value[i];

    for (int64_t block = 0; block < lanes.blocks(); block++) {
        lanes.seek(block);
        lanes.read_rewards(a.rewards);
        const Tile values = lanes.read(a.quantiles, 0);
        const Tile targets = lanes.write_to(a.targets, 1);
        for (int j = lanes.kBlock - 1; j >= lanes.first; j--) {
            const IVec role = lanes.role(j);
            const IVec skip = (role & kSkip) != 0, blank = (role & kBlank) != 0;
            const IVec stop = (role & kStop) != 0;
            const Vec reward = blank ? zero : lanes.reward(j);
            counter.step += ~skip;
            if (!lanes.all_skip(j)) draw(lanes, a.seed, counter, uniform);
            for (int i = 0; i < kVecs; i++) {
                const Vec raw = lanes.get(values.at(j), i);
                const Vec v = blank ? zero : raw;
                const Vec successor = uniform[i] < lam ? target[i] : value[i];
                const Vec stepped = reward + gamma * (stop ? zero : successor);
                target[i] = skip ? target[i] : stepped;
                value[i] = skip ? value[i] : v;
                lanes.put(targets.at(j), i, target[i]);
            }
        }
        lanes.written(a.targets, targets);
    }
}

// The gradient flows forward in time. `into_*` is the gradient of what the step before read of the
// next one: its target or its value.
template <typename Lanes>
DFPO_INLINE void walk_forth(const MixtureGradArgs& a, Lanes& lanes) {
    constexpr int kVecs = Lanes::kVecs;
    const Vec gamma = splat(a.gamma), zero{}, lam = lanes.per_sequence(a.lam);
    Counter counter = start_counter(lanes, a.rows, false);
    Vec into_target[kVecs] = {}, into_value[kVecs] = {}, uniform[kVecs] = {};

    for (int64_t block = lanes.blocks() - 1; block >= 0; block--) {
        lanes.seek(block);
        const Tile grad_targets = lanes.read(a.grad_targets, 0);
        const Tile grad_values = lanes.write_to(a.grad_quantiles, 1);
        for (int j = lanes.first; j < lanes.kBlock; j++) {
            const IVec role = lanes.role(j);
            const IVec skip = (role & kSkip) != 0, blank = (role & kBlank) != 0;
            const IVec stop = (role & kStop) != 0;
            if (!lanes.all_skip(j)) draw(lanes, a.seed, counter, uniform);
            counter.step -= ~skip;
            Vec grad_reward[kVecs];
            for (int i = 0; i < kVecs; i++) {
                const Vec target = into_target[i] + lanes.get(grad_targets.at(j), i);
                const Vec successor = stop ? zero : gamma * target;
                const IVec follow = uniform[i] < lam;
                grad_reward[i] = (skip | blank) ? zero : target;
                if (grad_values)
                    lanes.put(grad_values.at(j), i, (skip | blank) ? zero : into_value[i]);
                const Vec followed = follow ? successor : zero, valued = follow ? zero : successor;
                into_target[i] = skip ? target : followed;
                into_value[i] = skip ? into_value[i] : valued;
            }
            lanes.add_reward_grad(j, grad_reward);
        }
        lanes.write_reward_grads(a.grad_rewards);
        lanes.written(a.grad_quantiles, grad_values);
    }
    // What the last step read is the bootstrap, as target and as value.
    for (int i = 0; i < kVecs; i++) into_value[i] += into_target[i];
    lanes.write_state(a.grad_bootstrap, into_value);
}

}  // namespace

void lambda_mixture_targets(const MixtureArgs& a, int64_t begin, int64_t end) {
    for_lanes(a.sequences, begin, end, [&](auto& lanes) { walk_back(a, lanes); });
}

void lambda_mixture_targets_backward(const MixtureGradArgs& a, int64_t begin, int64_t end) {
    for_lanes(a.sequences, begin, end, [&](auto& lanes) { walk_forth(a, lanes); });
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
