// Row routines of the flow ops: the velocity field on registers, its gradient, and the solver loop.
// Lanes lie along quantiles; up to kGroup vectors of them share each broadcast of a coefficient.
#pragma once

#include "../scratch.h"
#include "../simd.h"
#include "kernels.h"

namespace dfpo {
namespace DFPO_VARIANT {

constexpr int kGroup = 4;
// Terms of one float32 partial sum over the width; longer sums add partial sums.
constexpr int64_t kSumBlock = 256;

// Calls body.run<N>(q) for the fewest vectors that cover [0, Q), N of them from quantile q.
template <typename Body>
DFPO_INLINE void for_groups(int64_t Q, const Body& body) {
    int64_t q = 0;
    for (; Q - q > (kGroup - 1) * kLanes; q += kGroup * kLanes) body.template run<kGroup>(q);
    const int64_t left = Q - q;
    if (left > 2 * kLanes)
        body.template run<3>(q);
    else if (left > kLanes)
        body.template run<2>(q);
    else if (left > 0)
        body.template run<1>(q);
}

// N vectors from p[q]; lanes past Q are 0.
template <int N>
DFPO_INLINE void load_group(const float* p, int64_t q, int64_t Q, Vec* v) {
    const bool full = q + N * kLanes <= Q;
    for (int i = 0; i < N - 1; i++) v[i] = load(p + q + i * kLanes);
    const float* last = p + q + (N - 1) * kLanes;
    v[N - 1] = full ? load(last) : load_first(last, (int)(Q - q) - (N - 1) * kLanes);
}

template <int N>
DFPO_INLINE void store_group(float* p, int64_t q, int64_t Q, const Vec* v) {
    const bool full = q + N * kLanes <= Q;
    for (int i = 0; i < N - 1; i++) store(p + q + i * kLanes, v[i]);
    float* last = p + q + (N - 1) * kLanes;
    if (full)
        store(last, v[N - 1]);
    else
        store_first(last, v[N - 1], (int)(Q - q) - (N - 1) * kLanes);
}

// The field of one token.
struct FieldRow {
    const float* bias;         // [W]
    const float* gain;         // [W]
    const float* z_weight;     // [W]
    const float* time_weight;  // [W]
    float offset;
    int64_t width;

    // The same field with a flow time folded into its bias, which is kept in folded [W].
    DFPO_INLINE FieldRow at_time(float s, float* folded) const {
        for (int64_t w = 0; w < width; w++) folded[w] = bias[w] + time_weight[w] * s;
        FieldRow field = *this;
        field.bias = folded;
        return field;
    }
};

class FieldReader {
  public:
    explicit FieldReader(const FieldRows& rows)
        : rows_(rows), bias_(rows.width), gain_(rows.width) {}

    DFPO_INLINE FieldRow read(int64_t r) const {
        float offset;
        return {read_row(rows_.bias, r, rows_.width, bias_),
                read_row(rows_.gain, r, rows_.width, gain_),
                rows_.z_weight,
                rows_.time_weight,
                *read_row(rows_.offset, r, 1, &offset),
                rows_.width};
    }

  private:
    FieldRows rows_;
    Floats bias_, gain_;
};

DFPO_INLINE float read_scalar(const Rows& x, int64_t r) {
    float scratch;
    return *read_row(x, r, 1, &scratch);
}

// v = offset + sum_w gain_w silu(bias_w + z_weight_w z [+ time_weight_w s, one s per quantile]).
template <int N, bool kTimePerQuantile = false>
DFPO_INLINE void velocity(const FieldRow& f, const Vec* z, Vec* v, const Vec* s = nullptr) {
    for (int i = 0; i < N; i++) v[i] = splat(f.offset);
    for (int64_t begin = 0; begin < f.width; begin += kSumBlock) {
        const int64_t end = begin + kSumBlock < f.width ? begin + kSumBlock : f.width;
        Vec part[N] = {};
        for (int64_t w = begin; w < end; w++) {
            const Vec bias = splat(f.bias[w]), gain = splat(f.gain[w]);
            const Vec z_weight = splat(f.z_weight[w]);
#pragma GCC unroll 4
            for (int i = 0; i < N; i++) {
                Vec x = z[i] * z_weight + bias;
                if (kTimePerQuantile) x = s[i] * f.time_weight[w] + x;
                part[i] += gain * x * sigmoid(x);
            }
        }
        for (int i = 0; i < N; i++) v[i] += part[i];
    }
}

// Lane-wise sums of a row's gradient over quantiles, stages and steps, reduced across lanes once
// per row. With g the gradient of a velocity and d = silu'(x) at that velocity:
class RowSums {
  public:
    explicit RowSums(int64_t width)
        : width(width),
          gain(width * kLanes),
          bias(width * kLanes),
          z(width * kLanes),
          time(width * kLanes) {}

    DFPO_INLINE void clear() {
        const Vec zero{};
        for (int64_t i = 0; i < width * kLanes; i += kLanes) {
            store(gain + i, zero);
            store(bias + i, zero);
            store(z + i, zero);
            store(time + i, zero);
        }
        offset = zero;
    }

    const int64_t width;
    Floats gain;  // [W, lanes], sum of g silu(x)
    Floats bias;  // [W, lanes], sum of g d
    Floats z;     // [W, lanes], sum of g d z
    Floats time;  // [W, lanes], sum of g d u, with u the time or the fraction of a time span
    Vec offset;   // sum of g
};

// Adds to sums and sets grad_z = g d velocity / dz; with one time per quantile, adds to grad_s.
// u multiplies the time sum where the time is one for all quantiles.
template <int N, bool kTimePerQuantile = false>
DFPO_INLINE void velocity_gradient(const FieldRow& f, const Vec* z, const Vec* g, float u,
                                   RowSums& sums, Vec* grad_z, const Vec* s = nullptr,
                                   Vec* grad_s = nullptr) {
    for (int i = 0; i < N; i++) {
        grad_z[i] = Vec{};
        if (kTimePerQuantile) grad_s[i] = Vec{};
        sums.offset += g[i];
    }
    for (int64_t w = 0; w < f.width; w++) {
        const Vec bias = splat(f.bias[w]), z_weight = splat(f.z_weight[w]);
        const Vec slope_z = z_weight * f.gain[w];
        const Vec time_weight = splat(f.time_weight[w]), slope_s = time_weight * f.gain[w];
        Vec sum_gain = load(sums.gain + w * kLanes), sum_z = load(sums.z + w * kLanes);
        Vec sum_time = load(sums.time + w * kLanes), sum_bias{};
#pragma GCC unroll 4
        for (int i = 0; i < N; i++) {
            Vec x = z[i] * z_weight + bias;
            if (kTimePerQuantile) x = s[i] * time_weight + x;
            const Vec sigma = sigmoid(x), silu = x * sigma;
            const Vec d = (1.0f - sigma) * silu + sigma;
            const Vec gd = g[i] * d;
            sum_gain += g[i] * silu;
            sum_bias += gd;
            sum_z += gd * z[i];
            grad_z[i] += slope_z * gd;
            if (kTimePerQuantile) {
                sum_time += gd * s[i];
                grad_s[i] += slope_s * gd;
            }
        }
        if (!kTimePerQuantile) sum_time += sum_bias * u;
        store(sums.gain + w * kLanes, sum_gain);
        store(sums.bias + w * kLanes, load(sums.bias + w * kLanes) + sum_bias);
        store(sums.z + w * kLanes, sum_z);
        store(sums.time + w * kLanes, sum_time);
    }
}

// The solver on one row: time at step k, stage i is start + span * fraction(k, i).
struct Solver {
    const Tableau& method;
    FieldRow field;
    float* folded;  // [W], scratch for FieldRow::at_time
    int64_t steps, num_quantiles;
    float start, span;

    DFPO_INLINE float step() const { return span / (float)steps; }
    DFPO_INLINE float fraction(int64_t k, int stage) const {
        return ((float)k + method.nodes[stage]) / (float)steps;
    }
    DFPO_INLINE FieldRow field_at(float fraction) const {
        return field.at_time(start + span * fraction, folded);
    }

    // z + step * sum_j coefficients[j] slopes[j]; a zero coefficient leaves its slope unread.
    template <int N>
    DFPO_INLINE void advance(const float* coefficients, int count, const Vec* z,
                             const Vec (*slopes)[N], Vec* out) const {
        for (int i = 0; i < N; i++) out[i] = z[i];
        for (int j = 0; j < count; j++) {
            if (coefficients[j] == 0.0f) continue;
            for (int i = 0; i < N; i++) out[i] += step() * coefficients[j] * slopes[j][i];
        }
    }
};

// z at the end of the flow for one row, with the states before each step if wanted.
struct Integration {
    Solver solver;
    const float* base;  // [Q]
    float* quantiles;   // [Q], the end
    float* path;        // [K, Q], states before each step, or null
    float* trajectory;  // [K, Q], the same where the caller asked for them, or null

    template <int N>
    DFPO_INLINE void run(int64_t q) const {
        const int64_t Q = solver.num_quantiles;
        const Tableau& method = solver.method;
        Vec z[N], stage[N], slopes[4][N];
        load_group<N>(base, q, Q, z);
        for (int64_t k = 0; k < solver.steps; k++) {
            if (path) store_group<N>(path + k * Q, q, Q, z);
            if (trajectory) store_group<N>(trajectory + k * Q, q, Q, z);
            for (int i = 0; i < method.stages; i++) {
                solver.advance<N>(method.matrix[i], i, z, slopes, stage);
                velocity<N>(solver.field_at(solver.fraction(k, i)), stage, slopes[i]);
            }
            solver.advance<N>(method.weights, method.stages, z, slopes, z);
        }
        store_group<N>(quantiles, q, Q, z);
    }
};

}  // namespace DFPO_VARIANT
}  // namespace dfpo
