// The table of one variant; compiled once per variant beside its kernels.
#include "kernels.h"

#define DFPO_CONCAT_(a, b) a##b
#define DFPO_CONCAT(a, b) DFPO_CONCAT_(a, b)
#define DFPO_STRING_(a) #a
#define DFPO_STRING(a) DFPO_STRING_(a)

namespace dfpo {

namespace DFPO_VARIANT {
void flow_consistency_loss(const FlowConsistencyArgs&, int64_t, int64_t);
void flow_velocity(const FlowVelocityArgs&, int64_t, int64_t);
void flow_velocity_backward(const FlowVelocityGradArgs&, int64_t, int64_t, const SharedGrads&);
void integrate_flow(const IntegrateFlowArgs&, int64_t, int64_t);
void integrate_flow_backward(const IntegrateFlowGradArgs&, int64_t, int64_t, const SharedGrads&);
void quantile_huber_loss(const QuantileHuberArgs&, int64_t, int64_t);
void distributional_gae(const GaeArgs&, int64_t, int64_t);
void distributional_gae_backward(const GaeGradArgs&, int64_t, int64_t);
void lambda_mixture_targets(const MixtureArgs&, int64_t, int64_t);
void lambda_mixture_targets_backward(const MixtureGradArgs&, int64_t, int64_t);
float silu_floor(int64_t);
int lanes();
}  // namespace DFPO_VARIANT

const Kernels* DFPO_CONCAT(DFPO_VARIANT, _kernels)() {
    static const Kernels table = {
        DFPO_STRING(DFPO_VARIANT),
        DFPO_VARIANT::flow_consistency_loss,
        DFPO_VARIANT::flow_velocity,
        DFPO_VARIANT::flow_velocity_backward,
        DFPO_VARIANT::integrate_flow,
        DFPO_VARIANT::integrate_flow_backward,
        DFPO_VARIANT::quantile_huber_loss,
        DFPO_VARIANT::distributional_gae,
        DFPO_VARIANT::distributional_gae_backward,
        DFPO_VARIANT::lambda_mixture_targets,
        DFPO_VARIANT::lambda_mixture_targets_backward,
        DFPO_VARIANT::silu_floor,
        DFPO_VARIANT::lanes,
    };
    return &table;
}

}  // namespace dfpo
