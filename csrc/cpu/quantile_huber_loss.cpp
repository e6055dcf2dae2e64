// Quantile Huber loss with its gradients in one pass, all pairs in registers:
//   u = y_p - q_i,  c = clamp(u, -kappa, kappa),  H(u) = c (u - c / 2) / kappa,  H'(u) = c / kappa.
// Nothing of size [Q, P] is ever stored. The factor 1 / kappa waits for the end of a row.
#include "../simd.h"
#include "kernels.h"
#include "transpose.h"

namespace dfpo {
namespace DFPO_VARIANT {

namespace {

// Below this kappa, 1 / kappa overflows, and H is the pinball |u| to within kappa / 2.
constexpr float kLeastKappa = 1e-30f;

struct Pairs {
    const float* targets;  // [P]
    float* target_sums;    // [P], or null
    int64_t num_targets;
    Vec kappa;
};

// kCount quantiles against all targets: their loss, and for each the sum of its slopes. Several at
// a time, so that a target is loaded once for all of them and sums do not wait for each other.
template <bool kPinball, bool kTargetGrad, int kCount>
DFPO_INLINE Vec add_quantiles(const Pairs& pairs, const float* quantiles, const float* taus,
                              Vec slopes[kCount]) {
    const int64_t P = pairs.num_targets;
    const Vec zero{};
    Vec quantile[kCount], above[kCount], below[kCount], loss[kCount];
    for (int i = 0; i < kCount; i++) {
        quantile[i] = splat(quantiles[i]);
        above[i] = splat(taus[i]);
        below[i] = splat(1.0f - taus[i]);
        loss[i] = slopes[i] = zero;
    }
    for (int64_t p = 0; p < P; p += kLanes) {
        const int n = P - p < kLanes ? (int)(P - p) : kLanes;
        const Vec target = n == kLanes ? load(pairs.targets + p) : load_first(pairs.targets + p, n);
        Vec target_sum{};
        for (int i = 0; i < kCount; i++) {
            Vec u = target - quantile[i];
            // Lanes past the end get u = 0, hence loss and slope 0.
            if (n < kLanes) u = lane_index() < (float)n ? u : zero;
            Vec slope;
            if (kPinball)
                slope = u > zero ? splat(1.0f) : (u < zero ? splat(-1.0f) : u);
            else
                slope = min(pairs.kappa, max(-pairs.kappa, u));
            const Vec weighted = (u < zero ? below[i] : above[i]) * slope;
            loss[i] += weighted * (kPinball ? u : u - 0.5f * slope);
            slopes[i] += weighted;
            if (kTargetGrad) target_sum += weighted;
        }
        if (kTargetGrad) {
            float* sums = pairs.target_sums + p;
            if (n == kLanes)
                store(sums, load(sums) + target_sum);
            else
                store_first(sums, load_first(sums, n) + target_sum, n);
        }
    }
    for (int i = 1; i < kCount; i++) loss[0] += loss[i];
    return loss[0];
}

// out[i] = scale * sum of the lanes of v[i].
DFPO_INLINE void store_four_sums(float* out, Vec v[4], float scale) {
    transpose_groups(v);
    float groups[kLanes];
    store(groups, ((v[0] + v[1]) + (v[2] + v[3])) * scale);
    for (int i = 0; i < 4; i++) {
        float total = groups[i];
        for (int g = 4; g < kLanes; g += 4) total += groups[g + i];
        out[i] = total;
    }
}

template <bool kPinball, bool kTargetGrad>
void rows(const QuantileHuberArgs& a, int64_t row_begin, int64_t row_end) {
    const int64_t Q = a.num_quantiles, P = a.num_targets;
    const float scale = a.quantile_weight / (float)P / (kPinball ? 1.0f : a.kappa);
    float* scratch = new float[Q + 2 * P];
    Pairs pairs{nullptr, scratch + Q + P, P, splat(a.kappa)};

    for (int64_t r = row_begin; r < row_end; r++) {
        const float* q = read_row(a.quantiles, r, Q, scratch);
        pairs.targets = read_row(a.targets, r, P, scratch + Q);
        if (kTargetGrad)
            for (int64_t p = 0; p < P; p++) pairs.target_sums[p] = 0.0f;
        float* grad = a.grad_quantiles ? a.grad_quantiles + r * Q : nullptr;
        Vec loss{};
        int64_t i = 0;
        for (; i + 4 <= Q; i += 4) {
            Vec slopes[4];
            loss += add_quantiles<kPinball, kTargetGrad, 4>(pairs, q + i, a.taus + i, slopes);
            if (grad) store_four_sums(grad + i, slopes, -scale);
        }
        for (; i < Q; i++) {
            Vec slopes[1];
            loss += add_quantiles<kPinball, kTargetGrad, 1>(pairs, q + i, a.taus + i, slopes);
            if (grad) grad[i] = -scale * sum(slopes[0]);
        }
        a.loss[r] = scale * sum(loss);
        if (kTargetGrad)
            for (int64_t p = 0; p < P; p++)
                a.grad_targets[r * P + p] = scale * pairs.target_sums[p];
    }
    delete[] scratch;
}

}  // namespace

void quantile_huber_loss(const QuantileHuberArgs& a, int64_t row_begin, int64_t row_end) {
    const bool pinball = a.kappa < kLeastKappa;
    if (pinball && a.grad_targets)
        rows<true, true>(a, row_begin, row_end);
    else if (pinball)
        rows<true, false>(a, row_begin, row_end);
    else if (a.grad_targets)
        rows<false, true>(a, row_begin, row_end);
    else
        rows<false, false>(a, row_begin, row_end);
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
