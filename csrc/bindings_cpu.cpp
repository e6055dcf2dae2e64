// Python bindings of the CPU kernels.
#include <pybind11/pybind11.h>

#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "binding_args.h"
#include "cpu/kernels.h"
#include "parallel.h"

namespace py = pybind11;

namespace dfpo {
namespace {

// bias [R, W], gain [R, W], offset [R], z_weight [W], time_weight [W], W
FieldRows to_field(const Tuple& t) {
    return {to_rows(item<Tuple>(t, 0)),       to_rows(item<Tuple>(t, 1)),
            to_rows(item<Tuple>(t, 2)),       to_floats(item<uintptr_t>(t, 3)),
            to_floats(item<uintptr_t>(t, 4)), item<int64_t>(t, 5)};
}

// bias [R, W], gain [R, W], offset [R]
FieldGradRows to_field_grad(const Tuple& t) {
    return {to_rows(item<Tuple>(t, 0)), to_rows(item<Tuple>(t, 1)), to_rows(item<Tuple>(t, 2))};
}

// nodes, matrix, weights; see dfpo_kernels/integrate_flow/reference.py
Tableau to_tableau(const Tuple& t) {
    const auto nodes = item<py::sequence>(t, 0), matrix = item<py::sequence>(t, 1),
               weights = item<py::sequence>(t, 2);
    Tableau tableau{};
    if (nodes.size() > std::size(tableau.nodes) || matrix.size() != nodes.size() ||
        weights.size() != nodes.size())
        throw std::invalid_argument("method: must have at most 4 stages, and as many rows");
    tableau.stages = (int)nodes.size();
    for (size_t i = 0; i < nodes.size(); i++) {
        tableau.nodes[i] = nodes[i].cast<float>();
        tableau.weights[i] = weights[i].cast<float>();
        const py::sequence row = matrix[i];
        for (size_t j = 0; j < row.size() && j < i; j++)
            tableau.matrix[i][j] = row[j].cast<float>();
    }
    return tableau;
}

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

void quantile_huber_loss(const Tuple& quantiles, const Tuple& targets, uintptr_t taus,
                         uintptr_t loss, uintptr_t grad_quantiles, uintptr_t grad_targets,
                         int64_t rows, int64_t Q, int64_t P, float kappa, float quantile_weight,
                         int threads) {
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

// Backward kernels also sum over rows. Each chunk has its own sums, in float64, added up in order;
// few enough chunks that the sums stay small beside the rows.
template <typename Body>
void for_rows_summed(int64_t rows, int64_t work_per_row, int64_t W, int64_t Q, uintptr_t sums,
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
        to_floats(sums)[i] = (float)total;
    }
}

// Work is counted in silu evaluations; a vector of quantiles costs the same when part of it is
// used.
int64_t row_work(int64_t Q, int64_t W, int64_t evaluations) {
    return (Q + 15) / 16 * 16 * W * evaluations;
}

void flow_velocity(const Tuple& field, const Tuple& z, const Tuple& flow_time,
                   bool time_per_quantile, const Tuple& velocity, int64_t rows, int64_t Q,
                   int threads) {
    const FlowVelocityArgs args{to_field(field),   to_rows(z), to_rows(flow_time),
                                to_rows(velocity), Q,          time_per_quantile};
    const py::gil_scoped_release release;
    for_rows(rows, row_work(Q, args.field.width, 1), threads,
             [&](int64_t begin, int64_t end) { kernels->flow_velocity(args, begin, end); });
}

// sums: z_weight [W], time_weight [W], z [Q], time [1] and one unused float.
void flow_velocity_backward(const Tuple& field, const Tuple& z, const Tuple& flow_time,
                            bool time_per_quantile, const Tuple& grad_velocity,
                            const Tuple& grad_field, const Tuple& grad_z, const Tuple& grad_time,
                            uintptr_t sums, int64_t rows, int64_t Q, int threads) {
    const FlowVelocityGradArgs args{
        to_field(field),           to_rows(z),      to_rows(flow_time), to_rows(grad_velocity),
        to_field_grad(grad_field), to_rows(grad_z), to_rows(grad_time), Q,
        time_per_quantile};
    const int64_t W = args.field.width;
    const py::gil_scoped_release release;
    for_rows_summed(rows, row_work(Q, W, 1), W, Q, sums, threads,
                    [&](int64_t begin, int64_t end, const SharedGrads& shared) {
                        kernels->flow_velocity_backward(args, begin, end, shared);
                    });
}

void integrate_flow(const Tuple& field, const Tuple& method, int64_t steps, const Tuple& base,
                    const Tuple& start, const Tuple& end, const Tuple& out, bool trajectory,
                    uintptr_t path, int64_t rows, int64_t Q, int threads) {
    const IntegrateFlowArgs args{to_field(field), to_tableau(method), steps,        Q,
                                 to_rows(base),   to_rows(start),     to_rows(end), to_rows(out),
                                 trajectory,      to_floats(path)};
    const int64_t evaluations = steps * args.method.stages;
    const py::gil_scoped_release release;
    for_rows(rows, row_work(Q, args.field.width, evaluations), threads,
             [&](int64_t begin, int64_t end) { kernels->integrate_flow(args, begin, end); });
}

// sums: z_weight [W], time_weight [W], base [Q], start [1], end [1].
void integrate_flow_backward(const Tuple& field, const Tuple& method, int64_t steps,
                             const Tuple& start, const Tuple& end, uintptr_t path,
                             const Tuple& grad_out, bool trajectory, bool time_grad,
                             const Tuple& grad_field, const Tuple& grad_base,
                             const Tuple& grad_start, const Tuple& grad_end, uintptr_t sums,
                             int64_t rows, int64_t Q, int threads) {
    const IntegrateFlowGradArgs args{to_field(field),
                                     to_tableau(method),
                                     steps,
                                     Q,
                                     to_rows(start),
                                     to_rows(end),
                                     to_floats(path),
                                     to_rows(grad_out),
                                     trajectory,
                                     time_grad,
                                     to_field_grad(grad_field),
                                     to_rows(grad_base),
                                     to_rows(grad_start),
                                     to_rows(grad_end)};
    const int64_t W = args.field.width, evaluations = steps * args.method.stages;
    const py::gil_scoped_release release;
    for_rows_summed(rows, row_work(Q, W, evaluations), W, Q, sums, threads,
                    [&](int64_t begin, int64_t end, const SharedGrads& shared) {
                        kernels->integrate_flow_backward(args, begin, end, shared);
                    });
}

void flow_consistency_loss(const Tuple& field, const Tuple& shortcut, const Tuple& method,
                           int64_t steps, const Tuple& base, uintptr_t loss, uintptr_t residual,
                           int64_t rows, int64_t Q, int threads) {
    const FlowConsistencyArgs args{
        to_field(field), to_field(shortcut), to_tableau(method), steps, Q,
        to_rows(base),   to_floats(loss),    to_floats(residual)};
    const int64_t evaluations = steps * args.method.stages + 1;
    const py::gil_scoped_release release;
    for_rows(rows, row_work(Q, args.field.width, evaluations), threads,
             [&](int64_t begin, int64_t end) { kernels->flow_consistency_loss(args, begin, end); });
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

void distributional_gae(const Tuple& tuple, int64_t tokens, int threads) {
    const GaeArgs args = to_gae_args(tuple);
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        kernels->distributional_gae(args, begin, end);
    });
}

void distributional_gae_backward(const Tuple& tuple, int64_t tokens, int threads) {
    const GaeGradArgs args = to_gae_grad_args(tuple);
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        kernels->distributional_gae_backward(args, begin, end);
    });
}

void lambda_mixture_targets(const Tuple& tuple, int64_t tokens, int threads) {
    const MixtureArgs args = to_mixture_args(tuple);
    for_sequences(args.sequences, tokens, threads, [&](int64_t begin, int64_t end) {
        kernels->lambda_mixture_targets(args, begin, end);
    });
}

void lambda_mixture_targets_backward(const Tuple& tuple, int64_t tokens, int threads) {
    const MixtureGradArgs args = to_mixture_grad_args(tuple);
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
    m.def("flow_consistency_loss", &dfpo::flow_consistency_loss);
    m.def("flow_velocity", &dfpo::flow_velocity);
    m.def("flow_velocity_backward", &dfpo::flow_velocity_backward);
    m.def("integrate_flow", &dfpo::integrate_flow);
    m.def("integrate_flow_backward", &dfpo::integrate_flow_backward);
    m.def("distributional_gae", &dfpo::distributional_gae);
    m.def("distributional_gae_backward", &dfpo::distributional_gae_backward);
    m.def("lambda_mixture_targets", &dfpo::lambda_mixture_targets);
    m.def("lambda_mixture_targets_backward", &dfpo::lambda_mixture_targets_backward);
    m.def("quantile_huber_loss", &dfpo::quantile_huber_loss);
    // Evaluates silu at least that many times, on registers; returns how often.
    m.def("silu_floor", [](int64_t evaluations) {
        const int64_t lanes = dfpo::kernels->lanes(), vectors = (evaluations / lanes + 3) / 4 * 4;
        const volatile float kept = dfpo::kernels->silu_floor(vectors);
        (void)kept;
        return vectors * lanes;
    });
}
