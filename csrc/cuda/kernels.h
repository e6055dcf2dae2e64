// Launchers of the CUDA kernels. Each returns null or the text of a CUDA error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../scan_args.h"

namespace dfpo {

// A device and one of its streams.
struct Queue {
    int device;
    uintptr_t stream;
};

// Device memory that a scan needs while it runs, and the tokens of all its sequences.
struct ScratchSpace {
    void* data;
    size_t bytes;
    int64_t tokens;
};

struct ScanPlan {
    int64_t blocks;
    size_t scratch_bytes;
};

int cuda_device_count();
ScanPlan cuda_scan_plan(int64_t count, int64_t length, bool packed, int64_t tokens,
                        int64_t num_quantiles);
const char* cuda_distributional_gae(const GaeArgs& args, ScratchSpace scratch, Queue queue);
const char* cuda_distributional_gae_backward(const GaeGradArgs& args, ScratchSpace scratch,
                                             Queue queue);
const char* cuda_lambda_mixture_targets(const MixtureArgs& args, ScratchSpace scratch, Queue queue);
const char* cuda_lambda_mixture_targets_backward(const MixtureGradArgs& args, ScratchSpace scratch,
                                                 Queue queue);

}  // namespace dfpo
