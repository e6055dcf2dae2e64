// Generalised advantage estimation of every particle, and its transposed scan:
//   delta_t = r_t + gamma z_{t+1} - z_t,   A_t = delta_t + gamma lam A_{t+1},   target = z_t + A_t,
// over the steps of a sequence; scan_args.h says what mask and done make of a token.
#include "kernels.h"
#include "scan.h"

namespace dfpo {
namespace DFPO_VARIANT {

namespace {

template <typename Lanes>
DFPO_INLINE void walk_back(const GaeArgs& a, Lanes& lanes) {
    constexpr int kVecs = Lanes::kVecs;
    const Vec gamma = splat(a.gamma), zero{};
    const Vec decay = gamma * lanes.per_sequence(a.lam);
    const bool own_trace = a.target_lam != nullptr;
    const Vec target_decay = own_trace ? gamma * lanes.per_sequence(a.target_lam) : decay;
    const bool explicit_successors = a.next_quantiles.data != nullptr;
    Vec value[kVecs], advantage[kVecs] = {}, trace[kVecs] = {};
    lanes.read_state(a.bootstrap, value);

    for (int64_t block = 0; block < lanes.blocks(); block++) {
        lanes.seek(block);
        lanes.read_rewards(a.rewards);
        const Tile values = lanes.read(a.quantiles, 0);
        const Tile successors = lanes.read(a.next_quantiles, 1);
        const Tile advantages = lanes.write_to(a.advantages, 2);
        const Tile targets = lanes.write_to(a.targets, 3);
        for (int j = lanes.kBlock - 1; j >= lanes.first; j--)
            at_slot(lanes, j, [&](const auto& role) DFPO_INLINE_LAMBDA {
                const Vec reward = role.blank(zero, lanes.reward(j));
                for (int i = 0; i < kVecs; i++) {
                    const Vec v = role.blank(zero, lanes.get(values, j, i));
                    Vec successor = value[i];
                    if (explicit_successors)
                        successor = role.blank(zero, lanes.get(successors, j, i));
                    const Vec delta = reward + gamma * role.stop(zero, successor) - v;
                    const Vec stepped = delta + decay * role.stop(zero, advantage[i]);
                    advantage[i] = role.skip(advantage[i], stepped);
                    if (own_trace) {
                        const Vec traced = delta + target_decay * role.stop(zero, trace[i]);
                        trace[i] = role.skip(trace[i], traced);
                    }
                    value[i] = role.skip(value[i], v);
                    lanes.put(advantages, j, i, advantage[i]);
                    lanes.put(targets, j, i, v + (own_trace ? trace[i] : advantage[i]));
                }
            });
        lanes.written(a.advantages, advantages);
        lanes.written(a.targets, targets);
    }
}

// The gradient flows forward in time. `into_*` is the gradient of what the steps so far read of
// the next step: its advantage, its trace towards the target and its value.
template <typename Lanes>
DFPO_INLINE void walk_forth(const GaeGradArgs& a, Lanes& lanes) {
    constexpr int kVecs = Lanes::kVecs;
    const Vec gamma = splat(a.gamma), zero{};
    const Vec decay = gamma * lanes.per_sequence(a.lam);
    const Vec target_decay = a.target_lam ? gamma * lanes.per_sequence(a.target_lam) : decay;
    Vec into_advantage[kVecs] = {}, into_trace[kVecs] = {}, into_value[kVecs] = {};

    for (int64_t block = lanes.blocks() - 1; block >= 0; block--) {
        lanes.seek(block);
        const Tile grad_advantages = lanes.read(a.grad_advantages, 0);
        const Tile grad_targets = lanes.read(a.grad_targets, 1);
        const Tile grad_values = lanes.write_to(a.grad_quantiles, 2);
        const Tile grad_successors = lanes.write_to(a.grad_next_quantiles, 3);
        for (int j = lanes.first; j < lanes.kBlock; j++)
            at_slot(lanes, j, [&](const auto& role) DFPO_INLINE_LAMBDA {
                Vec grad_reward[kVecs];
                for (int i = 0; i < kVecs; i++) {
                    const Vec target = grad_targets ? lanes.get(grad_targets, j, i) : zero;
                    Vec advantage = into_advantage[i];
                    if (grad_advantages) advantage += lanes.get(grad_advantages, j, i);
                    const Vec trace = into_trace[i] + target, delta = advantage + trace;
                    const Vec successor = role.stop(zero, gamma * delta);

                    grad_reward[i] = role.skip(zero, role.blank(zero, delta));
                    if (grad_values) {
                        const Vec at_step = role.blank(zero, target - delta + into_value[i]);
                        lanes.put(grad_values, j, i, role.skip(target, at_step));
                    }
                    if (grad_successors)
                        lanes.put(grad_successors, j, i,
                                  role.skip(zero, role.blank(zero, successor)));

                    into_advantage[i] = role.skip(advantage, role.stop(zero, decay * advantage));
                    into_trace[i] = role.skip(trace, role.stop(zero, target_decay * trace));
                    if (!a.explicit_successors) into_value[i] = role.skip(into_value[i], successor);
                }
                lanes.add_reward_grad(j, grad_reward);
            });
        lanes.write_reward_grads(a.grad_rewards);
        lanes.written(a.grad_quantiles, grad_values);
        lanes.written(a.grad_next_quantiles, grad_successors);
    }
    lanes.write_state(a.grad_bootstrap, into_value);
}

}  // namespace

void distributional_gae(const GaeArgs& a, int64_t begin, int64_t end) {
    for_lanes(a.sequences, begin, end, [&](auto& lanes) { walk_back(a, lanes); });
}

void distributional_gae_backward(const GaeGradArgs& a, int64_t begin, int64_t end) {
    for_lanes(a.sequences, begin, end, [&](auto& lanes) { walk_forth(a, lanes); });
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
