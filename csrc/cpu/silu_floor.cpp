// What a unit of the field costs at the least: gain silu(bias + z_weight z) with all of it in
// registers, nothing loaded and nothing stored. bench/ divides by it.
#include "../simd.h"
#include "kernels.h"

namespace dfpo {
namespace DFPO_VARIANT {

float silu_floor(int64_t vectors) {
    constexpr int kInFlight = 4;
    const Vec gain = splat(0.5f), z_weight = splat(0.999f);
    Vec bias = splat(0.01f), z[kInFlight], total[kInFlight] = {};
    for (int i = 0; i < kInFlight; i++) z[i] = lane_index() * 0.1f - (float)i;
    for (int64_t n = 0; n < vectors; n += kInFlight) {
#pragma GCC unroll 4
        for (int i = 0; i < kInFlight; i++) {
            const Vec x = z[i] * z_weight + bias;
            total[i] += gain * x * sigmoid(x);
        }
        // Or the compiler would take one unit for all of them.
        bias += 1e-6f;
    }
    return sum(total[0] + total[1] + total[2] + total[3]);
}

int lanes() { return kLanes; }

}  // namespace DFPO_VARIANT
}  // namespace dfpo
