// A function inlined into every caller: on the host, and on the device under nvcc.
#pragma once

#if defined(__CUDACC__)
#define DFPO_INLINE __host__ __device__ __forceinline__
#else
#define DFPO_INLINE inline __attribute__((always_inline))
#endif

// The same for a lambda, after its parameters.
#define DFPO_INLINE_LAMBDA __attribute__((always_inline))
