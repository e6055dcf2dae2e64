// What the threads of a block know together: maps composed, counts joined, lanes summed.
#pragma once

#include "chunks.h"

namespace dfpo {
namespace DFPO_VARIANT {

// Composes the maps of a block's slots, `lanes` neighbouring threads each, and returns what comes
// before the own slot; total becomes what all slots do. Every thread of the block calls it.
template <typename Map, typename After>
DFPO_DEVICE Map compose_before(const Map& identity, Map map, int slot, int slots, int lanes,
                               const After& after, Map* total) {
    DFPO_SHARED(Map, shared, kThreads);
    const int thread = (int)threadIdx.x;
    for (int distance = 1; distance < slots; distance *= 2) {
        shared[thread] = map;
        __syncthreads();
        if (slot >= distance) map = after(map, shared[thread - distance * lanes]);
        __syncthreads();
    }
    shared[thread] = map;
    __syncthreads();
    *total = shared[(slots - 1) * lanes + thread % lanes];
    map = slot > 0 ? shared[thread - lanes] : identity;
    __syncthreads();
    return map;
}

struct AddCounts {
    DFPO_INLINE int32_t operator()(int32_t later, int32_t earlier) const { return earlier + later; }
};

struct JoinUnmasked {
    DFPO_INLINE Unmasked operator()(const Unmasked& later, const Unmasked& earlier) const {
        return {earlier.count + later.count,
                earlier.first < later.first ? earlier.first : later.first};
    }
};

// Of all threads' numbers.
DFPO_DEVICE Unmasked join_unmasked(const Unmasked& own) {
    Unmasked all;
    compose_before(Unmasked{0, INT32_MAX}, own, (int)threadIdx.x, kThreads, 1, JoinUnmasked(),
                   &all);
    return all;
}

DFPO_DEVICE float warp_sum(float x) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

// Where element i of a chunk lies in shared memory: threads that read their shares meet no
// bank twice.
DFPO_INLINE int padded(int i) { return i + i / kWarp; }
constexpr int padded_size(int elements) { return elements * (kWarp + 1) / kWarp; }

}  // namespace DFPO_VARIANT
}  // namespace dfpo
