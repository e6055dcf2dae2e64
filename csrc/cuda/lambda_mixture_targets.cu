// A random horizon for every particle, and the transposed scan. The recursion is that of
// csrc/cpu/lambda_mixture_targets.cpp, where it stands in full, and so are the random bits.
#include "../philox.h"
#include "kernels.h"
#include "scan.h"

namespace dfpo {
namespace DFPO_VARIANT {

// Whether particle q follows the return at a step: word q % 4 of counter (q / 4, step, row).
template <typename Args>
DFPO_INLINE bool follows_return(const Args& a, int64_t b, int64_t q, int32_t number) {
    const uint64_t row = (uint64_t)a.rows[b];
    uint32_t x[4] = {(uint32_t)q / 4, (uint32_t)number, (uint32_t)row, (uint32_t)(row >> 32)};
    philox4x32<ScalarWords>(x, a.seed);
    const uint32_t word = q % 4 < 2 ? (q % 2 ? x[1] : x[0]) : (q % 2 ? x[3] : x[2]);
    return (float)(word >> 8) * 0x1p-24f < a.lam[b];
}

class MixtureScan {
  public:
    using Args = MixtureArgs;
    static constexpr int kState = 2;  // value and target of the step after
    static constexpr int kInputs = 1, kOutputs = 1;
    static constexpr bool kForth = false, kDraws = true, kSums = false;

    struct Token {
        int32_t role;
        bool follows;
        float reward, value;
    };

    struct Out {
        float y[kOutputs];  // target
        float sum;
    };

    // was there a step, its value; target by target, by value and constant
    struct Map {
        float x[5];
    };

    DFPO_INLINE MixtureScan(const Args& a, int64_t b) : a_(a), b_(b), gamma_(a.gamma) {}

    DFPO_INLINE Column input(int) const { return {a_.sequences, a_.quantiles, b_}; }
    DFPO_INLINE Column output(int) const { return {a_.sequences, a_.targets, b_}; }
    DFPO_INLINE Column rewards() const { return {a_.sequences, a_.rewards, b_}; }
    DFPO_INLINE bool follows(int64_t q, int32_t number) const {
        return follows_return(a_, b_, q, number);
    }

    DFPO_INLINE Token token(int32_t role, float reward, const float* x, bool follows) const {
        return {role, follows, reward, role & (kBlank | kSkip) ? 0.0f : x[0]};
    }

    DFPO_INLINE void start(int64_t q, float* state) const {
        state[0] = state[1] = read_state(a_.bootstrap, b_, q);
    }

    DFPO_INLINE Out step(const Token& token, float* state) const {
        if (!(token.role & kSkip)) {
            const float successor = token.follows ? state[1] : state[0];
            state[1] = token.reward + (token.role & kStop ? 0.0f : gamma_ * successor);
            state[0] = token.value;
        }
        return {{state[1]}, 0.0f};
    }

    DFPO_INLINE Map identity() const { return {{0.0f, 0.0f, 1.0f}}; }

    DFPO_INLINE void add(Map& map, const Token& token) const {
        if (token.role & kSkip) return;
        const bool stop = token.role & kStop, first = map.x[0] == 0.0f;
        float* x = map.x;
        // Before a first step the map is the identity, and its value unknown.
        const float by_value = token.follows ? gamma_ * x[3] : first ? gamma_ : 0.0f;
        const float constant = gamma_ * (token.follows ? x[4] : x[1]);
        x[2] = stop || !token.follows ? 0.0f : gamma_ * x[2];
        x[3] = stop ? 0.0f : by_value;
        x[4] = stop ? token.reward : token.reward + constant;
        x[0] = 1.0f;
        x[1] = token.value;
    }

    DFPO_INLINE Map after(const Map& later, const Map& earlier) const {
        const float *l = later.x, *e = earlier.x;
        if (l[0] == 0.0f) return earlier;
        if (e[0] == 0.0f) return later;
        return {{1.0f, l[1], l[2] * e[2], l[2] * e[3], l[4] + flow(l[2], e[4]) + flow(l[3], e[1])}};
    }

    DFPO_INLINE void apply(const Map& map, float* state) const {
        if (map.x[0] == 0.0f) return;
        state[1] = map.x[4] + flow(map.x[2], state[1]) + flow(map.x[3], state[0]);
        state[0] = map.x[1];
    }

    DFPO_INLINE void write_sum(int64_t, int64_t, float) const {}
    DFPO_INLINE void finish(int64_t, const float*) const {}

  private:
    const Args& a_;
    const int64_t b_;
    const float gamma_;
};

class MixtureGradScan {
  public:
    using Args = MixtureGradArgs;
    // Gradient of what the step before read of the next one: its target or its value.
    static constexpr int kState = 2;
    static constexpr int kInputs = 1, kOutputs = 1;
    static constexpr bool kForth = true, kDraws = true, kSums = true;

    struct Token {
        int32_t role;
        bool follows;
        float target;
    };

    struct Out {
        float y[kOutputs];  // value
        float sum;          // gradient of the reward, by this particle
    };

    // target by target and constant; was there a step; value, after one, by target and constant
    struct Map {
        float x[5];
    };

    DFPO_INLINE MixtureGradScan(const Args& a, int64_t b) : a_(a), b_(b) {}

    DFPO_INLINE Column input(int) const { return {a_.sequences, a_.grad_targets, b_}; }
    DFPO_INLINE Column output(int) const { return {a_.sequences, a_.grad_quantiles, b_}; }
    DFPO_INLINE Column rewards() const { return {a_.sequences, {}, b_}; }
    DFPO_INLINE bool follows(int64_t q, int32_t number) const {
        return follows_return(a_, b_, q, number);
    }

    DFPO_INLINE Token token(int32_t role, float, const float* x, bool follows) const {
        return {role, follows, x[0]};
    }

    DFPO_INLINE void start(int64_t, float* state) const { state[0] = state[1] = 0.0f; }

    DFPO_INLINE Out step(const Token& token, float* state) const {
        state[0] += token.target;
        if (token.role & kSkip) return {{0.0f}, 0.0f};
        const bool blank = token.role & kBlank;
        const Out out = {{blank ? 0.0f : state[1]}, blank ? 0.0f : state[0]};
        const float successor = token.role & kStop ? 0.0f : a_.gamma * state[0];
        state[0] = token.follows ? successor : 0.0f;
        state[1] = token.follows ? 0.0f : successor;
        return out;
    }

    DFPO_INLINE Map identity() const { return {{1.0f}}; }

    DFPO_INLINE void add(Map& map, const Token& token) const {
        float* x = map.x;
        x[1] += token.target;
        if (token.role & kSkip) return;
        const bool stop = token.role & kStop;
        const float by = stop ? 0.0f : a_.gamma * x[0], constant = stop ? 0.0f : a_.gamma * x[1];
        x[0] = token.follows ? by : 0.0f;
        x[1] = token.follows ? constant : 0.0f;
        x[2] = 1.0f;
        x[3] = token.follows ? 0.0f : by;
        x[4] = token.follows ? 0.0f : constant;
    }

    DFPO_INLINE Map after(const Map& later, const Map& earlier) const {
        const float *l = later.x, *e = earlier.x;
        const bool own = l[2] != 0.0f;
        return {{l[0] * e[0], l[1] + flow(l[0], e[1]), own ? 1.0f : e[2], own ? l[3] * e[0] : e[3],
                 own ? l[4] + flow(l[3], e[1]) : e[4]}};
    }

    DFPO_INLINE void apply(const Map& map, float* state) const {
        const float* x = map.x;
        if (x[2] != 0.0f) state[1] = x[4] + flow(x[3], state[0]);
        state[0] = x[1] + flow(x[0], state[0]);
    }

    DFPO_INLINE void write_sum(int64_t group, int64_t t, float sum) const {
        write_group_sum(a_.sequences, a_.grad_rewards, b_, group, t, sum);
    }

    // What the last step read is the bootstrap, as target and as value.
    DFPO_INLINE void finish(int64_t q, const float* state) const {
        if (a_.grad_bootstrap)
            a_.grad_bootstrap[b_ * a_.sequences.num_quantiles + q] = state[0] + state[1];
    }

  private:
    const Args& a_;
    const int64_t b_;
};

}  // namespace DFPO_VARIANT

const char* cuda_lambda_mixture_targets(const MixtureArgs& args, ScratchSpace scratch,
                                        Queue queue) {
    return DFPO_VARIANT::launch_scan<DFPO_VARIANT::MixtureScan>(args, scratch, queue);
}

const char* cuda_lambda_mixture_targets_backward(const MixtureGradArgs& args, ScratchSpace scratch,
                                                 Queue queue) {
    return DFPO_VARIANT::launch_scan<DFPO_VARIANT::MixtureGradScan>(args, scratch, queue);
}

}  // namespace dfpo
