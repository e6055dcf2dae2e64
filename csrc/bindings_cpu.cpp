// Python bindings of the CPU kernels. No torch header: a tensor arrives as
// (data pointer, dtype code, row stride), see dfpo_kernels/_dispatch.py.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "cpu/kernels.h"
#include "parallel.h"

namespace py = pybind11;

namespace dfpo {
namespace {

using Tensor = std::tuple<uintptr_t, int, int64_t>;

Rows to_rows(const Tensor& t) {
    return {(void*)std::get<0>(t), (Dtype)std::get<1>(t), std::get<2>(t)};
}

float* to_floats(uintptr_t address) { return (float*)address; }

const Kernels* find_variant(const std::string& name) {
#if defined(DFPO_X86_VARIANTS)
    __builtin_cpu_init();
    if (name == "avx512" && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return avx512_kernels();
    if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return avx2_kernels();
#endif
    return name == "portable" ? portable_kernels() : nullptr;
}

const Kernels* best_variant() {
    for (const char* name : {"avx512", "avx2"})
        if (const Kernels* found = find_variant(name)) return found;
    return portable_kernels();
}

const Kernels* kernels = best_variant();

void set_variant(const std::string& name) {
    const Kernels* found = find_variant(name);
    if (!found)
        throw std::invalid_argument("variant: '" + name + "' is not one of avx512, avx2, portable "
                                    "that this build and this processor support");
    kernels = found;
}

// Rows per chunk so that a chunk is some ten microseconds of work; see parallel.h.
int64_t rows_per_chunk(int64_t work_per_row) {
    const int64_t rows = 65536 / (work_per_row > 0 ? work_per_row : 1);
    return rows < 1 ? 1 : rows;
}

template <typename Body>
void for_rows(int64_t rows, int64_t work_per_row, int threads, const Body& body) {
    const int64_t size = rows_per_chunk(work_per_row);
    parallel_chunks((rows + size - 1) / size, threads, [&](int64_t chunk) {
        const int64_t begin = chunk * size, end = begin + size < rows ? begin + size : rows;
        body(begin, end);
    });
}

void quantile_huber_loss(Tensor quantiles, Tensor targets, uintptr_t taus, uintptr_t loss,
                         uintptr_t grad_quantiles, uintptr_t grad_targets, int64_t rows, int64_t Q,
                         int64_t P, float kappa, float quantile_weight, int threads) {
    const QuantileHuberArgs args{to_rows(quantiles), to_rows(targets), to_floats(taus),
                                 to_floats(loss), to_floats(grad_quantiles),
                                 to_floats(grad_targets), Q, P, kappa, quantile_weight};
    const py::gil_scoped_release release;
    for_rows(rows, Q * P / 8, threads, [&](int64_t begin, int64_t end) {
        kernels->quantile_huber_loss(args, begin, end);
    });
}

}  // namespace
}  // namespace dfpo

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of dfpo_kernels";
    m.def("variant", [] { return dfpo::kernels->name; });
    m.def("set_variant", &dfpo::set_variant);
    m.def("quantile_huber_loss", &dfpo::quantile_huber_loss);
}
