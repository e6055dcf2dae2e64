// One kernel launch, and how its blocks wait for one another: on a GPU under nvcc, on the CPU under
// any other compiler (emulation.h), so that the same kernel text can be tested where there is no
// GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
// An array that the threads of a block share.
#define DFPO_SHARED(type, name, count) __shared__ type name[count]
#define DFPO_DEVICE __device__ __forceinline__
#define DFPO_PRAGMA(words) _Pragma(#words)
#define DFPO_UNROLL(times) DFPO_PRAGMA(unroll times)
#else
#include "emulation.h"
// From the heap, around which AddressSanitizer sees what goes past the end.
#define DFPO_SHARED(type, name, count)                                \
    static const auto name##_array = std::make_unique<type[]>(count); \
    type* name = dfpo::emulation::shared_memory(name##_array.get(), sizeof(type) * (count))
#define DFPO_DEVICE inline
#define DFPO_UNROLL(times)
#endif

namespace dfpo {

// Eight warps: a chunk of a sequence is long against what its block tells the next one, and there
// are enough chunks for every multiprocessor.
constexpr int kThreads = 256;
// Of them on a multiprocessor at least: this leaves a thread 80 registers, and none is spilled.
constexpr int kBlocks = 3;

// --- between blocks -----------------------------------------------------------------------------

// Blocks draw numbers as they start, so that whoever waits for a lower number waits for a block
// that runs or has run, in whatever order the hardware starts them.
DFPO_DEVICE uint32_t draw_ticket(uint32_t* next) {
#if defined(__CUDACC__)
    return atomicAdd(next, 1u);
#else
    return (*next)++;
#endif
}

// Whoever sees the flag sees what the block's threads wrote before their last barrier.
DFPO_DEVICE void raise_flag(uint32_t* flag) {
#if defined(__CUDACC__)
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(1u) : "memory");
#else
    *flag = 1;
#endif
}

DFPO_DEVICE void wait_for_flag(const uint32_t* flag) {
#if defined(__CUDACC__)
    uint32_t seen = 0;
    while (true) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        if (seen) return;
        __nanosleep(32);
    }
#else
    // Blocks run one after the other: a flag that is not raised will never be.
    if (!*flag) emulation::wait(emulation::Status::stuck);
#endif
}

// --- launch -------------------------------------------------------------------------------------

// Zeroes `bytes` bytes; null, or what went wrong.
inline const char* clear(void* data, size_t bytes, Queue queue) {
#if defined(__CUDACC__)
    cudaError_t error = cudaSetDevice(queue.device);
    if (error == cudaSuccess) error = cudaMemsetAsync(data, 0, bytes, (cudaStream_t)queue.stream);
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
    (void)queue;
    std::memset(data, 0, bytes);
    return nullptr;
#endif
}

// `blocks` blocks of kThreads, which an int can count; null, or what went wrong.
template <typename Args>
const char* launch(void (*kernel)(Args), const Args& args, int64_t blocks, Queue queue) {
    if (blocks == 0) return nullptr;
#if defined(__CUDACC__)
    cudaError_t error = cudaSetDevice(queue.device);
    if (error == cudaSuccess) {
        kernel<<<(unsigned)blocks, kThreads, 0, (cudaStream_t)queue.stream>>>(args);
        error = cudaGetLastError();
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
    (void)queue;
    try {
        emulation::run([&] { kernel(args); }, (unsigned)blocks, kThreads);
    } catch (const std::runtime_error& error) {
        static std::string text;
        text = error.what();
        return text.c_str();
    }
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
