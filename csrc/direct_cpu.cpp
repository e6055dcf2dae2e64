// The direct calls, one for each op and two backward; direct.h says what they are. Arguments are
// those of the op's public function, after ``apply``, which records a call that needs a gradient.
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "direct.h"
#include "run_cpu.h"

namespace dfpo {
namespace {

using Arguments = PyObject* const*;

constexpr int64_t kMostSteps = 2147483647;

// Runs a call, and turns its exceptions into Python's.
template <PyObject* (*call)(Arguments), Py_ssize_t count>
PyObject* guarded(PyObject*, Arguments arguments, Py_ssize_t given) {
    if (given != count)
        return PyErr_Format(PyExc_TypeError, "takes %zd arguments, got %zd", count, given);
    try {
        return call(arguments);
    } catch (const Raised&) {
        return nullptr;
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

PyObject* none() { Py_RETURN_NONE; }

// A kernel over all rows or tokens, without the GIL.
template <typename... Run>
void run_released(const Run&... arguments) {
    const int threads = num_threads();
    PyThreadState* state = PyEval_SaveThread();
    try {
        run(arguments..., threads);
    } catch (...) {
        PyEval_RestoreThread(state);
        throw;
    }
    PyEval_RestoreThread(state);
}

// The tensor an argument is, cut off from autograd, to be saved; null where it is a number or None.
Ref constant(PyObject* argument) {
    const bool number = PyFloat_CheckExact(argument) || PyLong_CheckExact(argument);
    if (number || argument == Py_None) return nullptr;
    if (needs_gradient({argument})) return detached(argument);
    Py_INCREF(argument);
    return Ref(argument);
}

// Where the gradient of an input goes: a new tensor like it where one is needed.
class Gradient {
  public:
    // Of [R, n] in rows ``stride`` apart; with stride 0 it is summed over rows.
    Gradient(const Tensor& input, PyObject* needed, int64_t stride) : input_(input) {
        rows_ = {nullptr, input.dtype, stride};
        if (needed != Py_True) return;
        tensor_ = empty_like(input);
        rows_.data = floats_of(tensor_);
    }

    // Null where it is summed or not needed.
    Rows rows() const { return rows_.stride ? rows_ : Rows{nullptr, Dtype::f32, 0}; }

    // Rows that a kernel writes whether or not anybody needs them.
    Rows written_rows() {
        if (tensor_) return rows_;
        scratch_.reset(new float[(size_t)input_.numel]);
        return {scratch_.get(), Dtype::f32, rows_.stride};
    }

    void take(const float* sums) {
        for (int64_t i = 0; tensor_ && rows_.stride == 0 && i < input_.numel; i++)
            bindings::write_element(rows_.data, input_.dtype, i, sums[i]);
    }

    PyObject* get() const { return tensor_.get(); }

  private:
    const Tensor& input_;
    Ref tensor_;
    std::unique_ptr<float[]> scratch_;
    Rows rows_;
};

struct FieldGradients {
    Gradient bias, gain, offset, z_weight, time_weight;

    FieldGradients(const Field& field, Arguments needed)
        : bias(field.bias, needed[0], field.width()),
          gain(field.gain, needed[1], field.width()),
          offset(field.offset, needed[2], 1),
          z_weight(field.z_weight, needed[3], 0),
          time_weight(field.time_weight, needed[4], 0) {}

    FieldGradRows rows() {
        return {bias.written_rows(), gain.written_rows(), offset.written_rows()};
    }
};

// The shape [...] with more axes.
std::vector<int64_t> extended(const Tensor& lead, std::initializer_list<int64_t> axes) {
    std::vector<int64_t> shape = shape_of(lead);
    shape.insert(shape.end(), axes);
    return shape;
}

// The tensors that autograd may differentiate by: a field's and others.
Inputs with_field(const Field& field, std::initializer_list<PyObject*> others) {
    Inputs inputs{field.bias.object, field.gain.object, field.offset.object, field.z_weight.object,
                  field.time_weight.object};
    inputs.insert(inputs.end(), others);
    return inputs;
}

// [Q], shared by all rows, or [..., Q].
int64_t particle_stride(const Tensor& base) { return base.ndim == 1 ? 0 : base.last(); }

// apply, field, z, flow_time
PyObject* flow_velocity(Arguments arguments) {
    Reader read;
    const Field field = read.field(arguments[1]);
    const Tensor z = read.floats(arguments[2]);
    read.require(z.extends(field.offset));
    const Time flow_time = read.velocity_time(arguments[3], z, field.offset);
    if (!read.ok) return none();

    Ref velocity = empty_like(z);
    const int64_t Q = z.last();
    const FlowVelocityArgs args{
        field.view(),        z.rows(Q), flow_time.rows(), {floats_of(velocity), z.dtype, Q}, Q,
        flow_time.stride > 1};
    run_released(args, field.rows());
    const Inputs inputs = with_field(field, {z.object, flow_time.tensor.object});
    if (!needs_gradient(inputs)) return velocity.release();

    const Ref number = owned(PyFloat_FromDouble(flow_time.number));
    return record(arguments[0], tuple({velocity.get()}), tuple({}), number, inputs);
}

// (grad_velocity,), (the field's five, z, flow_time or None), its number, which are needed
PyObject* flow_velocity_backward(Arguments arguments) {
    Reader read;
    const Arguments inputs = &PyTuple_GET_ITEM(arguments[1], 0);
    const Arguments needed = &PyTuple_GET_ITEM(arguments[3], 0);
    const Field field = read.field_of(inputs);
    const Tensor grad_velocity = read.floats(PyTuple_GET_ITEM(arguments[0], 0)),
                 z = read.floats(inputs[5]);
    read.require(grad_velocity.extends(field.offset) && grad_velocity.last() == z.last());
    const Time flow_time = read.velocity_time(inputs[6] == Py_None ? arguments[2] : inputs[6],
                                              grad_velocity, field.offset);
    if (!read.ok) return none();

    const int64_t W = field.width(), Q = z.last(), z_stride = z.ndim == grad_velocity.ndim ? Q : 0;
    FieldGradients grads(field, needed);
    Gradient grad_z(z, needed[5], z_stride);
    Gradient grad_time(flow_time.tensor, needed[6], flow_time.stride);
    const FlowVelocityGradArgs args{
        field.view(),        z.rows(z_stride), flow_time.rows(), grad_velocity.rows(Q),
        grads.rows(),        grad_z.rows(),    grad_time.rows(), Q,
        flow_time.stride > 1};
    std::unique_ptr<float[]> sums(new float[(size_t)(2 * W + Q + 2)]);
    run_released(args, field.rows(), sums.get());
    grads.z_weight.take(sums.get());
    grads.time_weight.take(sums.get() + W);
    grad_z.take(sums.get() + 2 * W);
    grad_time.take(sums.get() + 2 * W + Q);
    return tuple({grads.bias.get(), grads.gain.get(), grads.offset.get(), grads.z_weight.get(),
                  grads.time_weight.get(), grad_z.get(), grad_time.get()})
        .release();
}

// apply, field, base, steps, the method's tableau, start, end, trajectory, method
PyObject* integrate_flow(Arguments arguments) {
    Reader read;
    const Field field = read.field(arguments[1]);
    const Tensor base = read.floats(arguments[2]);
    read.require(base.ndim == 1 || base.extends(field.offset));
    const int64_t steps = read.integer(arguments[3], 1, kMostSteps);
    const Tableau* method = read.tableau(arguments[4]);
    const Time start = read.time(arguments[5], field.offset);
    const Time end = read.time(arguments[6], field.offset);
    const bool trajectory = read.boolean(arguments[7]);
    if (!read.ok) return none();

    const int64_t R = field.rows(), Q = base.last(), out_size = trajectory ? (steps + 1) * Q : Q;
    Ref out;
    if (base.extends(field.offset) && !trajectory) {
        out = empty_like(base);
    } else {
        const auto shape =
            trajectory ? extended(field.offset, {steps + 1, Q}) : extended(field.offset, {Q});
        out = empty(shape, dtype_of(base).get());
    }
    const Inputs inputs = with_field(field, {base.object, start.tensor.object, end.tensor.object});
    const bool recorded = needs_gradient(inputs);
    const Ref path = recorded ? empty({R, steps, Q}, torch.float32) : nullptr;
    const IntegrateFlowArgs args{field.view(),
                                 *method,
                                 steps,
                                 Q,
                                 base.rows(particle_stride(base)),
                                 start.rows(),
                                 end.rows(),
                                 {floats_of(out), base.dtype, out_size},
                                 trajectory,
                                 recorded ? floats_of(path) : nullptr};
    run_released(args, R);
    if (!recorded) return out.release();

    const Ref start_number = owned(PyFloat_FromDouble(start.number));
    const Ref end_number = owned(PyFloat_FromDouble(end.number));
    return record(arguments[0], tuple({out.get()}), tuple({path.get()}),
                  tuple({arguments[3], arguments[4], arguments[7], start_number.get(),
                         end_number.get(), arguments[8]}),
                  inputs);
}

// (grad_out,), (the field's five, base, start or None, end or None, path), (steps, tableau,
// trajectory, start's number, end's number, method), which are needed
PyObject* integrate_flow_backward(Arguments arguments) {
    Reader read;
    const Arguments inputs = &PyTuple_GET_ITEM(arguments[1], 0);
    const Arguments options = &PyTuple_GET_ITEM(arguments[2], 0);
    const Arguments needed = &PyTuple_GET_ITEM(arguments[3], 0);
    const Field field = read.field_of(inputs);
    const Tensor grad_out = read.floats(PyTuple_GET_ITEM(arguments[0], 0)),
                 base = read.floats(inputs[5]);
    const Time start = read.time(inputs[6] == Py_None ? options[3] : inputs[6], field.offset);
    const Time end = read.time(inputs[7] == Py_None ? options[4] : inputs[7], field.offset);
    const Tensor path = read.float32s(inputs[8]);
    const int64_t steps = read.integer(options[0], 1, kMostSteps);
    const Tableau* method = read.tableau(options[1]);
    const bool trajectory = read.boolean(options[2]);
    if (!read.ok) return none();

    const int64_t W = field.width(), Q = base.last();
    FieldGradients grads(field, needed);
    Gradient grad_base(base, needed[5], particle_stride(base));
    Gradient grad_start(start.tensor, needed[6], start.stride);
    Gradient grad_end(end.tensor, needed[7], end.stride);
    const IntegrateFlowGradArgs args{field.view(),
                                     *method,
                                     steps,
                                     Q,
                                     start.rows(),
                                     end.rows(),
                                     (const float*)path.data,
                                     grad_out.rows(trajectory ? (steps + 1) * Q : Q),
                                     trajectory,
                                     needed[6] == Py_True || needed[7] == Py_True,
                                     grads.rows(),
                                     grad_base.rows(),
                                     grad_start.rows(),
                                     grad_end.rows()};
    std::unique_ptr<float[]> sums(new float[(size_t)(2 * W + Q + 2)]);
    run_released(args, field.rows(), sums.get());
    grads.z_weight.take(sums.get());
    grads.time_weight.take(sums.get() + W);
    grad_base.take(sums.get() + 2 * W);
    grad_start.take(sums.get() + 2 * W + Q);
    grad_end.take(sums.get() + 2 * W + Q + 1);
    return tuple({grads.bias.get(), grads.gain.get(), grads.offset.get(), grads.z_weight.get(),
                  grads.time_weight.get(), grad_base.get(), grad_start.get(), grad_end.get()})
        .release();
}

// apply, field, base, shortcut or None, steps, the method's tableau, method
PyObject* flow_consistency_loss(Arguments arguments) {
    Reader read;
    const Field field = read.field(arguments[1]);
    const Tensor base = read.floats(arguments[2]);
    const bool itself = arguments[3] == Py_None;
    const Field shortcut = itself ? field : read.field(arguments[3]);
    read.require((base.ndim == 1 || base.extends(field.offset)) &&
                 shortcut.offset.has_shape(field.offset));
    const int64_t steps = read.integer(arguments[4], 1, kMostSteps);
    const Tableau* method = read.tableau(arguments[5]);
    if (!read.ok) return none();

    const int64_t Q = base.last();
    const Inputs inputs = with_field(shortcut, {base.object});
    const bool recorded = needs_gradient(inputs);
    Ref loss = empty(shape_of(field.offset), torch.float32);
    const Ref residual = recorded ? empty(extended(field.offset, {Q}), torch.float32) : nullptr;
    const FlowConsistencyArgs args{field.view(),
                                   shortcut.view(),
                                   *method,
                                   steps,
                                   Q,
                                   base.rows(particle_stride(base)),
                                   floats_of(loss),
                                   recorded ? floats_of(residual) : nullptr};
    run_released(args, field.rows());
    if (!recorded) return loss.release();

    // A field beside the shortcut is a constant.
    Ref fixed[5];
    for (int i = 0; i < 5 && !itself; i++) fixed[i] = constant(PyTuple_GET_ITEM(arguments[1], i));
    return record(arguments[0], tuple({loss.get()}),
                  tuple({residual.get(), fixed[0].get(), fixed[1].get(), fixed[2].get(),
                         fixed[3].get(), fixed[4].get()}),
                  tuple({arguments[4], arguments[6]}), inputs);
}

// apply, quantiles, targets, taus or None, kappa, quantile_reduction
PyObject* quantile_huber_loss(Arguments arguments) {
    Reader read;
    const Tensor quantiles = read.floats(arguments[1]), targets = read.floats(arguments[2]);
    const Tensor taus = arguments[3] == Py_None ? Tensor() : read.float32s(arguments[3]);
    const double kappa = read.number(arguments[4], 0.0, 1e30);
    const bool mean = read.choice(arguments[5], {"mean", "sum"}) == 0;
    const int64_t R = quantiles.without_last(), Q = quantiles.last(), P = targets.last();
    read.require(quantiles.ndim > 0 && targets.rows_as(quantiles) &&
                 (!taus.object || (taus.ndim == 1 && taus.numel == Q)));
    if (!read.ok) return none();

    // The midpoints, as reference.py computes them.
    std::vector<float> levels;
    for (int64_t i = 0; i < Q && !taus.object; i++)
        levels.push_back((float)(((double)i + 0.5) / (double)Q));

    std::vector<int64_t> lead = shape_of(quantiles);
    lead.pop_back();
    Ref loss = empty(lead, torch.float32);
    const Ref by_quantiles =
        needs_gradient({quantiles.object}) ? empty(shape_of(quantiles), torch.float32) : nullptr;
    const Ref by_targets =
        needs_gradient({targets.object}) ? empty(shape_of(targets), torch.float32) : nullptr;
    const QuantileHuberArgs args{quantiles.rows(Q),
                                 targets.rows(P),
                                 taus.object ? (const float*)taus.data : levels.data(),
                                 floats_of(loss),
                                 by_quantiles ? floats_of(by_quantiles) : nullptr,
                                 by_targets ? floats_of(by_targets) : nullptr,
                                 Q,
                                 P,
                                 (float)kappa,
                                 mean ? (float)(1.0 / (double)Q) : 1.0f};
    run_released(args, R);
    if (!by_quantiles && !by_targets) return loss.release();

    const Ref kept_taus = constant(arguments[3]);
    return record(arguments[0], tuple({loss.get()}),
                  tuple({by_quantiles.get(), by_targets.get(), kept_taus.get()}),
                  tuple({arguments[4], arguments[5]}), {quantiles.object, targets.object});
}

// What both scans take, forward and backward.
struct Scan {
    Tensor mask, done;
    Sequences sequences;
    float gamma;

    int64_t tokens() const { return mask.numel; }
    bool holds(const Tensor& bootstrap) const {
        return !bootstrap.object || (bootstrap.ndim == 2 && bootstrap.shape[0] == sequences.count &&
                                     bootstrap.last() == sequences.num_quantiles);
    }
    Tokens per_token(void* data, Dtype dtype) const { return {data, dtype, sequences.length, 1}; }
    Tokens per_particle(void* data, Dtype dtype) const {
        const int64_t Q = sequences.num_quantiles;
        return {data, dtype, Q * sequences.length, Q};
    }
    Tokens per_token(const Tensor& x) const { return per_token(x.data, x.dtype); }
    Tokens per_particle(const Tensor& x) const { return per_particle(x.data, x.dtype); }
};

Scan read_scan(Reader& read, PyObject* mask, PyObject* done, PyObject* gamma, PyObject* mask_mode,
               int64_t num_quantiles) {
    Scan scan{read.tensor(mask), read.maybe_tensor(done), {}, (float)read.number(gamma, 0.0, 1.0)};
    const int mode = read.choice(mask_mode, {"carry", "zero", "none"});
    read.require(scan.mask.ndim == 2 && (!scan.done.object || scan.done.has_shape(scan.mask)));
    if (!read.ok) return scan;

    const int64_t B = scan.mask.shape[0], T = scan.mask.shape[1];
    scan.sequences = {
        B, T, nullptr, num_quantiles, (MaskMode)mode, scan.mask.flags(T), scan.done.flags(T)};
    return scan;
}

// A number for each sequence, [B]: one for all, or those of a float32 tensor; None is an absent
// one.
class Traces {
  public:
    Traces(Reader& read, PyObject* lam, const Scan& scan) {
        const int64_t sequences = scan.sequences.count;
        if (lam == Py_None) return;
        if (PyFloat_CheckExact(lam) || PyLong_CheckExact(lam)) {
            repeated_.assign((size_t)sequences, (float)read.number(lam, 0.0, 1.0));
            data_ = repeated_.data();
        } else {
            const Tensor tensor = read.float32s(lam);
            read.require(tensor.ndim == 1 && tensor.numel == sequences);
            data_ = (const float*)tensor.data;
        }
    }
    const float* data() const { return data_; }

  private:
    std::vector<float> repeated_;
    const float* data_ = nullptr;
};

// Sample ids, int64 [B], or None for 0 .. B - 1.
class SampleIds {
  public:
    SampleIds(Reader& read, PyObject* rows, const Scan& scan) {
        const int64_t sequences = scan.sequences.count;
        if (rows == Py_None) {
            counted_.resize((size_t)sequences);
            std::iota(counted_.begin(), counted_.end(), 0);
            data_ = counted_.data();
        } else {
            const Tensor tensor = read.tensor(rows);
            read.require(tensor.is_int64 && tensor.ndim == 1 && tensor.numel == sequences);
            data_ = (const int64_t*)tensor.data;
        }
    }
    const int64_t* data() const { return data_; }

  private:
    std::vector<int64_t> counted_;
    const int64_t* data_ = nullptr;
};

// A float32 gradient of that shape where it is needed.
Ref gradient(PyObject* needed, const std::vector<int64_t>& shape) {
    return needed == Py_True ? empty(shape, torch.float32) : nullptr;
}

float* floats_or_null(const Ref& tensor) { return tensor ? floats_of(tensor) : nullptr; }

// apply, rewards, quantiles, mask, gamma, lam, target_lam, bootstrap, done, next_quantiles,
// mask_mode
PyObject* distributional_gae(Arguments arguments) {
    Reader read;
    const Tensor rewards = read.floats(arguments[1]), quantiles = read.floats(arguments[2]);
    const Scan scan =
        read_scan(read, arguments[3], arguments[8], arguments[4], arguments[10], quantiles.last());
    const Traces lam(read, arguments[5], scan), target_lam(read, arguments[6], scan);
    const Tensor bootstrap = read.maybe_floats(arguments[7]);
    const Tensor next = read.maybe_floats(arguments[9]);
    read.require(rewards.has_shape(scan.mask) && quantiles.extends(scan.mask) && lam.data());
    read.require(!next.object || (next.has_shape(quantiles) && !bootstrap.object));
    if (!read.ok || !scan.holds(bootstrap)) return none();

    const Inputs inputs{rewards.object, quantiles.object, bootstrap.object, next.object};
    const bool recorded = needs_gradient(inputs);
    // Other gradients than that of the quantiles are written in float32.
    if (recorded && !(rewards.is_float32() && bootstrap.is_float32() && next.is_float32()))
        return none();

    const Ref advantages = empty_like(quantiles), targets = empty_like(quantiles);
    const GaeArgs args{scan.sequences,
                       scan.per_token(rewards),
                       scan.per_particle(quantiles),
                       scan.per_particle(next),
                       bootstrap.rows(quantiles.last()),
                       lam.data(),
                       target_lam.data(),
                       scan.gamma,
                       scan.per_particle(floats_of(advantages), quantiles.dtype),
                       scan.per_particle(floats_of(targets), quantiles.dtype)};
    run_released(args, scan.tokens());
    Ref outputs = tuple({advantages.get(), targets.get()});
    if (!recorded) return outputs.release();

    const Ref size = owned(PyLong_FromLongLong(quantiles.last()));
    const Ref kept_mask = constant(arguments[3]), kept_lam = constant(arguments[5]),
              kept_target_lam = constant(arguments[6]), kept_done = constant(arguments[8]);
    return record(arguments[0], outputs,
                  tuple({kept_mask.get(), kept_lam.get(), kept_target_lam.get(), kept_done.get()}),
                  tuple({arguments[4], kept_lam ? Py_None : arguments[5],
                         kept_target_lam ? Py_None : arguments[6], arguments[10], size.get(),
                         next.object ? Py_True : Py_False}),
                  inputs);
}

// (grad_advantages or None, grad_targets or None), (mask, lam or None, target_lam or None, done or
// None), (gamma, lam's number, target_lam's number, mask_mode, Q, is next_quantiles there), which
// are needed
PyObject* distributional_gae_backward(Arguments arguments) {
    Reader read;
    const Arguments grads = &PyTuple_GET_ITEM(arguments[0], 0);
    const Arguments saved = &PyTuple_GET_ITEM(arguments[1], 0);
    const Arguments options = &PyTuple_GET_ITEM(arguments[2], 0);
    const Arguments needed = &PyTuple_GET_ITEM(arguments[3], 0);
    const Tensor grad_advantages = read.maybe_floats(grads[0]);
    const Tensor grad_targets = read.maybe_floats(grads[1]);
    const Tensor& grad = grad_advantages.object ? grad_advantages : grad_targets;
    const int64_t Q = read.integer(options[4], 1, INT64_MAX);
    const Scan scan = read_scan(read, saved[0], saved[3], options[0], options[3], Q);
    const Traces lam(read, saved[1] == Py_None ? options[1] : saved[1], scan);
    const Traces target_lam(read, saved[2] == Py_None ? options[2] : saved[2], scan);
    if (!read.ok) return none();

    const std::vector<int64_t> full = extended(scan.mask, {Q});
    const Ref rewards = gradient(needed[0], shape_of(scan.mask));
    const Ref quantiles = needed[1] == Py_True ? empty_like(grad) : nullptr;
    const Ref bootstrap = gradient(needed[2], {scan.sequences.count, Q});
    const Ref next = gradient(needed[3], full);
    const GaeGradArgs args{scan.sequences,
                           scan.per_particle(grad_advantages),
                           scan.per_particle(grad_targets),
                           lam.data(),
                           target_lam.data(),
                           scan.gamma,
                           read.boolean(options[5]),
                           scan.per_token(floats_or_null(rewards), Dtype::f32),
                           scan.per_particle(floats_or_null(quantiles), grad.dtype),
                           scan.per_particle(floats_or_null(next), Dtype::f32),
                           floats_or_null(bootstrap)};
    run_released(args, scan.tokens());
    return tuple({rewards.get(), quantiles.get(), bootstrap.get(), next.get()}).release();
}

// apply, rewards, quantiles, mask, gamma, lam, seed, rows, bootstrap, done, mask_mode
PyObject* lambda_mixture_targets(Arguments arguments) {
    Reader read;
    const Tensor rewards = read.floats(arguments[1]), quantiles = read.floats(arguments[2]);
    const Scan scan =
        read_scan(read, arguments[3], arguments[9], arguments[4], arguments[10], quantiles.last());
    const Traces lam(read, arguments[5], scan);
    const int64_t seed = read.integer(arguments[6], 0, INT64_MAX);
    const SampleIds rows(read, arguments[7], scan);
    const Tensor bootstrap = read.maybe_floats(arguments[8]);
    read.require(rewards.has_shape(scan.mask) && quantiles.extends(scan.mask) && lam.data());
    if (!read.ok || !scan.holds(bootstrap)) return none();

    const Inputs inputs{rewards.object, quantiles.object, bootstrap.object};
    const bool recorded = needs_gradient(inputs);
    if (recorded && !(rewards.is_float32() && bootstrap.is_float32())) return none();

    Ref targets = empty_like(quantiles);
    const MixtureArgs args{scan.sequences,
                           scan.per_token(rewards),
                           scan.per_particle(quantiles),
                           bootstrap.rows(quantiles.last()),
                           lam.data(),
                           rows.data(),
                           (uint64_t)seed,
                           scan.gamma,
                           scan.per_particle(floats_of(targets), quantiles.dtype)};
    run_released(args, scan.tokens());
    if (!recorded) return targets.release();

    const Ref kept_mask = constant(arguments[3]), kept_lam = constant(arguments[5]),
              kept_rows = constant(arguments[7]), kept_done = constant(arguments[9]);
    return record(
        arguments[0], tuple({targets.get()}),
        tuple({kept_mask.get(), kept_lam.get(), kept_rows.get(), kept_done.get()}),
        tuple({arguments[4], kept_lam ? Py_None : arguments[5], arguments[6], arguments[10]}),
        inputs);
}

// (grad_targets,), (mask, lam or None, rows or None, done or None), (gamma, lam's number, seed,
// mask_mode), which are needed
PyObject* lambda_mixture_targets_backward(Arguments arguments) {
    Reader read;
    const Arguments saved = &PyTuple_GET_ITEM(arguments[1], 0);
    const Arguments options = &PyTuple_GET_ITEM(arguments[2], 0);
    const Arguments needed = &PyTuple_GET_ITEM(arguments[3], 0);
    const Tensor grad = read.floats(PyTuple_GET_ITEM(arguments[0], 0));
    const int64_t Q = grad.last();
    const Scan scan = read_scan(read, saved[0], saved[3], options[0], options[3], Q);
    const Traces lam(read, saved[1] == Py_None ? options[1] : saved[1], scan);
    const SampleIds rows(read, saved[2], scan);
    const int64_t seed = read.integer(options[2], 0, INT64_MAX);
    if (!read.ok) return none();

    const Ref rewards = gradient(needed[0], shape_of(scan.mask));
    const Ref quantiles = needed[1] == Py_True ? empty_like(grad) : nullptr;
    const Ref bootstrap = gradient(needed[2], {scan.sequences.count, Q});
    const MixtureGradArgs args{scan.sequences,
                               scan.per_particle(grad),
                               lam.data(),
                               rows.data(),
                               (uint64_t)seed,
                               scan.gamma,
                               scan.per_token(floats_or_null(rewards), Dtype::f32),
                               scan.per_particle(floats_or_null(quantiles), grad.dtype),
                               floats_or_null(bootstrap)};
    run_released(args, scan.tokens());
    return tuple({rewards.get(), quantiles.get(), bootstrap.get()}).release();
}

// The fields of Torch in order, the capsule of the exchange API first. False where it is not the
// one of DLPack 1, and no call is direct.
PyObject* connect(Arguments arguments) {
    const auto* exchange =
        (const DlExchange*)PyCapsule_GetPointer(arguments[0], "dlpack_exchange_api");
    if (!exchange) throw Raised();
    if (exchange->major != 1 || !exchange->view) Py_RETURN_FALSE;

    for (int i = 1; i <= 9; i++) Py_INCREF(arguments[i]);
    torch = {exchange,     arguments[1], arguments[2], arguments[3], arguments[4],
             arguments[5], arguments[6], arguments[7], arguments[8], arguments[9]};
    Py_RETURN_TRUE;
}

template <PyObject* (*call)(Arguments), Py_ssize_t count>
PyMethodDef method(const char* name) {
    return {name, (PyCFunction)(void (*)(void))guarded<call, count>, METH_FASTCALL, nullptr};
}

}  // namespace

PyMethodDef* direct_methods() {
    static PyMethodDef methods[] = {
        method<connect, 10>("connect"),
        method<flow_velocity, 4>("direct_flow_velocity"),
        method<flow_velocity_backward, 4>("direct_flow_velocity_backward"),
        method<integrate_flow, 9>("direct_integrate_flow"),
        method<integrate_flow_backward, 4>("direct_integrate_flow_backward"),
        method<flow_consistency_loss, 7>("direct_flow_consistency_loss"),
        method<quantile_huber_loss, 6>("direct_quantile_huber_loss"),
        method<distributional_gae, 11>("direct_distributional_gae"),
        method<distributional_gae_backward, 4>("direct_distributional_gae_backward"),
        method<lambda_mixture_targets, 11>("direct_lambda_mixture_targets"),
        method<lambda_mixture_targets_backward, 4>("direct_lambda_mixture_targets_backward"),
        {nullptr, nullptr, 0, nullptr},
    };
    return methods;
}

}  // namespace dfpo
