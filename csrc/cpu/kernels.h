// What each CPU variant offers: one table of plain functions over a range of rows or sequences.
#pragma once

#include <cstdint>

#include "../rows.h"
#include "../scan_args.h"

namespace dfpo {

struct QuantileHuberArgs {
    Rows quantiles;         // [R, Q]
    Rows targets;           // [R, P]
    const float* taus;      // [Q]
    float* loss;            // [R]
    float* grad_quantiles;  // [R, Q], d loss / d quantiles, or null
    float* grad_targets;    // [R, P], d loss / d targets, or null
    int64_t num_quantiles, num_targets;
    float kappa;
    float quantile_weight;  // 1 / Q for a mean over quantiles, 1 for a sum
};

struct Kernels {
    const char* name;
    void (*quantile_huber_loss)(const QuantileHuberArgs&, int64_t row_begin, int64_t row_end);
    void (*distributional_gae)(const GaeArgs&, int64_t begin, int64_t end);
    void (*distributional_gae_backward)(const GaeGradArgs&, int64_t begin, int64_t end);
    void (*lambda_mixture_targets)(const MixtureArgs&, int64_t begin, int64_t end);
    void (*lambda_mixture_targets_backward)(const MixtureGradArgs&, int64_t begin, int64_t end);
};

// Null where the variant is not part of this build.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

}  // namespace dfpo
