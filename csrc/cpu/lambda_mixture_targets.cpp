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
        *high = (Word)_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
        *low = (Word)_mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CCAA);
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

// Which bits are 1: u < lam for u = k / 2^24 with k the upper 24 bits of a word, as a comparison of
// integers.
struct Threshold {
    IVec least;

    explicit Threshold(Vec lam) {
        const Vec scaled = min(max(lam, Vec{}), splat(1.0f)) * 0x1p24f;
        least = __builtin_convertvector(scaled, IVec);
        least -= __builtin_convertvector(least, Vec) < scaled;  // round up: true is -1
    }

    DFPO_INLINE IVec follows(UVec word) const { return (IVec)(word >> 8) < least; }
};

// The bits of a walk over particles, four to a counter: particle q has word q % 4 of counter
// (q / 4, step, row). A draw makes words for 4 kLanes particles, so for few of them it serves
// several steps of the walk, which come one after the other.
template <int kVecs>
class ParticleBits {
  public:
    static constexpr int kSteps = 4 / kVecs;

    // direction: what a step of the walk adds to the step's number.
    ParticleBits(int64_t particle, uint64_t row, int32_t step, int32_t direction, uint64_t seed)
        : seed_(seed), step_(step), direction_(direction) {
        row_low_ = UVec{} + (uint32_t)row;
        row_high_ = UVec{} + (uint32_t)(row >> 32);
        // In this order words come out sorted, once transposed within groups of four lanes.
        for (int lane = 0; lane < kLanes; lane++) {
            const int vector = lane % 4;
            block_[lane] = (uint32_t)(particle / 4 + vector % kVecs * (kLanes / 4) + lane / 4);
            ahead_[lane] = vector / kVecs * direction;
        }
    }

    // For the next step of the walk, which is not a skipped one.
    template <typename AnyRoles>
    DFPO_INLINE void next(const AnyRoles&, const Threshold& threshold, IVec follow[kVecs]) {
        if (left_ == 0) draw();
        const float* words = words_ + (kSteps - left_) * kVecs * kLanes;
        for (int i = 0; i < kVecs; i++)
            follow[i] = threshold.follows((UVec)load(words + i * kLanes));
        left_--;
        step_ += direction_;
    }

  private:
    DFPO_INLINE void draw() {
        UVec x[4] = {block_, (UVec)(ahead_ + step_), row_low_, row_high_};
        philox4x32<VectorWords>(x, seed_);
        Vec words[4];
        for (int i = 0; i < 4; i++) words[i] = (Vec)x[i];
        transpose_groups(words);
        for (int i = 0; i < 4; i++) store(words_ + i * kLanes, words[i]);
        left_ = kSteps;
    }

    uint64_t seed_;
    int32_t step_, direction_;
    int left_ = 0;
    UVec block_, row_low_, row_high_;
    IVec ahead_;
    alignas(64) float words_[4 * kLanes];
};

// The bits of a walk over one particle of kLanes sequences, of which each counts its own steps:
// word 0 of counter (0, step, row).
class SequenceBits {
  public:
    SequenceBits(UVec row_low, UVec row_high, IVec step, int32_t direction, uint64_t seed)
        : seed_(seed), row_low_(row_low), row_high_(row_high), step_(step), direction_(direction) {}

    template <typename AnyRoles>
    DFPO_INLINE void next(const AnyRoles& role, const Threshold& threshold, IVec follow[1]) {
        UVec x[4] = {UVec{}, (UVec)step_, row_low_, row_high_};
        philox4x32<VectorWords>(x, seed_);
        follow[0] = threshold.follows(x[0]);
        step_ += (IVec)role.skip(Vec{}, (Vec)splat_int(direction_));
    }

  private:
    uint64_t seed_;
    UVec row_low_, row_high_;
    IVec step_;
    int32_t direction_;
};

// Number of the step at token 0 or, backwards, of the last one. Steps count from the first
// unmasked token, so that padding changes nothing.
inline int32_t start_step(const Sequences& s, int64_t b, bool backwards) {
    const int64_t length = sequence_length(s, b), mask = sequence_start(s, s.mask, b);
    if (s.mask_mode == MaskMode::none) return backwards ? (int32_t)length - 1 : 0;
    constexpr int kBlock = 256;
    int64_t unmasked = 0, first = length;
    for (int64_t begin = 0; begin < length; begin += kBlock) {
        const int n = length - begin < kBlock ? (int)(length - begin) : kBlock;
        uint8_t counts[kBlock] = {};
        add_roles(s.mask, mask + begin * s.mask.token_stride, n, 0, 1, counts);
        int found = 0;
        for (int j = 0; j < n; j++) found += counts[j];
        if (found && first == length)
            first = begin + ((const uint8_t*)std::memchr(counts, 1, n) - counts);
        unmasked += found;
    }
    if (s.mask_mode == MaskMode::carry) return backwards ? (int32_t)unmasked - 1 : 0;
    return (int32_t)(backwards ? length - 1 - first : -first);
}

template <int kVecs, bool kFull>
ParticleBits<kVecs> start_bits(const ParticleLanes<kVecs, kFull>& lanes, const int64_t* rows,
                               uint64_t seed, bool backwards) {
    return {lanes.q, (uint64_t)rows[lanes.b], start_step(lanes.sequences, lanes.b, backwards),
            backwards ? -1 : 1, seed};
}

inline SequenceBits start_bits(const SequenceLanes& lanes, const int64_t* rows, uint64_t seed,
                               bool backwards) {
    UVec row_low{}, row_high{};
    IVec step{};
    for (int lane = 0; lane < lanes.lanes; lane++) {
        const uint64_t row = (uint64_t)rows[lanes.b + lane];
        row_low[lane] = (uint32_t)row;
        row_high[lane] = (uint32_t)(row >> 32);
        step[lane] = start_step(lanes.sequences, lanes.b + lane, backwards);
    }
    return {row_low, row_high, step, backwards ? -1 : 1, seed};
}

template <typename Lanes>
DFPO_INLINE void walk_back(const MixtureArgs& a, Lanes& lanes) {
    constexpr int kVecs = Lanes::kVecs;
    const Vec gamma = splat(a.gamma), zero{};
    const Threshold threshold(lanes.per_sequence(a.lam));
    auto bits = start_bits(lanes, a.rows, a.seed, true);
    Vec value[kVecs], target[kVecs];
    IVec follow[kVecs] = {};
    lanes.read_state(a.bootstrap, value);
    for (int i = 0; i < kVecs; i++) target[i] = value[i];

    for (int64_t block = 0; block < lanes.blocks(); block++) {
        lanes.seek(block);
        lanes.read_rewards(a.rewards);
        const Tile values = lanes.read(a.quantiles, 0);
        const Tile targets = lanes.write_to(a.targets, 1);
        for (int j = lanes.kBlock - 1; j >= lanes.first; j--)
            at_slot(lanes, j, [&](const auto& role) DFPO_INLINE_LAMBDA {
                const Vec reward = role.blank(zero, lanes.reward(j));
                if (!lanes.all_skip(j)) bits.next(role, threshold, follow);
                for (int i = 0; i < kVecs; i++) {
                    const Vec v = role.blank(zero, lanes.get(values, j, i));
                    const Vec successor = follow[i] ? target[i] : value[i];
                    const Vec stepped = reward + gamma * role.stop(zero, successor);
                    target[i] = role.skip(target[i], stepped);
                    value[i] = role.skip(value[i], v);
                    lanes.put(targets, j, i, target[i]);
                }
            });
        lanes.written(a.targets, targets);
    }
}

// The gradient flows forward in time. `into_*` is the gradient of what the step before read of the
// next one: its target or its value.
template <typename Lanes>
DFPO_INLINE void walk_forth(const MixtureGradArgs& a, Lanes& lanes) {
    constexpr int kVecs = Lanes::kVecs;
    const Vec gamma = splat(a.gamma), zero{};
    const Threshold threshold(lanes.per_sequence(a.lam));
    auto bits = start_bits(lanes, a.rows, a.seed, false);
    Vec into_target[kVecs] = {}, into_value[kVecs] = {};
    IVec follow[kVecs] = {};

    for (int64_t block = lanes.blocks() - 1; block >= 0; block--) {
        lanes.seek(block);
        const Tile grad_targets = lanes.read(a.grad_targets, 0);
        const Tile grad_values = lanes.write_to(a.grad_quantiles, 1);
        for (int j = lanes.first; j < lanes.kBlock; j++)
            at_slot(lanes, j, [&](const auto& role) DFPO_INLINE_LAMBDA {
                if (!lanes.all_skip(j)) bits.next(role, threshold, follow);
                Vec grad_reward[kVecs];
                for (int i = 0; i < kVecs; i++) {
                    const Vec target = into_target[i] + lanes.get(grad_targets, j, i);
                    const Vec successor = role.stop(zero, gamma * target);
                    grad_reward[i] = role.skip(zero, role.blank(zero, target));
                    if (grad_values)
                        lanes.put(grad_values, j, i,
                                  role.skip(zero, role.blank(zero, into_value[i])));
                    into_target[i] = role.skip(target, follow[i] ? successor : zero);
                    into_value[i] = role.skip(into_value[i], follow[i] ? zero : successor);
                }
                lanes.add_reward_grad(j, grad_reward);
            });
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
