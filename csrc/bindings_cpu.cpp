// Python bindings of the CPU kernels. No torch header: a tensor arrives as
// (data pointer, dtype code, row stride), see dfpo_kernels/_dispatch.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "parallel.h"

namespace py = pybind11;

namespace dfpo {
namespace {

using Tensor = std::tuple<uintptr_t, int, int64_t>;

Rows to_rows(const Tensor& t) {
    return {(void*)std::get<0>(t), (Dtype)std::get<1>(t), std::get<2>(t)};
}

// bias [R, W], gain [R, W], offset [R], z_weight [W], time_weight [W], W
using Field = std::tuple<Tensor, Tensor, Tensor, uintptr_t, uintptr_t, int64_t>;
// bias [R, W], gain [R, W], offset [R]
using FieldGrad = std::tuple<Tensor, Tensor, Tensor>;
// nodes, matrix, weights; see dfpo_kernels/integrate_flow/reference.py
using Method = std::tuple<std::vector<float>, std::vector<std::vector<float>>, std::vector<float>>;

float* to_floats(uintptr_t address) { return (float*)address; }

FieldRows to_field(const Field& f) {
    const auto& [bias, gain, offset, z_weight, time_weight, width] = f;
    return {to_rows(bias),       to_rows(gain),          to_rows(offset),
            to_floats(z_weight), to_floats(time_weight), width};
}

FieldGradRows to_field_grad(const FieldGrad& f) {
    const auto& [bias, gain, offset] = f;
    return {to_rows(bias), to_rows(gain), to_rows(offset)};
}

Tableau to_tableau(const Method& method) {
    const auto& [nodes, matrix, weights] = method;
    Tableau tableau{};
    if (nodes.size() > std::size(tableau.nodes) || matrix.size() != nodes.size() ||
        weights.size() != nodes.size())
        throw std::invalid_argument("method: must have at most 4 stages, and as many rows");
    tableau.stages = (int)nodes.size();
    for (size_t i = 0; i < nodes.size(); i++) {
        tableau.nodes[i] = nodes[i];
        tableau.weights[i] = weights[i];
        for (size_t j = 0; j < matrix[i].size() && j < i; j++) tableau.matrix[i][j] = matrix[i][j];
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

void quantile_huber_loss(Tensor quantiles, Tensor targets, uintptr_t taus, uintptr_t loss,
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

void flow_velocity(const Field& field, Tensor z, Tensor flow_time, bool time_per_quantile,
                   Tensor velocity, int64_t rows, int64_t Q, int threads) {
    const FlowVelocityArgs args{to_field(field),   to_rows(z), to_rows(flow_time),
                                to_rows(velocity), Q,          time_per_quantile};
    const py::gil_scoped_release release;
    for_rows(rows, row_work(Q, args.field.width, 1), threads,
             [&](int64_t begin, int64_t end) { kernels->flow_velocity(args, begin, end); });
}

// sums: z_weight [W], time_weight [W], z [Q], time [1] and one unused float.
void flow_velocity_backward(const Field& field, Tensor z, Tensor flow_time, bool time_per_quantile,
                            Tensor grad_velocity, const FieldGrad& grad_field, Tensor grad_z,
                            Tensor grad_time, uintptr_t sums, int64_t rows, int64_t Q,
                            int threads) {
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

void integrate_flow(const Field& field, const Method& method, int64_t steps, Tensor base,
                    Tensor start, Tensor end, Tensor out, bool trajectory, uintptr_t path,
                    int64_t rows, int64_t Q, int threads) {
    const IntegrateFlowArgs args{to_field(field), to_tableau(method), steps,        Q,
                                 to_rows(base),   to_rows(start),     to_rows(end), to_rows(out),
                                 trajectory,      to_floats(path)};
    const int64_t evaluations = steps * args.method.stages;
    const py::gil_scoped_release release;
    for_rows(rows, row_work(Q, args.field.width, evaluations), threads,
             [&](int64_t begin, int64_t end) { kernels->integrate_flow(args, begin, end); });
}

// sums: z_weight [W], time_weight [W], base [Q], start [1], end [1].
void integrate_flow_backward(const Field& field, const Method& method, int64_t steps, Tensor start,
                             Tensor end, uintptr_t path, Tensor grad_out, bool trajectory,
                             bool time_grad, const FieldGrad& grad_field, Tensor grad_base,
                             Tensor grad_start, Tensor grad_end, uintptr_t sums, int64_t rows,
                             int64_t Q, int threads) {
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

void flow_consistency_loss(const Field& field, const Field& shortcut, const Method& method,
                           int64_t steps, Tensor base, uintptr_t loss, uintptr_t residual,
                           int64_t rows, int64_t Q, int threads) {
    const FlowConsistencyArgs args{
        to_field(field), to_field(shortcut), to_tableau(method), steps, Q,
        to_rows(base),   to_floats(loss),    to_floats(residual)};
    const int64_t evaluations = steps * args.method.stages + 1;
    const py::gil_scoped_release release;
    for_rows(rows, row_work(Q, args.field.width, evaluations), threads,
             [&](int64_t begin, int64_t end) { kernels->flow_consistency_loss(args, begin, end); });
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
    m.def("quantile_huber_loss", &dfpo::quantile_huber_loss);
}
