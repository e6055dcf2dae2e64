// Python bindings of the CPU kernels.
#include <pybind11/pybind11.h>

#include <iterator>
#include <stdexcept>
#include <string>

#include "binding_args.h"
#include "direct.h"
#include "run_cpu.h"

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
    run(args, rows, threads);
}

void flow_velocity(const Tuple& field, const Tuple& z, const Tuple& flow_time,
                   bool time_per_quantile, const Tuple& velocity, int64_t rows, int64_t Q,
                   int threads) {
    const FlowVelocityArgs args{to_field(field),   to_rows(z), to_rows(flow_time),
                                to_rows(velocity), Q,          time_per_quantile};
    const py::gil_scoped_release release;
    run(args, rows, threads);
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
    const py::gil_scoped_release release;
    run(args, rows, to_floats(sums), threads);
}

void integrate_flow(const Tuple& field, const Tuple& method, int64_t steps, const Tuple& base,
                    const Tuple& start, const Tuple& end, const Tuple& out, bool trajectory,
                    uintptr_t path, int64_t rows, int64_t Q, int threads) {
    const IntegrateFlowArgs args{to_field(field), to_tableau(method), steps,        Q,
                                 to_rows(base),   to_rows(start),     to_rows(end), to_rows(out),
                                 trajectory,      to_floats(path)};
    const py::gil_scoped_release release;
    run(args, rows, threads);
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
    const py::gil_scoped_release release;
    run(args, rows, to_floats(sums), threads);
}

void flow_consistency_loss(const Tuple& field, const Tuple& shortcut, const Tuple& method,
                           int64_t steps, const Tuple& base, uintptr_t loss, uintptr_t residual,
                           int64_t rows, int64_t Q, int threads) {
    const FlowConsistencyArgs args{
        to_field(field), to_field(shortcut), to_tableau(method), steps, Q,
        to_rows(base),   to_floats(loss),    to_floats(residual)};
    const py::gil_scoped_release release;
    run(args, rows, threads);
}

void distributional_gae(const Tuple& tuple, int64_t tokens, int threads) {
    const GaeArgs args = to_gae_args(tuple);
    const py::gil_scoped_release release;
    run(args, tokens, threads);
}

void distributional_gae_backward(const Tuple& tuple, int64_t tokens, int threads) {
    const GaeGradArgs args = to_gae_grad_args(tuple);
    const py::gil_scoped_release release;
    run(args, tokens, threads);
}

void lambda_mixture_targets(const Tuple& tuple, int64_t tokens, int threads) {
    const MixtureArgs args = to_mixture_args(tuple);
    const py::gil_scoped_release release;
    run(args, tokens, threads);
}

void lambda_mixture_targets_backward(const Tuple& tuple, int64_t tokens, int threads) {
    const MixtureGradArgs args = to_mixture_grad_args(tuple);
    const py::gil_scoped_release release;
    run(args, tokens, threads);
}

}  // namespace

bool parse_tableau(PyObject* object, Tableau& tableau) {
    try {
        tableau = to_tableau(py::reinterpret_borrow<py::object>(object).cast<Tuple>());
        return true;
    } catch (const std::exception&) {
        return false;
    }
}

}  // namespace dfpo

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of dfpo_kernels";
    if (PyModule_AddFunctions(m.ptr(), dfpo::direct_methods()) != 0) throw py::error_already_set();
    m.def("variant", [] { return dfpo::kernels()->name; });
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
        const int64_t lanes = dfpo::kernels()->lanes(), vectors = (evaluations / lanes + 3) / 4 * 4;
        const volatile float kept = dfpo::kernels()->silu_floor(vectors);
        (void)kept;
        return vectors * lanes;
    });
}
