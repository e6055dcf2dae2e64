// CUDA's thread blocks on a CPU, for tests where there is no GPU: the threads of a block are fibers
// that run in turn, each until it waits at a barrier or a shuffle. One block runs at a time.
//
// DFPO_EMULATION_ORDER says who goes first: 0 ascending, 1 descending, else shuffled with that
// seed. A race shows as a result that depends on it. Shared memory starts out as NaN. A barrier
// that not every thread reaches is an error, and so is a block that waits for a later one. Not
// modelled: what runs at the same time, the memory model, and the speed of anything.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace dfpo {
namespace emulation {

enum class Status { ready, at_barrier, at_shuffle, stuck, done };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    Status status;
    uint32_t given, taken;  // in a shuffle
    int partner;
};

struct Index {
    unsigned x;
};

struct Machine {
    std::vector<Fiber> fibers;
    ucontext_t scheduler;
    std::function<void()> program;
    std::vector<std::pair<void*, size_t>> shared;
    Index block;
    unsigned current;
};

inline Machine machine;

// All threads of a block see the same array; every block finds it filled with NaN.
template <typename T>
T* shared_memory(T* array, size_t bytes) {
    auto& known = machine.shared;
    if (std::find(known.begin(), known.end(), std::make_pair((void*)array, bytes)) == known.end()) {
        known.emplace_back(array, bytes);
        std::memset((void*)array, 0xff, bytes);
    }
    return array;
}

inline void wait(Status status) {
    Fiber& fiber = machine.fibers[machine.current];
    fiber.status = status;
    swapcontext(&fiber.context, &machine.scheduler);
}

inline void run_fiber() {
    machine.program();
    wait(Status::done);
}

// Lanes of a warp have all arrived, or nothing happens yet.
inline void shuffle(size_t first) {
    const size_t last = std::min(first + 32, machine.fibers.size());
    for (size_t i = first; i < last; i++)
        if (machine.fibers[i].status != Status::at_shuffle) return;
    for (size_t i = first; i < last; i++) {
        const size_t from = first + (size_t)machine.fibers[i].partner;
        if (from >= last) throw std::runtime_error("a shuffle reads a lane that is not there");
        machine.fibers[i].taken = machine.fibers[from].given;
    }
    for (size_t i = first; i < last; i++) machine.fibers[i].status = Status::ready;
}

inline void run_block(const std::vector<unsigned>& order) {
    auto& fibers = machine.fibers;
    const auto count = [&](Status status) {
        return std::count_if(fibers.begin(), fibers.end(),
                             [&](const Fiber& fiber) { return fiber.status == status; });
    };
    const auto all = (std::ptrdiff_t)fibers.size();
    while (count(Status::done) < all) {
        for (unsigned i : order)
            if (fibers[i].status == Status::ready) {
                machine.current = i;
                swapcontext(&machine.scheduler, &fibers[i].context);
            }
        for (size_t warp = 0; warp < fibers.size(); warp += 32) shuffle(warp);
        if (count(Status::at_barrier) == all)
            for (Fiber& fiber : fibers) fiber.status = Status::ready;
        if (count(Status::ready) == 0 && count(Status::done) < all)
            throw std::runtime_error(count(Status::stuck)
                                         ? "a block waits for one that has not run"
                                         : "a barrier or a shuffle is not reached by every thread");
    }
}

inline void run(std::function<void()> program, unsigned blocks, unsigned threads) {
    const char* wish = std::getenv("DFPO_EMULATION_ORDER");
    const unsigned seed = wish ? (unsigned)std::atoi(wish) : 0;
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; i++) order[i] = seed == 1 ? threads - 1 - i : i;
    if (seed > 1) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    machine.program = std::move(program);
    machine.fibers.resize(threads);
    for (machine.block.x = 0; machine.block.x < blocks; machine.block.x++) {
        for (const auto& [array, bytes] : machine.shared) std::memset(array, 0xff, bytes);
        for (Fiber& fiber : machine.fibers) {
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, run_fiber, 0);
            fiber.status = Status::ready;
        }
        run_block(order);
    }
}

}  // namespace emulation
}  // namespace dfpo

#define __global__
#define __launch_bounds__(...)
#define threadIdx (dfpo::emulation::Index{dfpo::emulation::machine.current})
#define blockIdx (dfpo::emulation::machine.block)

inline void __syncthreads() { dfpo::emulation::wait(dfpo::emulation::Status::at_barrier); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
    using namespace dfpo::emulation;
    Fiber& fiber = machine.fibers[machine.current];
    std::memcpy(&fiber.given, &value, sizeof value);
    fiber.partner = (int)(machine.current % 32) ^ mask;
    wait(Status::at_shuffle);
    std::memcpy(&value, &fiber.taken, sizeof value);
    return value;
}

inline int __shfl_xor_sync(unsigned lanes, int value, int mask) {
    float bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = __shfl_xor_sync(lanes, bits, mask);
    std::memcpy(&value, &bits, sizeof bits);
    return value;
}
