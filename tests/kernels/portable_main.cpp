// The portable kernels against plain loops in double precision, without Python: what can be run on
// another processor's emulator. Prints what is wrong and returns how many checks failed.
#include <cmath>
#include <cstdio>
#include <vector>

#include "cpu/kernels.h"

using dfpo::Dtype;
using dfpo::Kernels;
using dfpo::Rows;
using Floats = std::vector<float>;

namespace {

int failures = 0;

void near(const char* what, double actual, double expected, double tolerance) {
    if (std::fabs(actual - expected) <= tolerance * (1 + std::fabs(expected))) return;
    std::printf("%s: is %.9g, must be %.9g\n", what, actual, expected);
    failures++;
}

// Any sequence that fills [-1, 1) evenly.
Floats numbers(size_t n, double start) {
    Floats x(n);
    for (size_t i = 0; i < n; i++) x[i] = (float)(2 * std::fmod(start + i * 0.6180339887, 1.0) - 1);
    return x;
}

Rows rows(Floats& x, int64_t stride) { return {x.data(), Dtype::f32, stride}; }

// Sizes that fill no vector.
constexpr int64_t R = 3, Q = 13, W = 5, K = 4;

struct Field {
    Floats bias = numbers(R * W, 0.1), gain = numbers(R * W, 0.2), offset = numbers(R, 0.3);
    Floats z_weight = numbers(W, 0.4), time_weight = numbers(W, 0.5);

    dfpo::FieldRows view() {
        return {rows(bias, W),   rows(gain, W),      rows(offset, 1),
                z_weight.data(), time_weight.data(), W};
    }

    double velocity(int64_t r, double z, double s) const {
        double v = offset[r];
        for (int64_t w = 0; w < W; w++) {
            const double x = bias[r * W + w] + z_weight[w] * z + time_weight[w] * s;
            v += gain[r * W + w] * x / (1 + std::exp(-x));
        }
        return v;
    }

    double euler(int64_t r, double z) const {
        for (int64_t k = 0; k < K; k++) z += velocity(r, z, (double)k / K) / K;
        return z;
    }
};

void check_flow(const Kernels& kernels) {
    Field field;
    Floats base = numbers(R * Q, 0.6), out(R * Q), path(R * K * Q), time{0.25f}, start{0}, end{1};
    kernels.flow_velocity({field.view(), rows(base, Q), rows(time, 0), rows(out, Q), Q, false}, 0,
                          R);
    for (int64_t i = 0; i < R * Q; i++)
        near("flow_velocity", out[i], field.velocity(i / Q, base[i], 0.25), 1e-6);

    const dfpo::Tableau euler{1, {0}, {{0}}, {1}};
    kernels.integrate_flow({field.view(), euler, K, Q, rows(base, Q), rows(start, 0), rows(end, 0),
                            rows(out, Q), false, path.data()},
                           0, R);
    for (int64_t i = 0; i < R * Q; i++)
        near("integrate_flow", out[i], field.euler(i / Q, base[i]), 1e-6);

    Floats ones(R * Q, 1.0f), grad_base(R * Q), grad_bias(R * W), grad_gain(R * W), grad_offset(R);
    Floats grad_start(R), grad_end(R);
    std::vector<double> sums(2 * W + Q + 2);
    kernels.integrate_flow_backward(
        {field.view(),
         euler,
         K,
         Q,
         rows(start, 0),
         rows(end, 0),
         path.data(),
         rows(ones, Q),
         false,
         false,
         {rows(grad_bias, W), rows(grad_gain, W), rows(grad_offset, 1)},
         rows(grad_base, Q),
         rows(grad_start, 1),
         rows(grad_end, 1)},
        0, R, {&sums[0], &sums[W], &sums[2 * W], &sums[2 * W + Q], &sums[2 * W + Q + 1]});
    constexpr double h = 1e-5;
    for (int64_t i = 0; i < R * Q; i++) {
        const double slope =
            (field.euler(i / Q, base[i] + h) - field.euler(i / Q, base[i] - h)) / (2 * h);
        near("gradient of base", grad_base[i], slope, 1e-5);
    }
}

// Pairs in registers for few targets, running sums for many.
void check_quantile_huber(const Kernels& kernels, int64_t P) {
    constexpr float kappa = 0.125f;
    Floats quantiles = numbers(R * Q, 0.1), targets = numbers(R * P, 0.7), taus(Q), loss(R);
    Floats grad(R * Q);
    for (int64_t i = 0; i < Q; i++) taus[i] = (i + 0.5f) / Q;
    kernels.quantile_huber_loss({rows(quantiles, Q), rows(targets, P), taus.data(), loss.data(),
                                 grad.data(), nullptr, Q, P, kappa, 1.0f / Q},
                                0, R);
    for (int64_t r = 0; r < R; r++) {
        double total = 0;
        for (int64_t i = 0; i < Q; i++) {
            double slope = 0;
            for (int64_t p = 0; p < P; p++) {
                const double u = (double)targets[r * P + p] - quantiles[r * Q + i];
                const double weight = u < 0 ? 1 - taus[i] : taus[i], size = std::fabs(u);
                total += weight * (size <= kappa ? u * u / (2 * kappa) : size - kappa / 2);
                slope += weight * (size <= kappa ? u / kappa : u / size);
            }
            near("gradient of quantile_huber_loss", grad[r * Q + i], -slope / P / Q, 1e-6);
        }
        near("quantile_huber_loss", loss[r], total / P / Q, 1e-6);
    }
}

void check_scans(const Kernels& kernels, int64_t particles) {
    constexpr int64_t B = 5, T = 37;
    constexpr float gamma = 0.9f;
    Floats rewards = numbers(B * T, 0.1), values = numbers(B * T * particles, 0.2), lam(B, 0.75f);
    Floats advantages(values.size()), targets(values.size()), mixture(values.size());
    std::vector<uint8_t> mask(B * T), done(B * T);
    std::vector<int64_t> ids(B);
    for (int64_t i = 0; i < B * T; i++) mask[i] = i % 4 != 1, done[i] = i % 11 == 3;
    const dfpo::Sequences sequences{B,
                                    T,
                                    nullptr,
                                    particles,
                                    dfpo::MaskMode::carry,
                                    {mask.data(), 0, false, T, 1},
                                    {done.data(), 0, false, T, 1}};
    const auto tokens = [&](Floats& x, int64_t n) {
        return dfpo::Tokens{x.data(), Dtype::f32, T * n, n};
    };
    kernels.distributional_gae({sequences,
                                tokens(rewards, 1),
                                tokens(values, particles),
                                {},
                                {},
                                lam.data(),
                                nullptr,
                                gamma,
                                tokens(advantages, particles),
                                tokens(targets, particles)},
                               0, B);
    Floats follow(B, 1.0f);
    kernels.lambda_mixture_targets({sequences,
                                    tokens(rewards, 1),
                                    tokens(values, particles),
                                    {},
                                    follow.data(),
                                    ids.data(),
                                    7,
                                    gamma,
                                    tokens(mixture, particles)},
                                   0, B);
    for (int64_t b = 0; b < B; b++)
        for (int64_t q = 0; q < particles; q++) {
            double value = 0, advantage = 0, all = 0;  // `all` follows the return to its end
            for (int64_t t = T - 1; t >= 0; t--) {
                const int64_t i = b * T + t, j = i * particles + q;
                if (mask[i]) {
                    const double open = done[i] ? 0 : 1;
                    advantage = rewards[i] + gamma * open * value - values[j] +
                                gamma * lam[b] * open * advantage;
                    value = values[j];
                    all = rewards[i] + gamma * open * all;
                }
                near("advantage", advantages[j], advantage, 1e-5);
                near("target", targets[j], values[j] + advantage, 1e-5);
                near("mixture at lam 1", mixture[j], all, 1e-5);
            }
        }
}

}  // namespace

int main() {
    const Kernels& kernels = *dfpo::portable_kernels();
    check_flow(kernels);
    check_quantile_huber(kernels, 9);
    check_quantile_huber(kernels, 700);
    for (int64_t particles : {1, 7, 41}) check_scans(kernels, particles);
    std::printf("%s kernels: %d failures\n", kernels.name, failures);
    return failures != 0;
}
