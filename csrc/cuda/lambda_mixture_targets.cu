// A random horizon for every particle, and the transposed scan. The recursion is that of
// csrc/cpu/lambda_mixture_targets.cpp, where it stands in full, and so are the random bits.
#include "../philox.h"
#include "kernels.h"
#include "scan.h"

namespace dfpo {
namespace DFPO_VARIANT {

// Whether particle q follows the return at a step: word q % 4 of counter (q / 4, step, row).
class Coin {
  public:
    template <typename Args>
    DFPO_INLINE Coin(const Args& a, int64_t b, int64_t q)
        : seed_(a.seed), row_((uint64_t)a.rows[b]), q_((uint32_t)q), lam_(a.lam[b]) {}

    DFPO_INLINE bool follows(int32_t number) const {
        uint32_t x[4] = {q_ / 4, (uint32_t)number, (uint32_t)row_, (uint32_t)(row_ >> 32)};
        philox4x32<ScalarWords>(x, seed_);
        const uint32_t word = q_ % 4 < 2 ? (q_ % 2 ? x[1] : x[0]) : (q_ % 2 ? x[3] : x[2]);
        return (float)(word >> 8) * 0x1p-24f < lam_;
    }

  private:
    const uint64_t seed_, row_;
    const uint32_t q_;
    const float lam_;
};

class MixtureScan {
  public:
    using Args = MixtureArgs;
    static constexpr int kState = 2;  // value and target of the step after
    static constexpr bool kForth = false, kDraws = true, kSums = false;

    struct Token {
        int32_t role;
        bool follows;
        float reward, value;

        DFPO_INLINE Token linear() const { return {role, follows, 0.0f, 0.0f}; }
    };

    struct Out {
        float target;
    };

    DFPO_INLINE MixtureScan(const Args& a, int64_t b, int64_t q)
        : gamma_(a.gamma),
          bootstrap_(read_state(a.bootstrap, b, q)),
          coin_(a, b, q),
          rewards_(a.sequences, a.rewards, b, 0),
          values_(a.sequences, a.quantiles, b, q),
          targets_(a.sequences, a.targets, b, q) {}

    DFPO_INLINE Token read(int64_t t, int32_t role, int32_t number) const {
        if (role & kSkip) return {role, false, 0.0f, 0.0f};
        const bool blank = role & kBlank;
        return {role, coin_.follows(number), blank ? 0.0f : rewards_.read(t),
                blank ? 0.0f : values_.read(t)};
    }

    DFPO_INLINE void start(float* state) const { state[0] = state[1] = bootstrap_; }

    DFPO_INLINE Out step(const Token& token, float* state) const {
        if (!(token.role & kSkip)) {
            const float successor = token.follows ? state[1] : state[0];
            state[1] = token.reward + (token.role & kStop ? 0.0f : gamma_ * successor);
            state[0] = token.value;
        }
        return {state[1]};
    }

    DFPO_INLINE void write(int64_t t, const Out& out) const { targets_.write(t, out.target); }

    DFPO_INLINE void finish(const float*) const {}

  private:
    const float gamma_, bootstrap_;
    const Coin coin_;
    const Column rewards_, values_, targets_;
};

class MixtureGradScan {
  public:
    using Args = MixtureGradArgs;
    // Gradient of what the step before read of the next one: its target or its value.
    static constexpr int kState = 2;
    static constexpr bool kForth = true, kDraws = true, kSums = true;

    struct Token {
        int32_t role;
        bool follows;
        float target;

        DFPO_INLINE Token linear() const { return {role, follows, 0.0f}; }
    };

    struct Out {
        float sum;  // gradient of the reward, by this particle
        float value;
    };

    DFPO_INLINE MixtureGradScan(const Args& a, int64_t b, int64_t q)
        : a_(a),
          b_(b),
          q_(q),
          coin_(a, b, q),
          grad_targets_(a.sequences, a.grad_targets, b, q),
          grad_values_(a.sequences, a.grad_quantiles, b, q) {}

    DFPO_INLINE Token read(int64_t t, int32_t role, int32_t number) const {
        return {role, !(role & kSkip) && coin_.follows(number), grad_targets_.read(t)};
    }

    DFPO_INLINE void start(float* state) const { state[0] = state[1] = 0.0f; }

    DFPO_INLINE Out step(const Token& token, float* state) const {
        state[0] += token.target;
        if (token.role & kSkip) return {0.0f, 0.0f};
        const bool blank = token.role & kBlank;
        const Out out = {blank ? 0.0f : state[0], blank ? 0.0f : state[1]};
        const float successor = token.role & kStop ? 0.0f : a_.gamma * state[0];
        state[0] = token.follows ? successor : 0.0f;
        state[1] = token.follows ? 0.0f : successor;
        return out;
    }

    DFPO_INLINE void write(int64_t t, const Out& out) const {
        if (grad_values_.there()) grad_values_.write(t, out.value);
    }

    DFPO_INLINE void write_sum(int64_t group, int64_t t, float sum) const {
        write_group_sum(a_.sequences, a_.grad_rewards, b_, group, t, sum);
    }

    // What the last step read is the bootstrap, as target and as value.
    DFPO_INLINE void finish(const float* state) const {
        if (a_.grad_bootstrap)
            a_.grad_bootstrap[b_ * a_.sequences.num_quantiles + q_] = state[0] + state[1];
    }

  private:
    const Args& a_;
    const int64_t b_, q_;
    const Coin coin_;
    const Column grad_targets_, grad_values_;
};

}  // namespace DFPO_VARIANT

const char* cuda_lambda_mixture_targets(const MixtureArgs& args, int device, uintptr_t stream) {
    return DFPO_VARIANT::launch_scan<DFPO_VARIANT::MixtureScan>(args, device, stream);
}

const char* cuda_lambda_mixture_targets_backward(const MixtureGradArgs& args, int device,
                                                 uintptr_t stream) {
    return DFPO_VARIANT::launch_scan<DFPO_VARIANT::MixtureGradScan>(args, device, stream);
}

}  // namespace dfpo
