// Generalised advantage estimation, one thread per particle of a sequence: neighbours in a warp
// read neighbouring particles. The recursion is that of csrc/cpu/distributional_gae.cpp.
#include "kernels.h"
#include "launch.h"

namespace dfpo {
namespace DFPO_VARIANT {

__global__ void distributional_gae_kernel(GaeArgs a) {
    const Sequences& s = a.sequences;
    const int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t b = thread / s.num_quantiles, q = thread % s.num_quantiles;
    if (b >= s.count) return;
    const float decay = a.gamma * a.lam[b];
    const float target_decay = a.target_lam ? a.gamma * a.target_lam[b] : decay;
    const int64_t mask = sequence_start(s, s.mask, b), done = sequence_start(s, s.done, b);
    const int64_t reward = sequence_start(s, a.rewards, b);
    const int64_t value = sequence_start(s, a.quantiles, b) + q;
    const int64_t successor = sequence_start(s, a.next_quantiles, b) + q;
    const int64_t out = sequence_start(s, a.advantages, b) + q;

    float next = 0.0f, advantage = 0.0f, trace = 0.0f;
    if (a.bootstrap.data)
        next = read_element(a.bootstrap.data, a.bootstrap.dtype, b * a.bootstrap.stride + q);
    for (int64_t t = sequence_length(s, b) - 1; t >= 0; t--) {
        const bool unmasked =
            s.mask_mode == MaskMode::none || is_set(s.mask, mask + t * s.mask.token_stride);
        const int role = unmasked ? 0 : masked_role(s.mask_mode);
        float z = 0.0f;
        if (role != kBlank)
            z = read_element(a.quantiles.data, a.quantiles.dtype,
                             value + t * a.quantiles.token_stride);
        if (role != kSkip) {
            const bool stop = s.done.data && is_set(s.done, done + t * s.done.token_stride);
            float delta = -z;
            if (role != kBlank)
                delta += read_element(a.rewards.data, a.rewards.dtype,
                                      reward + t * a.rewards.token_stride);
            if (a.next_quantiles.data)
                next = role == kBlank ? 0.0f
                                      : read_element(a.next_quantiles.data, a.next_quantiles.dtype,
                                                     successor + t * a.next_quantiles.token_stride);
            if (!stop) delta += a.gamma * next;
            advantage = stop ? delta : delta + decay * advantage;
            trace = stop ? delta : delta + target_decay * trace;
            next = z;
        }
        const int64_t at = out + t * a.advantages.token_stride;
        write_element(a.advantages.data, a.advantages.dtype, at, advantage);
        write_element(a.targets.data, a.targets.dtype, at, z + trace);
    }
}

}  // namespace DFPO_VARIANT

int cuda_device_count() { return device_count(); }

const char* cuda_distributional_gae(const GaeArgs& args, int device, uintptr_t stream) {
    return launch(DFPO_VARIANT::distributional_gae_kernel, args,
                  args.sequences.count * args.sequences.num_quantiles, device, stream);
}

}  // namespace dfpo
