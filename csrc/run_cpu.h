// Each CPU kernel over all rows or sequences, on threads. Called without the GIL.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/kernels.h"

namespace dfpo {

// The variant in use: the best that the processor supports, until another is set.
const Kernels* kernels();
// std::invalid_argument where this build or this processor lacks it.
void set_variant(const std::string& name);

void run(const QuantileHuberArgs&, int64_t rows, int threads);
void run(const FlowVelocityArgs&, int64_t rows, int threads);
void run(const IntegrateFlowArgs&, int64_t rows, int threads);
void run(const FlowConsistencyArgs&, int64_t rows, int threads);

// What the rows share is summed over them into sums [2 W + Q + 2]: z_weight [W], time_weight [W],
// then z [Q] or base [Q], then the flow time and nothing, or start and end.
void run(const FlowVelocityGradArgs&, int64_t rows, float* sums, int threads);
void run(const IntegrateFlowGradArgs&, int64_t rows, float* sums, int threads);

// tokens: of all sequences together.
void run(const GaeArgs&, int64_t tokens, int threads);
void run(const GaeGradArgs&, int64_t tokens, int threads);
void run(const MixtureArgs&, int64_t tokens, int threads);
void run(const MixtureGradArgs&, int64_t tokens, int threads);

}  // namespace dfpo
