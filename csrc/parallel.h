// Work is cut into chunks whose number depends on the problem alone, never on the threads, so that
// every sum has one order and results are the same bits for any thread count.
#pragma once

#include <cstdint>

namespace dfpo {

template <typename Body>
void parallel_chunks(int64_t chunks, int threads, const Body& body) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && chunks > 1)
#endif
    for (int64_t chunk = 0; chunk < chunks; chunk++) body(chunk);
}

}  // namespace dfpo
