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
    static constexpr int kInputs = 2, kOutputs = 2;
    static constexpr bool kForth = false, kDraws = false, kSums = false;

    struct Token {
        int32_t role;
        float reward, value, successor;
    };

    struct Out {
        float y[kOutputs];  // advantage, target
        float sum;
    };

    // After some steps the value is that of the last one. The others are affine in what the first
    // step read of the one after it, w = gamma value + decay * itself, and in nothing else.
    struct Map {
        float x[6];  // was there a step, value, advantage by w and constant, trace likewise
    };

    DFPO_INLINE GaeScan(const Args& a, int64_t b)
        : a_(a), b_(b), decay_(a, b), explicit_(a.next_quantiles.data != nullptr) {}

    DFPO_INLINE Column input(int i) const {
        return {a_.sequences, i == 0 ? a_.quantiles : a_.next_quantiles, b_};
    }
    DFPO_INLINE Column output(int i) const {
        return {a_.sequences, i == 0 ? a_.advantages : a_.targets, b_};
    }
    DFPO_INLINE Column rewards() const { return {a_.sequences, a_.rewards, b_}; }

    // Not even a NaN of a blank token counts. A skipped one's value goes into its target.
    DFPO_INLINE Token token(int32_t role, float reward, const float* x, bool) const {
        const bool blank = role & kBlank;
        return {role, reward, blank ? 0.0f : x[0], blank ? 0.0f : x[1]};
    }

    DFPO_INLINE void start(int64_t q, float* state) const {
        state[0] = read_state(a_.bootstrap, b_, q);
        state[1] = state[2] = 0.0f;
    }

    DFPO_INLINE Out step(const Token& token, float* state) const {
        if (!(token.role & kSkip)) {
            const bool stop = token.role & kStop;
            const float successor = explicit_ ? token.successor : state[0];
            const float delta =
                token.reward - token.value + (stop ? 0.0f : decay_.gamma * successor);
            state[0] = token.value;
            state[1] = delta + (stop ? 0.0f : decay_.advantage * state[1]);
            state[2] = delta + (stop ? 0.0f : decay_.trace * state[2]);
        }
        return {{state[1], token.value + state[2]}, 0.0f};
    }

    DFPO_INLINE Map identity() const { return {}; }

    DFPO_INLINE void add(Map& map, const Token& token) const {
        if (token.role & kSkip) return;
        const bool stop = token.role & kStop;
        const float own = token.reward - token.value +
                          (stop || !explicit_ ? 0.0f : decay_.gamma * token.successor);
        float* x = map.x;
        const bool first = x[0] == 0.0f;
        // Before a first step value and constants are zero.
        const float value = decay_.gamma * x[1];
        x[3] = stop ? own : own + value + decay_.advantage * x[3];
        x[5] = stop ? own : own + value + decay_.trace * x[5];
        x[2] = stop ? 0.0f : first ? 1.0f : decay_.advantage * x[2];
        x[4] = stop ? 0.0f : first ? 1.0f : decay_.trace * x[4];
        x[0] = 1.0f;
        x[1] = explicit_ ? 0.0f : token.value;
    }

    DFPO_INLINE Map after(const Map& later, const Map& earlier) const {
        if (later.x[0] == 0.0f) return earlier;
        if (earlier.x[0] == 0.0f) return later;
        const float value = decay_.gamma * earlier.x[1];
        return {{1.0f, later.x[1], later.x[2] * decay_.advantage * earlier.x[2],
                 later.x[3] + flow(later.x[2], value + decay_.advantage * earlier.x[3]),
                 later.x[4] * decay_.trace * earlier.x[4],
                 later.x[5] + flow(later.x[4], value + decay_.trace * earlier.x[5])}};
    }

    DFPO_INLINE void apply(const Map& map, float* state) const {
        if (map.x[0] == 0.0f) return;
        const float value = explicit_ ? 0.0f : decay_.gamma * state[0];
        state[0] = map.x[1];
        state[1] = map.x[3] + flow(map.x[2], value + decay_.advantage * state[1]);
        state[2] = map.x[5] + flow(map.x[4], value + decay_.trace * state[2]);
    }

    DFPO_INLINE void write_sum(int64_t, int64_t, float) const {}
    DFPO_INLINE void finish(int64_t, const float*) const {}

  private:
    const Args& a_;
    const int64_t b_;
    const Decay decay_;
    const bool explicit_;
};

class GaeGradScan {
  public:
    using Args = GaeGradArgs;
    // Gradient of what the steps so far read of the next one: advantage, trace and value.
    static constexpr int kState = 3;
    static constexpr int kInputs = 2, kOutputs = 2;
    static constexpr bool kForth = true, kDraws = false, kSums = true;

    struct Token {
        int32_t role;
        float advantage, target;
    };

    struct Out {
        float y[kOutputs];  // value, successor
        float sum;          // gradient of the reward, by this particle
    };

    // advantage and trace by themselves and constant; was there a step; value, after one, by
    // advantage, by trace and constant
    struct Map {
        float x[8];
    };

    DFPO_INLINE GaeGradScan(const Args& a, int64_t b) : a_(a), b_(b), decay_(a, b) {}

    DFPO_INLINE Column input(int i) const {
        return {a_.sequences, i == 0 ? a_.grad_advantages : a_.grad_targets, b_};
    }
    DFPO_INLINE Column output(int i) const {
        return {a_.sequences, i == 0 ? a_.grad_quantiles : a_.grad_next_quantiles, b_};
    }
    DFPO_INLINE Column rewards() const { return {a_.sequences, {}, b_}; }

    DFPO_INLINE Token token(int32_t role, float, const float* x, bool) const {
        return {role, x[0], x[1]};
    }

    DFPO_INLINE void start(int64_t, float* state) const { state[0] = state[1] = state[2] = 0.0f; }

    DFPO_INLINE Out step(const Token& token, float* state) const {
        state[0] += token.advantage;
        state[1] += token.target;
        if (token.role & kSkip) return {{token.target, 0.0f}, 0.0f};
        const bool blank = token.role & kBlank, stop = token.role & kStop;
        const float delta = state[0] + state[1];
        const float successor = stop ? 0.0f : decay_.gamma * delta;
        const Out out = {{blank ? 0.0f : token.target - delta + state[2], blank ? 0.0f : successor},
                         blank ? 0.0f : delta};
        state[0] = stop ? 0.0f : decay_.advantage * state[0];
        state[1] = stop ? 0.0f : decay_.trace * state[1];
        state[2] = a_.explicit_successors ? 0.0f : successor;
        return out;
    }

    DFPO_INLINE Map identity() const { return {{1.0f, 0.0f, 1.0f}}; }

    DFPO_INLINE void add(Map& map, const Token& token) const {
        float* x = map.x;
        x[1] += token.advantage;
        x[3] += token.target;
        if (token.role & kSkip) return;
        const bool stop = token.role & kStop, value = !(stop || a_.explicit_successors);
        x[4] = 1.0f;
        x[5] = value ? decay_.gamma * x[0] : 0.0f;
        x[6] = value ? decay_.gamma * x[2] : 0.0f;
        x[7] = value ? decay_.gamma * (x[1] + x[3]) : 0.0f;
        for (int i = 0; i < 4; i++)
            x[i] = stop ? 0.0f : (i < 2 ? decay_.advantage : decay_.trace) * x[i];
    }

    DFPO_INLINE Map after(const Map& later, const Map& earlier) const {
        const float *l = later.x, *e = earlier.x;
        Map map{{l[0] * e[0], l[1] + flow(l[0], e[1]), l[2] * e[2], l[3] + flow(l[2], e[3])}};
        const bool own = l[4] != 0.0f;
        map.x[4] = own ? 1.0f : e[4];
        map.x[5] = own ? l[5] * e[0] : e[5];
        map.x[6] = own ? l[6] * e[2] : e[6];
        map.x[7] = own ? l[7] + flow(l[5], e[1]) + flow(l[6], e[3]) : e[7];
        return map;
    }

    DFPO_INLINE void apply(const Map& map, float* state) const {
        const float* x = map.x;
        if (x[4] != 0.0f) state[2] = x[7] + flow(x[5], state[0]) + flow(x[6], state[1]);
        state[0] = x[1] + flow(x[0], state[0]);
        state[1] = x[3] + flow(x[2], state[1]);
    }

    DFPO_INLINE void write_sum(int64_t group, int64_t t, float sum) const {
        write_group_sum(a_.sequences, a_.grad_rewards, b_, group, t, sum);
    }

    DFPO_INLINE void finish(int64_t q, const float* state) const {
        if (a_.grad_bootstrap) a_.grad_bootstrap[b_ * a_.sequences.num_quantiles + q] = state[2];
    }

  private:
    const Args& a_;
    const int64_t b_;
    const Decay decay_;
};

}  // namespace DFPO_VARIANT

int cuda_device_count() { return device_count(); }

ScanPlan cuda_scan_plan(int64_t count, int64_t length, bool packed, int64_t tokens,
                        int64_t num_quantiles) {
    const auto chunks = DFPO_VARIANT::chunks_of(count, length, packed, tokens, num_quantiles);
    return {chunks.blocks(), DFPO_VARIANT::Scratch::bytes(chunks)};
}

const char* cuda_distributional_gae(const GaeArgs& args, ScratchSpace scratch, Queue queue) {
    return DFPO_VARIANT::launch_scan<DFPO_VARIANT::GaeScan>(args, scratch, queue);
}

const char* cuda_distributional_gae_backward(const GaeGradArgs& args, ScratchSpace scratch,
                                             Queue queue) {
    return DFPO_VARIANT::launch_scan<DFPO_VARIANT::GaeGradScan>(args, scratch, queue);
}

}  // namespace dfpo
