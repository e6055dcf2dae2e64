// Python bindings of the CUDA kernels: launched on the device and the stream that the caller names.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "binding_args.h"
#include "cuda/kernels.h"

namespace py = pybind11;

namespace dfpo {
namespace {

// A launcher as Python sees it: a tuple of arguments, scratch memory, a device and a stream.
template <typename Args>
auto bind(const char* op, Args (*to_args)(const Tuple&),
          const char* (*run)(const Args&, ScratchSpace, Queue)) {
    return [=](const Tuple& tuple, uintptr_t scratch, size_t scratch_bytes, int64_t tokens,
               int device, uintptr_t stream) {
        const Args args = to_args(tuple);
        const char* error;
        {
            const py::gil_scoped_release release;
            error = run(args, {(void*)scratch, scratch_bytes, tokens}, {device, stream});
        }
        if (error) throw std::runtime_error(std::string(op) + ": CUDA says: " + error);
    };
}

}  // namespace
}  // namespace dfpo

PYBIND11_MODULE(_cuda, m) {
    using namespace dfpo;
    m.doc() = "CUDA kernels of dfpo_kernels";
    m.def("device_count", &cuda_device_count);
    // Blocks of a scan's launch, and the bytes of scratch memory that it needs.
    m.def("scan_plan",
          [](int64_t count, int64_t length, bool packed, int64_t tokens, int64_t num_quantiles) {
              const ScanPlan plan = cuda_scan_plan(count, length, packed, tokens, num_quantiles);
              return py::make_tuple(plan.blocks, plan.scratch_bytes);
          });
    m.def("distributional_gae", bind("distributional_gae", to_gae_args, cuda_distributional_gae));
    m.def("distributional_gae_backward",
          bind("distributional_gae_backward", to_gae_grad_args, cuda_distributional_gae_backward));
    m.def("lambda_mixture_targets",
          bind("lambda_mixture_targets", to_mixture_args, cuda_lambda_mixture_targets));
    m.def("lambda_mixture_targets_backward",
          bind("lambda_mixture_targets_backward", to_mixture_grad_args,
               cuda_lambda_mixture_targets_backward));
}
