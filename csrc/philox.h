// Philox4x32-10 (Salmon et al. 2011): four random words as a pure function of a counter and a key.
// dfpo_kernels/philox.py is its plain PyTorch twin.
#pragma once

#include <cstdint>

#include "inline.h"

namespace dfpo {
namespace DFPO_VARIANT {

// One counter at a time. The CPU kernels have the same for a vector of counters.
struct ScalarWords {
    using Word = uint32_t;

    static DFPO_INLINE void multiply(Word x, uint32_t multiplier, Word* high, Word* low) {
        const uint64_t product = (uint64_t)x * multiplier;
        *high = (uint32_t)(product >> 32);
        *low = (uint32_t)product;
    }
};

template <typename Words>
DFPO_INLINE void philox4x32(typename Words::Word x[4], uint64_t seed) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        typename Words::Word high0, low0, high1, low1;
        Words::multiply(x[0], 0xD2511F53u, &high0, &low0);
        Words::multiply(x[2], 0xCD9E8D57u, &high1, &low1);
        x[0] = high1 ^ x[1] ^ key0;
        x[1] = low1;
        x[2] = high0 ^ x[3] ^ key1;
        x[3] = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
