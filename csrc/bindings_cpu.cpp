// Python bindings of the CPU kernels.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "binding_args.h"
#include "cpu/kernels.h"
#include "parallel.h"

namespace py = pybind11;

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

const Kernels* kernels = best_variant();

void set_variant(const std::string& name) {
    const Kernels* found = find_variant(name);
    if (!found)
        throw std::invalid_argument("variant: '" + name +
                                    "' is not one of avx512, avx2, portable "
                                    "that this build and this processor support");
    kernels = found;
}

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

void quantile_huber_loss(RowsTuple quantiles, RowsTuple targets, uintptr_t taus, uintptr_t loss,
                         uintptr_t grad_quantiles, uintptr_t grad_targets, int64_t rows, int64_t Q,
                         int64_t P, float kappa, float quantile_weight, int threads) {
    const QuantileHuberArgs args{to_rows(quantiles),
                                 to_rows(targets),
                                 to_floats(taus),
                                 to_floats(loss),
                                 to_floats(grad_quantiles),
                                 to_floats(grad_targets),
                                 Q,
                                 P,
                                 kappa,
                                 quantile_weight};
    const py::gil_scoped_release release;
    for_rows(rows, Q * P / 8, threads,
             [&](int64_t begin, int64_t end) { kernels->quantile_huber_loss(args, begin, end); });
}

// Sequences of one particle share a vector of lanes, so they are cut in whole vectors.
template <typename Body>
void for_sequences(const Sequences& s, int64_t tokens, int threads, const Body& body) {
    constexpr int64_t most_lanes = 16;
    const int64_t vector = s.num_quantiles == 1 ? most_lanes : 1;
    const int64_t vectors = (s.count + vector - 1) / vector;
    const int64_t work = s.count ? tokens * s.num_quantiles / s.count * vector : 0;
    const py::gil_scoped_release release;
    for_rows(vectors, work, threads, [&](int64_t begin, int64_t end) {
        body(begin * vector, end * vector < s.count ? end * vector : s.count);
    });
}

void distributional_gae(const GaeTuple& tuple, int64_t tokens, int threads) {
    const GaeArgs args = to_gae_args(tuple);
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        kernels->distributional_gae(args, begin, end);
    });
}

void distributional_gae_backward(const SequencesTuple& sequences,
                                 const TokensTuple& grad_advantages,
                                 const TokensTuple& grad_targets, uintptr_t lam,
                                 uintptr_t target_lam, float gamma, bool explicit_successors,
                                 const TokensTuple& grad_rewards, const TokensTuple& grad_quantiles,
                                 const TokensTuple& grad_next_quantiles, uintptr_t grad_bootstrap,
                                 int64_t tokens, int threads) {
    const GaeGradArgs args{to_sequences(sequences),   to_tokens(grad_advantages),
                           to_tokens(grad_targets),   to_floats(lam),
                           to_floats(target_lam),     gamma,
                           explicit_successors,       to_tokens(grad_rewards),
                           to_tokens(grad_quantiles), to_tokens(grad_next_quantiles),
                           to_floats(grad_bootstrap)};
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        kernels->distributional_gae_backward(args, begin, end);
    });
}

void lambda_mixture_targets(const SequencesTuple& sequences, const TokensTuple& rewards,
                            const TokensTuple& quantiles, const RowsTuple& bootstrap, uintptr_t lam,
                            uintptr_t rows, int64_t seed, float gamma, const TokensTuple& targets,
                            int64_t tokens, int threads) {
    const MixtureArgs args{
        to_sequences(sequences), to_tokens(rewards),   to_tokens(quantiles), to_rows(bootstrap),
        to_floats(lam),          (const int64_t*)rows, (uint64_t)seed,       gamma,
        to_tokens(targets)};
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        kernels->lambda_mixture_targets(args, begin, end);
    });
}

void lambda_mixture_targets_backward(const SequencesTuple& sequences,
                                     const TokensTuple& grad_targets, uintptr_t lam, uintptr_t rows,
                                     int64_t seed, float gamma, const TokensTuple& grad_rewards,
                                     const TokensTuple& grad_quantiles, uintptr_t grad_bootstrap,
                                     int64_t tokens, int threads) {
    const MixtureGradArgs args{to_sequences(sequences),  to_tokens(grad_targets),
                               to_floats(lam),           (const int64_t*)rows,
                               (uint64_t)seed,           gamma,
                               to_tokens(grad_rewards),  to_tokens(grad_quantiles),
                               to_floats(grad_bootstrap)};
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        kernels->lambda_mixture_targets_backward(args, begin, end);
    });
}

}  // namespace
}  // namespace dfpo

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of dfpo_kernels";
    m.def("variant", [] { return dfpo::kernels->name; });
    m.def("set_variant", &dfpo::set_variant);
    m.def("quantile_huber_loss", &dfpo::quantile_huber_loss);
    m.def("distributional_gae", &dfpo::distributional_gae);
    m.def("distributional_gae_backward", &dfpo::distributional_gae_backward);
    m.def("lambda_mixture_targets", &dfpo::lambda_mixture_targets);
    m.def("lambda_mixture_targets_backward", &dfpo::lambda_mixture_targets_backward);
}
