// Quantile Huber loss with its gradients in one pass, all pairs in registers:
//   u = y_p - q_i,  c = clamp(u, -kappa, kappa),  H(u) = c (u - c / 2) / kappa,  H'(u) = c / kappa.
// Nothing of size [Q, P] is ever stored. The factor 1 / kappa waits for the end of a row.
//
// Long rows are sorted instead: the pairs of a quantile then fall into four runs of targets, by
// where u lies against -kappa, 0 and kappa, and each run's loss and slope come from running sums.
#include "../simd.h"
#include "kernels.h"
#include "sorted_row.h"
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
    float kappa;
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
            else if (kTargetGrad)
                slope = min(splat(pairs.kappa), max(splat(-pairs.kappa), u));
            else
                slope = clamp_magnitude(u, pairs.kappa);
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
    // clamp_magnitude, an operation fewer, makes a number of a NaN, which is still in the loss.
    if (!kPinball && !kTargetGrad)
        for (int i = 0; i < kCount; i++) slopes[i] = loss[i] == loss[i] ? slopes[i] : loss[i];
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

// One row: its numbers, and where its loss and gradients go (null where not wanted).
struct Row {
    const float* quantiles;  // [Q]
    const float* targets;    // [P]
    float* loss;
    float* grad_quantiles;  // [Q]
    float* grad_targets;    // [P]
};

template <bool kPinball, bool kTargetGrad>
void add_pairs(const QuantileHuberArgs& a, const Row& row) {
    const int64_t Q = a.num_quantiles, P = a.num_targets;
    const float scale = a.quantile_weight / (float)P / (kPinball ? 1.0f : a.kappa);
    const Pairs pairs{row.targets, row.grad_targets, P, a.kappa};
    if (kTargetGrad)
        for (int64_t p = 0; p < P; p++) pairs.target_sums[p] = 0.0f;
    Vec loss{};
    int64_t i = 0;
    for (; i + 4 <= Q; i += 4) {
        Vec slopes[4];
        loss +=
            add_quantiles<kPinball, kTargetGrad, 4>(pairs, row.quantiles + i, a.taus + i, slopes);
        if (row.grad_quantiles) store_four_sums(row.grad_quantiles + i, slopes, -scale);
    }
    for (; i < Q; i++) {
        Vec slopes[1];
        loss +=
            add_quantiles<kPinball, kTargetGrad, 1>(pairs, row.quantiles + i, a.taus + i, slopes);
        if (row.grad_quantiles) row.grad_quantiles[i] = -scale * sum(slopes[0]);
    }
    *row.loss = scale * sum(loss);
    if (kTargetGrad)
        for (int64_t p = 0; p < P; p++) row.grad_targets[p] *= scale;
}

void add_pairs(const QuantileHuberArgs& a, const Row& row) {
    const bool pinball = a.kappa < kLeastKappa;
    if (pinball && row.grad_targets)
        add_pairs<true, true>(a, row);
    else if (pinball)
        add_pairs<true, false>(a, row);
    else if (row.grad_targets)
        add_pairs<false, true>(a, row);
    else
        add_pairs<false, false>(a, row);
}

// From this many targets on, sorting them is faster than going through all pairs; where targets
// have a gradient, which needs the quantiles sorted too, from twice as many. Ranks are int32.
constexpr int64_t kManyTargets = 512, kMostRanked = 1 << 30;

// Loss and gradients of long rows in O((Q + P) log P). Sums are float64 and of numbers less the
// first target, so that differences of running sums keep what float32 can hold.
class SortedRows {
  public:
    // Without room for a row where it is not going to be used.
    SortedRows(const QuantileHuberArgs& a, bool used)
        : SortedRows(a, used ? a.num_targets : 0, used && a.grad_targets ? a.num_quantiles : 0) {}

    // False where running sums would lose digits, or a number is not finite: then nothing is done.
    bool run(const Row& row) {
        constexpr float kWidestInKappa = 1e7f;
        float least = row.targets[0], most = row.targets[0], finite = 0.0f;
        for (int64_t p = 0; p < a_.num_targets; p++) widen(row.targets[p], least, most, finite);
        for (int64_t i = 0; i < a_.num_quantiles; i++) widen(row.quantiles[i], least, most, finite);
        const float width = most - least;
        // finite is NaN where a number is not.
        if (finite != 0.0f || !(width < 1e30f)) return false;
        if (a_.kappa != 0.0f && !(width < kWidestInKappa * a_.kappa)) return false;
        origin_ = row.targets[0];
        add_quantiles(row);
        if (row.grad_targets) add_targets(row);
        return true;
    }

  private:
    SortedRows(const QuantileHuberArgs& a, int64_t P, int64_t Q)
        : a_(a),
          targets_(P),
          sum_(P + 1),
          square_(P + 1),
          quantiles_(Q),
          tau_(Q + 1),
          quantile_(Q + 1),
          tau_quantile_(Q + 1) {}

    static DFPO_INLINE void widen(float x, float& least, float& most, float& finite) {
        least = x < least ? x : least;
        most = x > most ? x : most;
        finite += x * 0.0f;
    }

    double inverse_kappa() const { return a_.kappa == 0.0f ? 0.0 : 1.0 / a_.kappa; }
    double scale() const { return (double)a_.quantile_weight / (double)a_.num_targets; }

    void add_quantiles(const Row& row) {
        const int64_t P = a_.num_targets;
        targets_.sort(row.targets);
        sum_[0] = square_[0] = 0.0;
        for (int64_t p = 0; p < P; p++) {
            const double y = targets_.value(p) - origin_;
            sum_[p + 1] = sum_[p] + y;
            square_[p + 1] = square_[p] + y * y;
        }
        const double kappa = a_.kappa, inverse = inverse_kappa();
        double loss = 0.0;
        for (int64_t begin = 0; begin < a_.num_quantiles; begin += kLanes) {
            const int n = lanes_from(begin, a_.num_quantiles);
            const Vec quantiles = load_first(row.quantiles + begin, n);
            // Targets [0, far) lie kappa or more below, [far, below) nearer, [below, near) at most
            // kappa above, the others further.
            const IVec far = targets_.less(quantiles - a_.kappa), below = targets_.less(quantiles);
            const IVec near = targets_.no_greater(quantiles + a_.kappa);
            for (int i = 0; i < n; i++) {
                const double q = quantiles[i] - origin_, tau = a_.taus[begin + i];
                const Run low = run(0, far[i], q), under = run(far[i], below[i], q);
                const Run over = run(below[i], near[i], q), high = run(near[i], P, q);
                loss +=
                    (1.0 - tau) * (under.square * inverse / 2 - low.sum - low.count * kappa / 2);
                loss += tau * (over.square * inverse / 2 + high.sum - high.count * kappa / 2);
                if (!row.grad_quantiles) continue;
                const double slope = (1.0 - tau) * (under.sum * inverse - low.count) +
                                     tau * (over.sum * inverse + high.count);
                row.grad_quantiles[begin + i] = (float)(-scale() * slope);
            }
        }
        *row.loss = (float)(scale() * loss);
    }

    // Targets [begin, end): sums of u and u^2 against quantile q.
    struct Run {
        double count, sum, square;
    };
    DFPO_INLINE Run run(int64_t begin, int64_t end, double q) const {
        const double count = (double)(end - begin), sum = sum_[end] - sum_[begin];
        return {count, sum - count * q, square_[end] - square_[begin] - q * (2 * sum - count * q)};
    }

    // The same from the side of a target, which needs no squares but sums weighted by tau.
    void add_targets(const Row& row) {
        const int64_t Q = a_.num_quantiles;
        quantiles_.sort(row.quantiles);
        tau_[0] = quantile_[0] = tau_quantile_[0] = 0.0;
        for (int64_t i = 0; i < Q; i++) {
            const double q = quantiles_.value(i) - origin_, tau = a_.taus[quantiles_.index(i)];
            tau_[i + 1] = tau_[i] + tau;
            quantile_[i + 1] = quantile_[i] + q;
            tau_quantile_[i + 1] = tau_quantile_[i] + tau * q;
        }
        const double inverse = inverse_kappa();
        for (int64_t begin = 0; begin < a_.num_targets; begin += kLanes) {
            const int n = lanes_from(begin, a_.num_targets);
            const Vec targets = load_first(row.targets + begin, n);
            const IVec fars = quantiles_.less(targets - a_.kappa);
            const IVec belows = quantiles_.no_greater(targets);
            const IVec nears = quantiles_.no_greater(targets + a_.kappa);
            for (int i = 0; i < n; i++) {
                const int far = fars[i], below = belows[i], near = nears[i];
                const double y = targets[i] - origin_;
                const double over =
                    y * (tau_[below] - tau_[far]) - (tau_quantile_[below] - tau_quantile_[far]);
                const double all = y * (near - below) - (quantile_[near] - quantile_[below]);
                const double under = all - y * (tau_[near] - tau_[below]) +
                                     (tau_quantile_[near] - tau_quantile_[below]);
                const double slope = tau_[far] + (over + under) * inverse -
                                     ((double)(Q - near) - (tau_[Q] - tau_[near]));
                row.grad_targets[begin + i] = (float)(scale() * slope);
            }
        }
    }

    static DFPO_INLINE int lanes_from(int64_t begin, int64_t end) {
        return end - begin < kLanes ? (int)(end - begin) : kLanes;
    }

    const QuantileHuberArgs& a_;
    double origin_ = 0.0;
    SortedRow targets_;
    const Scratch<double> sum_, square_;  // [P + 1], of the targets in order
    SortedRow quantiles_;
    const Scratch<double> tau_, quantile_, tau_quantile_;  // [Q + 1], of the quantiles in order
};

}  // namespace

void quantile_huber_loss(const QuantileHuberArgs& a, int64_t row_begin, int64_t row_end) {
    const int64_t Q = a.num_quantiles, P = a.num_targets;
    const bool pinball = a.kappa < kLeastKappa;
    const Floats quantiles(Q), targets(P);
    const int64_t shorter = a.grad_targets && Q < P ? Q : P, longer = Q < P ? P : Q;
    const bool many = shorter >= (a.grad_targets ? 2 : 1) * kManyTargets && longer < kMostRanked &&
                      (!pinball || a.kappa == 0.0f);
    SortedRows sorted(a, many);
    for (int64_t r = row_begin; r < row_end; r++) {
        const Row row{read_row(a.quantiles, r, Q, quantiles), read_row(a.targets, r, P, targets),
                      a.loss + r, a.grad_quantiles ? a.grad_quantiles + r * Q : nullptr,
                      a.grad_targets ? a.grad_targets + r * P : nullptr};
        if (!many || !sorted.run(row)) add_pairs(a, row);
    }
}

}  // namespace DFPO_VARIANT
}  // namespace dfpo
