// What direct calls (direct_cpu.cpp) share: how they read arguments and make and record results.
//
// A direct call answers the common case of an op past PyTorch's dispatcher, whose price is tens of
// microseconds. It returns None where it does not apply, and then the general call answers, which
// takes every case and raises the errors (dfpo_kernels/_direct.py). It applies where all tensors
// are plain, dense, on the CPU and not empty, numbers are Python's own, every shape and range is
// right, and nothing looks into PyTorch's calls: no mode, torch.func, tracer or profiler.
//
// Tensors are read through DLPack's C exchange API, which PyTorch offers as
// torch.Tensor.__dlpack_c_exchange_api__; so there is no torch header here either.
#pragma once

#include <Python.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace dfpo {

// Of DLPack 1: what it says of a tensor, and the table of functions that says it.
struct DlTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t* shape;
    const int64_t* strides;  // in elements
    uint64_t byte_offset;
};

struct DlExchange {
    uint32_t major, minor;
    const void* previous;
    void (*allocate)();
    void (*managed_from_object)();
    void (*managed_to_object)();
    int (*view)(void* object, DlTensor* out);  // -1 with a Python exception
    void (*current_stream)();
};

// What direct calls ask of Python, as dfpo_kernels/_direct.py connects it.
struct Torch {
    const DlExchange* exchange = nullptr;
    PyObject *tensor_types, *field_type, *watchers;  // types, a type, functions
    PyObject *is_grad_enabled, *get_num_threads, *is_neg, *empty_like, *empty, *float32;
};

struct Decref {
    void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Ref = std::unique_ptr<PyObject, Decref>;

// A Python exception is set; the direct call passes it on.
struct Raised {};

// Throws where Python has raised.
inline Ref owned(PyObject* object) {
    if (!object) throw Raised();
    return Ref(object);
}

// A dense tensor on the CPU with at least one element; without an object, an absent one.
struct Tensor {
    PyObject* object = nullptr;  // borrowed
    void* data = nullptr;
    const int64_t* shape = nullptr;
    int ndim = 0;
    int64_t numel = 0;
    bool floating = false, is_int64 = false;
    bool canonical = false;    // axes of size 1 have the usual strides too
    int log2_size = 0;         // bytes per element: 1, 2, 4 or 8
    Dtype dtype = Dtype::f32;  // of a tensor that Reader::floats has read

    int64_t last() const { return ndim ? shape[ndim - 1] : 0; }
    int64_t without_last() const { return last() ? numel / last() : 0; }
    // [..., m] of [..., n]
    bool rows_as(const Tensor& other) const {
        return ndim == other.ndim && starts_as(other, ndim - 1);
    }
    bool has_shape(const Tensor& other) const {
        return ndim == other.ndim && starts_as(other, ndim);
    }
    // [..., n] of [...]
    bool extends(const Tensor& lead) const {
        return ndim == lead.ndim + 1 && starts_as(lead, lead.ndim);
    }

    // Also true where the tensor is absent.
    bool is_float32() const { return !object || (floating && log2_size == 2); }
    Rows rows(int64_t stride) const { return {data, dtype, stride}; }
    Flags flags(int64_t length) const { return {data, log2_size, floating, length, 1}; }

  private:
    bool starts_as(const Tensor& other, int axes) const {
        for (int i = 0; i < axes; i++)
            if (shape[i] != other.shape[i]) return false;
        return true;
    }
};

struct Field {
    Tensor bias, gain, offset, z_weight, time_weight;

    int64_t rows() const { return offset.numel; }
    int64_t width() const { return z_weight.numel; }
    FieldRows view() const {
        return {bias.rows(width()),    gain.rows(width()),       offset.rows(1),
                (float*)z_weight.data, (float*)time_weight.data, width()};
    }
};

// A number for all rows, or a tensor that is a scalar, [...] or, of a velocity, [..., Q].
struct Time {
    Tensor tensor;
    float number = 0.0f;
    int64_t stride = 0;

    Rows rows() const {
        return tensor.object ? tensor.rows(stride) : Rows{(void*)&number, Dtype::f32, 0};
    }
};

// Reads arguments one after the other. Where one is not as a direct call needs it, or something
// looks into PyTorch's calls, ``ok`` turns false for good and the call returns None.
class Reader {
  public:
    Reader();

    bool ok;

    void require(bool condition) { ok = ok && condition; }
    Tensor tensor(PyObject* object);  // of any real dtype
    Tensor floats(PyObject* object);  // float32, bfloat16 or float16
    Tensor maybe_tensor(PyObject* object) { return object == Py_None ? Tensor() : tensor(object); }
    Tensor maybe_floats(PyObject* object) { return object == Py_None ? Tensor() : floats(object); }
    Tensor float32s(PyObject* object);       // float32
    Field field(PyObject* object);           // a FlowField
    Field field_of(PyObject* const* parts);  // its five tensors
    Time time(PyObject* object, const Tensor& lead);
    Time velocity_time(PyObject* object, const Tensor& z, const Tensor& lead);
    double number(PyObject* object, double low, double high);
    int64_t integer(PyObject* object, int64_t low, int64_t high);
    bool boolean(PyObject* object);
    // The place of a string among those.
    int choice(PyObject* object, std::initializer_list<const char*> choices);
    const Tableau* tableau(PyObject* object);
};

extern Torch torch;

// Tensors by which autograd may differentiate; null is an absent one.
using Inputs = std::vector<PyObject*>;
// Whether autograd is to record a call with these inputs.
bool needs_gradient(const Inputs& inputs);
int num_threads();

// Uninitialised: of the shape and dtype of another, or of a shape and like another's dtype.
Ref empty_like(const Tensor& tensor);
Ref empty(const std::vector<int64_t>& shape, PyObject* dtype);
std::vector<int64_t> shape_of(const Tensor& tensor);
Ref dtype_of(const Tensor& tensor);
Ref detached(PyObject* tensor);
// Of a tensor made here.
float* floats_of(const Ref& tensor);

// A tuple of borrowed objects; null is None.
Ref tuple(std::initializer_list<PyObject*> items);
// apply(outputs, kept, options, *inputs), the outputs as autograd knows them, or null with a Python
// exception.
PyObject* record(PyObject* apply, const Ref& outputs, const Ref& kept, const Ref& options,
                 const Inputs& inputs);

// False where it is none. In bindings_cpu.cpp.
bool parse_tableau(PyObject* nodes_matrix_weights, Tableau& tableau);

// The functions of direct_cpu.cpp, for the module.
PyMethodDef* direct_methods();

}  // namespace dfpo
