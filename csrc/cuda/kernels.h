// Launchers of the CUDA kernels. Each returns null or the text of a CUDA error.
#pragma once

#include <cstdint>

#include "../scan_args.h"

namespace dfpo {

int cuda_device_count();
const char* cuda_distributional_gae(const GaeArgs& args, int device, uintptr_t stream);
const char* cuda_distributional_gae_backward(const GaeGradArgs& args, int device, uintptr_t stream);
const char* cuda_lambda_mixture_targets(const MixtureArgs& args, int device, uintptr_t stream);
const char* cuda_lambda_mixture_targets_backward(const MixtureGradArgs& args, int device,
                                                 uintptr_t stream);

}  // namespace dfpo
