// Distance of the shortcut's one-step displacement from the solver's, one loss per row, with the
// residual kept for the backward pass, which is that of a velocity.
#include "flow_rows.h"

namespace dfpo {
namespace DFPO_VARIANT {

namespace {

// residual = shortcut(base, 0) - (end - base)
struct ResidualRow {
    FieldRow shortcut;       // at flow time 0
    const float* base;       // [Q]
    const float* quantiles;  // [Q], the end
    float* residual;         // [Q]
    int64_t Q;

    template <int N>
    DFPO_INLINE void run(int64_t q) const {
        Vec z[N], end[N], v[N];
        load_group<N>(base, q, Q, z);
        load_group<N>(quantiles, q, Q, end);
        velocity<N>(shortcut, z, v);
        for (int i = 0; i < N; i++) v[i] -= end[i] - z[i];
        store_group<N>(residual, q, Q, v);
    }
};

DFPO_INLINE float mean_square(const float* x, int64_t n) {
    Vec squares{};
    for (int64_t i = 0; i < n; i += kLanes) {
        const Vec v = n - i < kLanes ? load_first(x + i, (int)(n - i)) : load(x + i);
        squares += v * v;
    }
    return sum(squares) / (float)n;
}

}  // namespace

void flow_consistency_loss(const FlowConsistencyArgs& a, int64_t row_begin, int64_t row_end) {
    const int64_t Q = a.num_quantiles;
    const FieldReader field(a.field), shortcut(a.shortcut);
    const Floats folded(a.field.width), shortcut_folded(a.shortcut.width);
    const Floats base_row(Q), quantiles(Q), residual_row(Q);
    for (int64_t r = row_begin; r < row_end; r++) {
        const float* base = read_row(a.base, r, Q, base_row);
        float* residual = a.residual ? a.residual + r * Q : (float*)residual_row;
        for_groups(Q, Integration{{a.method, field.read(r), folded, a.steps, Q, 0.0f, 1.0f},
                                  base,
                                  quantiles,
                                  nullptr,
                                  nullptr});
        for_groups(Q, ResidualRow{shortcut.read(r).at_time(0.0f, shortcut_folded), base, quantiles,
                                  residual, Q});
        a.loss[r] = mean_square(residual, Q);
    }
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
