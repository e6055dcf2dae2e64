// One kernel launch: on a GPU under nvcc, thread after thread on the CPU under any other compiler,
// so that the same kernel text can be tested where there is no GPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#define __global__
struct Dim {
    unsigned x;
};
inline thread_local Dim blockIdx, blockDim, threadIdx;
#endif

namespace dfpo {

constexpr int kThreadsPerBlock = 128;

// At least `threads` threads on `device` and `stream`; null, or what went wrong.
template <typename Args>
const char* launch(void (*kernel)(Args), const Args& args, int64_t threads, int device,
                   uintptr_t stream) {
    if (threads == 0) return nullptr;
    const int64_t blocks = (threads + kThreadsPerBlock - 1) / kThreadsPerBlock;
#if defined(__CUDACC__)
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) {
        kernel<<<(unsigned)blocks, kThreadsPerBlock, 0, (cudaStream_t)stream>>>(args);
        error = cudaGetLastError();
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
    (void)device, (void)stream;
    blockDim.x = kThreadsPerBlock;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < kThreadsPerBlock; threadIdx.x++) kernel(args);
    return nullptr;
#endif
}

inline int device_count() {
    int count = 0;
#if defined(__CUDACC__)
    // No driver is no device; the error is not left behind for the next launch.
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        count = 0;
    }
#endif
    return count;
}

}  // namespace dfpo
