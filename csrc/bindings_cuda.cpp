// Python bindings of the CUDA kernels: launched on the device and the stream that the caller names.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "binding_args.h"
#include "cuda/kernels.h"

namespace py = pybind11;

namespace dfpo {
namespace {

void check(const char* op, const char* error) {
    if (error) throw std::runtime_error(std::string(op) + ": CUDA says: " + error);
}

void distributional_gae(const Tuple& tuple, int device, uintptr_t stream) {
    const GaeArgs args = to_gae_args(tuple);
    const py::gil_scoped_release release;
    check("distributional_gae", cuda_distributional_gae(args, device, stream));
}

}  // namespace
}  // namespace dfpo

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of dfpo_kernels";
    m.def("device_count", &dfpo::cuda_device_count);
    m.def("distributional_gae", &dfpo::distributional_gae);
}
