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

struct FieldRows {
    Rows bias;                 // [R, W]
    Rows gain;                 // [R, W]
    Rows offset;               // [R, 1]
    const float* z_weight;     // [W]
    const float* time_weight;  // [W]
    int64_t width;
};

// Gradients that stay in their row.
struct FieldGradRows {
    Rows bias;    // [R, W]
    Rows gain;    // [R, W]
    Rows offset;  // [R, 1]
};

// Gradients of what the rows share, summed over a range of rows: [W], [W], [Q], [1], [1].
struct SharedGrads {
    double* z_weight;
    double* time_weight;
    double* z;      // also of an integral's base
    double* start;  // also of a velocity's flow time
    double* end;
};

// Explicit Runge-Kutta method. Slope i is the velocity at z + step * sum_j matrix[i][j] slope j,
// time nodes[i]; the step adds step * sum_i weights[i] slope i.
struct Tableau {
    int stages;
    float nodes[4];
    float matrix[4][4];
    float weights[4];
};

struct FlowVelocityArgs {
    FieldRows field;
    Rows z;          // [R, Q], or one row for all
    Rows flow_time;  // [R, Q] or [R, 1], or one row for all
    Rows velocity;   // [R, Q]
    int64_t num_quantiles;
    bool time_per_quantile;
};

struct FlowVelocityGradArgs {
    FieldRows field;
    Rows z;  // as in FlowVelocityArgs
    Rows flow_time;
    Rows grad_velocity;  // [R, Q]
    FieldGradRows grad_field;
    Rows grad_z;     // [R, Q], or null where z is one row for all
    Rows grad_time;  // as flow_time, or null where it is one row for all
    int64_t num_quantiles;
    bool time_per_quantile;
};

struct IntegrateFlowArgs {
    FieldRows field;
    Tableau method;
    int64_t steps, num_quantiles;
    Rows base;        // [R, Q], or one row for all
    Rows start, end;  // [R, 1], or one row for all
    Rows out;         // [R, Q], or [R, K + 1, Q] with trajectory
    bool trajectory;
    float* path;  // [R, K, Q] states before each step, or null
};

struct IntegrateFlowGradArgs {
    FieldRows field;
    Tableau method;
    int64_t steps, num_quantiles;
    Rows start, end;    // [R, 1], or one row for all
    const float* path;  // [R, K, Q]
    Rows grad_out;      // [R, Q], or [R, K + 1, Q] with trajectory
    bool trajectory;
    bool time_grad;  // whether start or end needs a gradient
    FieldGradRows grad_field;
    Rows grad_base;             // [R, Q], or null where base is one row for all
    Rows grad_start, grad_end;  // [R, 1], or null where they are one row for all
};

struct FlowConsistencyArgs {
    FieldRows field, shortcut;
    Tableau method;
    int64_t steps, num_quantiles;
    Rows base;        // [R, Q], or one row for all
    float* loss;      // [R]
    float* residual;  // [R, Q], shortcut velocity less displacement, or null
};

struct Kernels {
    const char* name;
    void (*flow_consistency_loss)(const FlowConsistencyArgs&, int64_t row_begin, int64_t row_end);
    void (*flow_velocity)(const FlowVelocityArgs&, int64_t row_begin, int64_t row_end);
    void (*flow_velocity_backward)(const FlowVelocityGradArgs&, int64_t row_begin, int64_t row_end,
                                   const SharedGrads& sums);
    void (*integrate_flow)(const IntegrateFlowArgs&, int64_t row_begin, int64_t row_end);
    void (*integrate_flow_backward)(const IntegrateFlowGradArgs&, int64_t row_begin,
                                    int64_t row_end, const SharedGrads& sums);
    void (*quantile_huber_loss)(const QuantileHuberArgs&, int64_t row_begin, int64_t row_end);
    void (*distributional_gae)(const GaeArgs&, int64_t begin, int64_t end);
    void (*distributional_gae_backward)(const GaeGradArgs&, int64_t begin, int64_t end);
    void (*lambda_mixture_targets)(const MixtureArgs&, int64_t begin, int64_t end);
    void (*lambda_mixture_targets_backward)(const MixtureGradArgs&, int64_t begin, int64_t end);
    // Evaluates that many vectors of units of the field; how many lanes a vector has.
    float (*silu_floor)(int64_t vectors);
    int (*lanes)();
};

// Null where the variant is not part of this build.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

}  // namespace dfpo
