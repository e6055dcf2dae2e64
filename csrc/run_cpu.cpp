#include "run_cpu.h"

#include <stdexcept>
#include <vector>

#include "parallel.h"

namespace dfpo {
namespace {

const Kernels* find_variant(const std::string& name) {
#if defined(DFPO_X86_VARIANTS)
    __builtin_cpu_init();
    if (name == "avx512" && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return avx512_kernels();
    if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return avx2_kernels();
#endif
    return name == "portable" ? portable_kernels() : nullptr;
}

const Kernels* best_variant() {
    for (const char* name : {"avx512", "avx2"})
        if (const Kernels* found = find_variant(name)) return found;
    return portable_kernels();
}

const Kernels* chosen = best_variant();

// Rows per chunk so that a chunk is some ten microseconds of work; see parallel.h.
int64_t rows_per_chunk(int64_t work_per_row) {
    const int64_t rows = 65536 / (work_per_row > 0 ? work_per_row : 1);
    return rows < 1 ? 1 : rows;
}

template <typename Body>
void for_rows(int64_t rows, int64_t work_per_row, int threads, const Body& body) {
    const int64_t size = rows_per_chunk(work_per_row);
    parallel_chunks((rows + size - 1) / size, threads, [&](int64_t chunk) {
        const int64_t begin = chunk * size, end = begin + size < rows ? begin + size : rows;
        body(begin, end);
    });
}

// Backward kernels also sum over rows. Each chunk has its own sums, in float64, added up in order;
// few enough chunks that the sums stay small beside the rows.
template <typename Body>
void for_rows_summed(int64_t rows, int64_t work_per_row, int64_t W, int64_t Q, float* sums,
                     int threads, const Body& body) {
    constexpr int64_t kMostChunks = 256;
    const int64_t least = (rows + kMostChunks - 1) / kMostChunks,
                  wanted = rows_per_chunk(work_per_row);
    const int64_t size = least > wanted ? least : wanted, chunks = (rows + size - 1) / size;
    const int64_t width = 2 * W + Q + 2;
    std::vector<double> partial((size_t)(chunks * width), 0.0);
    parallel_chunks(chunks, threads, [&](int64_t chunk) {
        const int64_t begin = chunk * size, end = begin + size < rows ? begin + size : rows;
        double* own = partial.data() + chunk * width;
        body(begin, end,
             SharedGrads{own, own + W, own + 2 * W, own + 2 * W + Q, own + 2 * W + Q + 1});
    });
    for (int64_t i = 0; i < width; i++) {
        double total = 0.0;
        for (int64_t chunk = 0; chunk < chunks; chunk++) total += partial[chunk * width + i];
        sums[i] = (float)total;
    }
}

// Work is counted in silu evaluations; a vector of quantiles costs the same when part of it is
// used.
int64_t row_work(int64_t Q, int64_t W, int64_t evaluations) {
    return (Q + 15) / 16 * 16 * W * evaluations;
}

// Sequences of one particle share a vector of lanes, so they are cut in whole vectors.
template <typename Body>
void for_sequences(const Sequences& s, int64_t tokens, int threads, const Body& body) {
    constexpr int64_t most_lanes = 16;
    const int64_t vector = s.num_quantiles == 1 ? most_lanes : 1;
    const int64_t vectors = (s.count + vector - 1) / vector;
    const int64_t work = s.count ? tokens * s.num_quantiles / s.count * vector : 0;
    for_rows(vectors, work, threads, [&](int64_t begin, int64_t end) {
        body(begin * vector, end * vector < s.count ? end * vector : s.count);
    });
}

}  // namespace

const Kernels* kernels() { return chosen; }

void set_variant(const std::string& name) {
    const Kernels* found = find_variant(name);
    if (!found)
        throw std::invalid_argument("variant: '" + name +
                                    "' is not one of avx512, avx2, portable "
                                    "that this build and this processor support");
    chosen = found;
}

void run(const QuantileHuberArgs& args, int64_t rows, int threads) {
    for_rows(rows, args.num_quantiles * args.num_targets / 8, threads,
             [&](int64_t begin, int64_t end) { chosen->quantile_huber_loss(args, begin, end); });
}

void run(const FlowVelocityArgs& args, int64_t rows, int threads) {
    for_rows(rows, row_work(args.num_quantiles, args.field.width, 1), threads,
             [&](int64_t begin, int64_t end) { chosen->flow_velocity(args, begin, end); });
}

void run(const IntegrateFlowArgs& args, int64_t rows, int threads) {
    const int64_t evaluations = args.steps * args.method.stages;
    for_rows(rows, row_work(args.num_quantiles, args.field.width, evaluations), threads,
             [&](int64_t begin, int64_t end) { chosen->integrate_flow(args, begin, end); });
}

void run(const FlowConsistencyArgs& args, int64_t rows, int threads) {
    const int64_t evaluations = args.steps * args.method.stages + 1;
    for_rows(rows, row_work(args.num_quantiles, args.field.width, evaluations), threads,
             [&](int64_t begin, int64_t end) { chosen->flow_consistency_loss(args, begin, end); });
}

void run(const FlowVelocityGradArgs& args, int64_t rows, float* sums, int threads) {
    const int64_t W = args.field.width, Q = args.num_quantiles;
    for_rows_summed(rows, row_work(Q, W, 1), W, Q, sums, threads,
                    [&](int64_t begin, int64_t end, const SharedGrads& shared) {
                        chosen->flow_velocity_backward(args, begin, end, shared);
                    });
}

void run(const IntegrateFlowGradArgs& args, int64_t rows, float* sums, int threads) {
    const int64_t W = args.field.width, Q = args.num_quantiles;
    for_rows_summed(rows, row_work(Q, W, args.steps * args.method.stages), W, Q, sums, threads,
                    [&](int64_t begin, int64_t end, const SharedGrads& shared) {
                        chosen->integrate_flow_backward(args, begin, end, shared);
                    });
}

void run(const GaeArgs& args, int64_t tokens, int threads) {
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        chosen->distributional_gae(args, begin, end);
    });
}

void run(const GaeGradArgs& args, int64_t tokens, int threads) {
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        chosen->distributional_gae_backward(args, begin, end);
    });
}

void run(const MixtureArgs& args, int64_t tokens, int threads) {
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        chosen->lambda_mixture_targets(args, begin, end);
    });
}

void run(const MixtureGradArgs& args, int64_t tokens, int threads) {
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        chosen->lambda_mixture_targets_backward(args, begin, end);
    });
}

}  // namespace dfpo
