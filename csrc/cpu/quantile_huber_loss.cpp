// Quantile Huber loss with its gradients in one pass, all pairs in registers:
//   u = y_p - q_i,  c = clamp(u, -kappa, kappa),  H(u) = c (u - c / 2) / kappa,  H'(u) = c / kappa.
// Nothing of size [Q, P] is ever stored.
#include "../simd.h"
#include "kernels.h"

namespace dfpo {
namespace DFPO_VARIANT {

namespace {

// c / kappa and the loss H for one vector of differences; kappa = 0 is the pinball |u|.
template <bool kPinball>
DFPO_INLINE Vec huber(Vec u, Vec kappa, Vec inverse_kappa, Vec* slope) {
    if (kPinball) {
        const Vec zero{};
        *slope = u > zero ? splat(1.0f) : (u < zero ? splat(-1.0f) : u);
        return *slope * u;
    }
    const Vec c = min(kappa, max(-kappa, u));
    *slope = c * inverse_kappa;
    return *slope * (u - 0.5f * c);
}

template <bool kPinball>
void rows(const QuantileHuberArgs& a, int64_t row_begin, int64_t row_end) {
    const int64_t Q = a.num_quantiles, P = a.num_targets;
    const Vec kappa = splat(a.kappa), inverse_kappa = splat(kPinball ? 0.0f : 1.0f / a.kappa);
    const Vec zero{};
    const float scale = a.quantile_weight / (float)P;
    float* scratch = new float[Q + 2 * P];
    float* target_sums = scratch + Q + P;

    for (int64_t r = row_begin; r < row_end; r++) {
        const float* q = read_row(a.quantiles, r, Q, scratch);
        const float* y = read_row(a.targets, r, P, scratch + Q);
        for (int64_t p = 0; p < P; p++) target_sums[p] = 0.0f;
        Vec row_loss{};
        for (int64_t i = 0; i < Q; i++) {
            const Vec qi = splat(q[i]), above = splat(a.taus[i]), below = splat(1.0f - a.taus[i]);
            Vec loss_i{}, slope_i{};
            for (int64_t p = 0; p < P; p += kLanes) {
                const int n = P - p < kLanes ? (int)(P - p) : kLanes;
                // Lanes past the end get u = 0, hence loss and slope 0.
                const Vec yp = n == kLanes ? load(y + p) : load_first(y + p, n);
                Vec u = yp - qi;
                if (n < kLanes) u = lane_index() < (float)n ? u : zero;
                Vec slope;
                const Vec loss = huber<kPinball>(u, kappa, inverse_kappa, &slope);
                const Vec weight = u < zero ? below : above;
                slope *= weight;
                loss_i += weight * loss;
                slope_i += slope;
                if (a.grad_targets) {
                    if (n == kLanes)
                        store(target_sums + p, load(target_sums + p) + slope);
                    else
                        store_first(target_sums + p, load_first(target_sums + p, n) + slope, n);
                }
            }
            row_loss += loss_i;
            if (a.grad_quantiles) a.grad_quantiles[r * Q + i] = -scale * sum(slope_i);
        }
        a.loss[r] = scale * sum(row_loss);
        if (a.grad_targets)
            for (int64_t p = 0; p < P; p++) a.grad_targets[r * P + p] = scale * target_sums[p];
    }
    delete[] scratch;
}

}  // namespace

void quantile_huber_loss(const QuantileHuberArgs& a, int64_t row_begin, int64_t row_end) {
    if (a.kappa == 0.0f)
        rows<true>(a, row_begin, row_end);
    else
        rows<false>(a, row_begin, row_end);
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
