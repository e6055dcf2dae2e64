// Generalised advantage estimation of every particle, and its transposed scan. The recursion is
// that of csrc/cpu/distributional_gae.cpp, where it stands in full.
#include "kernels.h"
#include "scan.h"

namespace dfpo {
namespace DFPO_VARIANT {

struct Decay {
    template <typename Args>
    DFPO_INLINE Decay(const Args& a, int64_t b)
        : gamma(a.gamma),
          advantage(a.gamma * a.lam[b]),
          trace(a.target_lam ? a.gamma * a.target_lam[b] : advantage) {}

    float gamma, advantage, trace;
};

class GaeScan {
  public:
    using Args = GaeArgs;
    static constexpr int kState = 3;  // value, advantage and trace of the step after
    static constexpr bool kForth = false, kDraws = false, kSums = false;

    struct Token {
        int32_t role;
        float reward, value, successor;

        DFPO_INLINE Token linear() const { return {role, 0.0f, 0.0f, 0.0f}; }
    };

    struct Out {
        float advantage, target;
    };

    DFPO_INLINE GaeScan(const Args& a, int64_t b, int64_t q)
        : decay_(a, b),
          bootstrap_(read_state(a.bootstrap, b, q)),
          rewards_(a.sequences, a.rewards, b, 0),
          values_(a.sequences, a.quantiles, b, q),
          successors_(a.sequences, a.next_quantiles, b, q),
          advantages_(a.sequences, a.advantages, b, q),
          targets_(a.sequences, a.targets, b, q) {}

    DFPO_INLINE Token read(int64_t t, int32_t role, int32_t) const {
        // Not even a NaN of a blank token is read. A skipped one's value goes into its target.
        const bool blank = role & kBlank, step = !(role & (kBlank | kSkip));
        return {role, step ? rewards_.read(t) : 0.0f, blank ? 0.0f : values_.read(t),
                step && successors_.there() ? successors_.read(t) : 0.0f};
    }

    DFPO_INLINE void start(float* state) const {
        state[0] = bootstrap_;
        state[1] = state[2] = 0.0f;
    }

    DFPO_INLINE Out step(const Token& token, float* state) const {
        if (!(token.role & kSkip)) {
            const bool stop = token.role & kStop;
            const float successor = successors_.there() ? token.successor : state[0];
            const float delta =
                token.reward - token.value + (stop ? 0.0f : decay_.gamma * successor);
            state[0] = token.value;
            state[1] = delta + (stop ? 0.0f : decay_.advantage * state[1]);
            state[2] = delta + (stop ? 0.0f : decay_.trace * state[2]);
        }
        return {state[1], token.value + state[2]};
    }

    DFPO_INLINE void write(int64_t t, const Out& out) const {
        advantages_.write(t, out.advantage);
        targets_.write(t, out.target);
    }

    DFPO_INLINE void finish(const float*) const {}

  private:
    const Decay decay_;
    const float bootstrap_;
    const Column rewards_, values_, successors_, advantages_, targets_;
};

class GaeGradScan {
  public:
    using Args = GaeGradArgs;
    // Gradient of what the steps so far read of the next one: advantage, trace and value.
    static constexpr int kState = 3;
    static constexpr bool kForth = true, kDraws = false, kSums = true;

    struct Token {
        int32_t role;
        float advantage, target;

        DFPO_INLINE Token linear() const { return {role, 0.0f, 0.0f}; }
    };

    struct Out {
        float sum;  // gradient of the reward, by this particle
        float value, successor;
    };

    DFPO_INLINE GaeGradScan(const Args& a, int64_t b, int64_t q)
        : a_(a),
          b_(b),
          q_(q),
          decay_(a, b),
          grad_advantages_(a.sequences, a.grad_advantages, b, q),
          grad_targets_(a.sequences, a.grad_targets, b, q),
          grad_values_(a.sequences, a.grad_quantiles, b, q),
          grad_successors_(a.sequences, a.grad_next_quantiles, b, q) {}

    DFPO_INLINE Token read(int64_t t, int32_t role, int32_t) const {
        return {role, grad_advantages_.there() ? grad_advantages_.read(t) : 0.0f,
                grad_targets_.there() ? grad_targets_.read(t) : 0.0f};
    }

    DFPO_INLINE void start(float* state) const { state[0] = state[1] = state[2] = 0.0f; }

    DFPO_INLINE Out step(const Token& token, float* state) const {
        state[0] += token.advantage;
        state[1] += token.target;
        if (token.role & kSkip) return {0.0f, token.target, 0.0f};
        const bool blank = token.role & kBlank, stop = token.role & kStop;
        const float delta = state[0] + state[1];
        const float successor = stop ? 0.0f : decay_.gamma * delta;
        const Out out = {blank ? 0.0f : delta, blank ? 0.0f : token.target - delta + state[2],
                         blank ? 0.0f : successor};
        state[0] = stop ? 0.0f : decay_.advantage * state[0];
        state[1] = stop ? 0.0f : decay_.trace * state[1];
        state[2] = a_.explicit_successors ? 0.0f : successor;
        return out;
    }

    DFPO_INLINE void write(int64_t t, const Out& out) const {
        if (grad_values_.there()) grad_values_.write(t, out.value);
        if (grad_successors_.there()) grad_successors_.write(t, out.successor);
    }

    DFPO_INLINE void write_sum(int64_t group, int64_t t, float sum) const {
        write_group_sum(a_.sequences, a_.grad_rewards, b_, group, t, sum);
    }

    DFPO_INLINE void finish(const float* state) const {
        if (a_.grad_bootstrap) a_.grad_bootstrap[b_ * a_.sequences.num_quantiles + q_] = state[2];
    }

  private:
    const Args& a_;
    const int64_t b_, q_;
    const Decay decay_;
    const Column grad_advantages_, grad_targets_, grad_values_, grad_successors_;
};

}  // namespace DFPO_VARIANT

int cuda_device_count() { return device_count(); }

const char* cuda_distributional_gae(const GaeArgs& args, int device, uintptr_t stream) {
    return DFPO_VARIANT::launch_scan<DFPO_VARIANT::GaeScan>(args, device, stream);
}

const char* cuda_distributional_gae_backward(const GaeGradArgs& args, int device,
                                             uintptr_t stream) {
    return DFPO_VARIANT::launch_scan<DFPO_VARIANT::GaeGradScan>(args, device, stream);
}

}  // namespace dfpo
