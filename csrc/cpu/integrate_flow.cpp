// The velocity field and its integral over flow time, forward and backward. The backward pass reads
// the states before each step, recomputes the stages between, and differentiates the discrete
// computation; nothing of size [Q, W] is ever stored.
#include "flow_rows.h"

namespace dfpo {
namespace DFPO_VARIANT {

namespace {

struct VelocityRow {
    FieldRow field;
    const float* z;  // [Q]
    const float* s;  // [Q] or null where the time is folded into the field
    float* out;      // [Q]
    int64_t Q;

    template <int N>
    DFPO_INLINE void run(int64_t q) const {
        Vec zs[N], times[N], v[N];
        load_group<N>(z, q, Q, zs);
        if (s) {
            load_group<N>(s, q, Q, times);
            velocity<N, true>(field, zs, v, times);
        } else {
            velocity<N>(field, zs, v);
        }
        store_group<N>(out, q, Q, v);
    }
};

struct VelocityGradRow {
    FieldRow field;
    const float* z;     // [Q]
    const float* s;     // [Q] or null where the time is folded into the field
    const float* grad;  // [Q]
    float* grad_z;      // [Q]
    float* grad_s;      // [Q] or null
    RowSums& sums;
    int64_t Q;

    template <int N>
    DFPO_INLINE void run(int64_t q) const {
        Vec zs[N], g[N], gz[N];
        load_group<N>(z, q, Q, zs);
        load_group<N>(grad, q, Q, g);
        if (s) {
            Vec times[N], gs[N];
            load_group<N>(s, q, Q, times);
            velocity_gradient<N, true>(field, zs, g, 1.0f, sums, gz, times, gs);
            store_group<N>(grad_s, q, Q, gs);
        } else {
            velocity_gradient<N>(field, zs, g, 0.0f, sums, gz);
        }
        store_group<N>(grad_z, q, Q, gz);
    }
};

struct IntegrationGrad {
    Solver solver;
    const float* path;       // [K, Q]
    const float* grad_end;   // [Q], gradient of the end
    const float* grad_path;  // [K, Q], gradient of the states before each step, or null
    float* grad_base;        // [Q]
    RowSums& sums;
    Vec* grad_span;  // sum of gradient of steps * step size, or null where not wanted

    template <int N>
    DFPO_INLINE void run(int64_t q) const {
        const int64_t Q = solver.num_quantiles;
        const Tableau& method = solver.method;
        const int last = method.stages - 1;
        Vec g[N], z[N], stages[4][N], slopes[4][N], grads[4][N];
        load_group<N>(grad_end, q, Q, g);
        for (int64_t k = solver.steps - 1; k >= 0; k--) {
            load_group<N>(path + k * Q, q, Q, z);
            for (int i = 0; i <= last; i++) {
                solver.advance<N>(method.matrix[i], i, z, slopes, stages[i]);
                // Only the gradient of the step size needs the last slope.
                if (i < last || grad_span)
                    velocity<N>(solver.field_at(solver.fraction(k, i)), stages[i], slopes[i]);
            }
            for (int i = last; i >= 0; i--) {
                // d end / d slope_i = step * (weight_i + sum_j matrix_ji d end / d stage_j)
                Vec slope_grad[N], unscaled[N];
                for (int n = 0; n < N; n++) unscaled[n] = method.weights[i] * g[n];
                for (int j = i + 1; j <= last; j++) {
                    if (method.matrix[j][i] == 0.0f) continue;
                    for (int n = 0; n < N; n++) unscaled[n] += method.matrix[j][i] * grads[j][n];
                }
                for (int n = 0; n < N; n++) {
                    slope_grad[n] = solver.step() * unscaled[n];
                    if (grad_span) *grad_span += unscaled[n] * slopes[i][n];
                }
                const float u = solver.fraction(k, i);
                velocity_gradient<N>(solver.field_at(u), stages[i], slope_grad, u, sums, grads[i]);
            }
            for (int i = 0; i <= last; i++)
                for (int n = 0; n < N; n++) g[n] += grads[i][n];
            if (grad_path) {
                Vec direct[N];
                load_group<N>(grad_path + k * Q, q, Q, direct);
                for (int n = 0; n < N; n++) g[n] += direct[n];
            }
        }
        store_group<N>(grad_base, q, Q, g);
    }
};

// Turns a row's sums into gradients of the field and of the ends of the time span.
class FieldGradWriter {
  public:
    explicit FieldGradWriter(int64_t width) : bias_(width), gain_(width) {}

    struct TimeGrad {
        float start, end;
    };

    DFPO_INLINE TimeGrad write(const FieldRow& f, const RowSums& sums, float start, float span,
                               int64_t r, const FieldGradRows& grads, const SharedGrads& shared) {
        float* bias = row_buffer(grads.bias, r, bias_);
        float* gain = row_buffer(grads.gain, r, gain_);
        TimeGrad time{0.0f, 0.0f};
        for (int64_t w = 0; w < f.width; w++) {
            const float by_bias = f.gain[w] * sum(load(sums.bias + w * kLanes));
            const float by_fraction = f.gain[w] * sum(load(sums.time + w * kLanes));
            gain[w] = sum(load(sums.gain + w * kLanes));
            bias[w] = by_bias;
            shared.z_weight[w] += f.gain[w] * sum(load(sums.z + w * kLanes));
            shared.time_weight[w] += start * by_bias + span * by_fraction;
            time.start += f.time_weight[w] * (by_bias - by_fraction);
            time.end += f.time_weight[w] * by_fraction;
        }
        write_row(grads.bias, r, f.width, bias);
        write_row(grads.gain, r, f.width, gain);
        write_scalar(grads.offset, r, sum(sums.offset));
        return time;
    }

    static DFPO_INLINE void write_scalar(const Rows& x, int64_t r, float value) {
        float scratch;
        float* row = row_buffer(x, r, &scratch);
        *row = value;
        write_row(x, r, 1, row);
    }

  private:
    Floats bias_, gain_;
};

// Where a row's gradient of a tensor that may be one row for all goes: its own row, or the sum.
DFPO_INLINE void finish_shared(const Rows& grad, int64_t r, int64_t n, const float* row,
                               double* sum) {
    if (grad.data)
        write_row(grad, r, n, row);
    else
        for (int64_t i = 0; i < n; i++) sum[i] += row[i];
}

DFPO_INLINE void finish_shared_scalar(const Rows& grad, int64_t r, float value, double* sum) {
    if (grad.data)
        FieldGradWriter::write_scalar(grad, r, value);
    else
        *sum += value;
}

}  // namespace

void flow_velocity(const FlowVelocityArgs& a, int64_t row_begin, int64_t row_end) {
    const int64_t Q = a.num_quantiles, W = a.field.width;
    const FieldReader reader(a.field);
    const Floats folded(W), z(Q), times(Q), out(Q);
    for (int64_t r = row_begin; r < row_end; r++) {
        FieldRow field = reader.read(r);
        const float* s = read_row(a.flow_time, r, a.time_per_quantile ? Q : 1, times);
        if (!a.time_per_quantile) field = field.at_time(*s, folded);
        float* row = row_buffer(a.velocity, r, out);
        for_groups(Q, VelocityRow{field, read_row(a.z, r, Q, z), a.time_per_quantile ? s : nullptr,
                                  row, Q});
        write_row(a.velocity, r, Q, row);
    }
}

void flow_velocity_backward(const FlowVelocityGradArgs& a, int64_t row_begin, int64_t row_end,
                            const SharedGrads& shared) {
    const int64_t Q = a.num_quantiles, W = a.field.width;
    const FieldReader reader(a.field);
    const Floats folded(W), z(Q), times(Q), grad(Q), grad_z(Q), grad_times(Q);
    FieldGradWriter writer(W);
    RowSums sums(W);
    for (int64_t r = row_begin; r < row_end; r++) {
        const FieldRow field = reader.read(r);
        const bool per_quantile = a.time_per_quantile;
        const float* s = read_row(a.flow_time, r, per_quantile ? Q : 1, times);
        float* gz = a.grad_z.data ? row_buffer(a.grad_z, r, grad_z) : grad_z;
        float* gs = a.grad_time.data ? row_buffer(a.grad_time, r, grad_times) : grad_times;
        sums.clear();
        for_groups(Q, VelocityGradRow{per_quantile ? field : field.at_time(*s, folded),
                                      read_row(a.z, r, Q, z), per_quantile ? s : nullptr,
                                      read_row(a.grad_velocity, r, Q, grad), gz, gs, sums, Q});
        // With one time per quantile the time sums hold g d s, as a span of 1 from 0 would.
        const auto time = writer.write(field, sums, per_quantile ? 0.0f : *s,
                                       per_quantile ? 1.0f : 0.0f, r, a.grad_field, shared);
        finish_shared(a.grad_z, r, Q, gz, shared.z);
        if (per_quantile)
            write_row(a.grad_time, r, Q, gs);
        else
            finish_shared_scalar(a.grad_time, r, time.start, shared.start);
    }
}

void integrate_flow(const IntegrateFlowArgs& a, int64_t row_begin, int64_t row_end) {
    const int64_t Q = a.num_quantiles, K = a.steps;
    const int64_t out_size = a.trajectory ? (K + 1) * Q : Q;
    const FieldReader reader(a.field);
    const Floats folded(a.field.width), base(Q), out(out_size);
    for (int64_t r = row_begin; r < row_end; r++) {
        const float start = read_scalar(a.start, r), end = read_scalar(a.end, r);
        float* row = row_buffer(a.out, r, out);
        for_groups(Q, Integration{{a.method, reader.read(r), folded, K, Q, start, end - start},
                                  read_row(a.base, r, Q, base),
                                  a.trajectory ? row + K * Q : row,
                                  a.path ? a.path + r * K * Q : nullptr,
                                  a.trajectory ? row : nullptr});
        write_row(a.out, r, out_size, row);
    }
}

void integrate_flow_backward(const IntegrateFlowGradArgs& a, int64_t row_begin, int64_t row_end,
                             const SharedGrads& shared) {
    const int64_t Q = a.num_quantiles, K = a.steps, W = a.field.width;
    const int64_t out_size = a.trajectory ? (K + 1) * Q : Q;
    const FieldReader reader(a.field);
    const Floats folded(W), grad(out_size), grad_base(Q);
    FieldGradWriter writer(W);
    RowSums sums(W);
    for (int64_t r = row_begin; r < row_end; r++) {
        const float start = read_scalar(a.start, r), end = read_scalar(a.end, r);
        const FieldRow field = reader.read(r);
        const float* g = read_row(a.grad_out, r, out_size, grad);
        float* gb = a.grad_base.data ? row_buffer(a.grad_base, r, grad_base) : grad_base;
        Vec grad_span{};
        sums.clear();
        for_groups(Q, IntegrationGrad{{a.method, field, folded, K, Q, start, end - start},
                                      a.path + r * K * Q,
                                      a.trajectory ? g + K * Q : g,
                                      a.trajectory ? g : nullptr,
                                      gb,
                                      sums,
                                      a.time_grad ? &grad_span : nullptr});
        const auto time = writer.write(field, sums, start, end - start, r, a.grad_field, shared);
        finish_shared(a.grad_base, r, Q, gb, shared.z);
        const float by_step = sum(grad_span) / (float)K;
        finish_shared_scalar(a.grad_start, r, time.start - by_step, shared.start);
        finish_shared_scalar(a.grad_end, r, time.end + by_step, shared.end);
    }
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
