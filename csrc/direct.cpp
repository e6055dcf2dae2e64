#include "direct.h"

#include <deque>
#include <utility>

namespace dfpo {

Torch torch;

namespace {

constexpr int32_t kCpu = 1;
// DLPack's codes of dtypes.
constexpr uint8_t kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kBool = 6;

PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }

bool is_true(PyObject* function, PyObject* argument = nullptr) {
    const Ref result = owned(PyObject_Vectorcall(function, &argument, argument ? 1 : 0, nullptr));
    return PyObject_IsTrue(result.get()) == 1;
}

bool has_type(PyObject* object, PyObject* types) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(types); i++)
        if ((PyObject*)Py_TYPE(object) == PyTuple_GET_ITEM(types, i)) return true;
    return false;
}

bool lies_densely(const DlTensor& t, Tensor& tensor) {
    tensor.numel = 1;
    tensor.canonical = true;
    for (int i = t.ndim - 1; i >= 0; i--) {
        if (t.strides[i] != tensor.numel) {
            if (t.shape[i] != 1) return false;
            tensor.canonical = false;
        }
        tensor.numel *= t.shape[i];
    }
    return tensor.numel > 0 && t.data;
}

}  // namespace

Reader::Reader() : ok(torch.exchange) {
    for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(torch.watchers); i++)
        ok = !is_true(PyTuple_GET_ITEM(torch.watchers, i));
}

Tensor Reader::tensor(PyObject* object) {
    Tensor tensor;
    if (!ok || !has_type(object, torch.tensor_types)) return ok = false, tensor;

    DlTensor t;
    if (torch.exchange->view(object, &t) != 0) {
        // Nothing that lies in memory: of a sparse layout or without a storage.
        PyErr_Clear();
        return ok = false, tensor;
    }
    tensor.object = object;
    tensor.data = (char*)t.data + t.byte_offset;
    tensor.shape = t.shape;
    tensor.ndim = t.ndim;
    tensor.floating = t.code == kFloat || t.code == kBfloat;
    const bool real = tensor.floating || t.code == kInt || t.code == kUnsigned || t.code == kBool;
    const bool sized = t.bits == 8 || t.bits == 16 || t.bits == 32 || t.bits == 64;
    while (sized && 8 << tensor.log2_size < t.bits) tensor.log2_size++;
    tensor.is_int64 = t.code == kInt && t.bits == 64;
    if (t.code == kBfloat)
        tensor.dtype = Dtype::bf16;
    else if (t.bits == 16)
        tensor.dtype = Dtype::f16;
    // A negated view has the memory of another tensor.
    ok = t.device_type == kCpu && real && sized && t.lanes == 1 && lies_densely(t, tensor) &&
         !is_true(torch.is_neg, object);
    return tensor;
}

Tensor Reader::floats(PyObject* object) {
    const Tensor tensor = this->tensor(object);
    require(tensor.floating && (tensor.log2_size == 1 || tensor.log2_size == 2));
    return tensor;
}

Tensor Reader::float32s(PyObject* object) {
    const Tensor tensor = floats(object);
    require(tensor.log2_size == 2);
    return tensor;
}

Field Reader::field(PyObject* object) {
    if (!ok || (PyObject*)Py_TYPE(object) != torch.field_type) return ok = false, Field();
    return field_of(&PyTuple_GET_ITEM(object, 0));
}

Field Reader::field_of(PyObject* const* parts) {
    const Field field{floats(parts[0]), floats(parts[1]), floats(parts[2]), float32s(parts[3]),
                      float32s(parts[4])};
    require(field.bias.extends(field.offset) && field.gain.has_shape(field.bias) &&
            field.z_weight.ndim == 1 && field.z_weight.numel == field.bias.last() &&
            field.time_weight.has_shape(field.z_weight));
    return field;
}

Time Reader::time(PyObject* object, const Tensor& lead) {
    Time time;
    if (PyFloat_CheckExact(object) || PyLong_CheckExact(object)) {
        time.number = (float)number(object, -1e30, 1e30);
    } else {
        time.tensor = floats(object);
        time.stride = time.tensor.ndim > 0 ? 1 : 0;
        require(time.tensor.ndim == 0 || time.tensor.has_shape(lead));
    }
    return time;
}

Time Reader::velocity_time(PyObject* object, const Tensor& z, const Tensor& lead) {
    Time time;
    if (PyFloat_CheckExact(object) || PyLong_CheckExact(object)) return this->time(object, lead);
    time.tensor = floats(object);
    if (!ok || !time.tensor.has_shape(z)) return this->time(object, lead);
    time.stride = z.last();
    return time;
}

double Reader::number(PyObject* object, double low, double high) {
    if (!ok || !(PyFloat_CheckExact(object) || PyLong_CheckExact(object))) return ok = false, 0.0;
    const double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred()) PyErr_Clear(), ok = false;
    // NaN fails the comparison too.
    require(low <= value && value <= high);
    return value;
}

int64_t Reader::integer(PyObject* object, int64_t low, int64_t high) {
    if (!ok || !PyLong_CheckExact(object)) return ok = false, 0;
    int overflow;
    const int64_t value = PyLong_AsLongLongAndOverflow(object, &overflow);
    require(!overflow && low <= value && value <= high);
    return value;
}

bool Reader::boolean(PyObject* object) {
    require(PyBool_Check(object));
    return object == Py_True;
}

int Reader::choice(PyObject* object, std::initializer_list<const char*> choices) {
    int place = 0;
    if (ok && PyUnicode_CheckExact(object))
        for (const char* choice : choices) {
            if (PyUnicode_CompareWithASCIIString(object, choice) == 0) return place;
            place++;
        }
    ok = false;
    return 0;
}

const Tableau* Reader::tableau(PyObject* object) {
    // Methods are few and their tuples do not change. Kept alive, an address names one for good.
    static auto& known = *new std::deque<std::pair<Ref, Tableau>>;
    for (const auto& [tuple, tableau] : known)
        if (tuple.get() == object) return &tableau;

    Tableau tableau;
    if (!ok || !parse_tableau(object, tableau)) return ok = false, nullptr;
    Py_INCREF(object);
    known.emplace_back(Ref(object), tableau);
    return &known.back().second;
}

bool needs_gradient(const Inputs& inputs) {
    static PyObject* const requires_grad = name("requires_grad");
    if (!is_true(torch.is_grad_enabled)) return false;
    for (PyObject* tensor : inputs) {
        if (!tensor) continue;
        const Ref flag = owned(PyObject_GetAttr(tensor, requires_grad));
        if (flag.get() == Py_True) return true;
    }
    return false;
}

int num_threads() {
    const Ref count = owned(PyObject_CallNoArgs(torch.get_num_threads));
    return (int)PyLong_AsLong(count.get());
}

Ref empty_like(const Tensor& tensor) {
    // PyTorch's own would keep unusual strides.
    if (!tensor.canonical) return empty(shape_of(tensor), dtype_of(tensor).get());
    return owned(PyObject_CallOneArg(torch.empty_like, tensor.object));
}

Ref empty(const std::vector<int64_t>& shape, PyObject* dtype) {
    static PyObject* const keywords = Py_BuildValue("(s)", "dtype");
    const Ref sizes = owned(PyTuple_New((Py_ssize_t)shape.size()));
    for (size_t i = 0; i < shape.size(); i++)
        PyTuple_SET_ITEM(sizes.get(), (Py_ssize_t)i,
                         owned(PyLong_FromLongLong(shape[i])).release());
    PyObject* const arguments[] = {sizes.get(), dtype};
    return owned(PyObject_Vectorcall(torch.empty, arguments, 1, keywords));
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
    return {tensor.shape, tensor.shape + tensor.ndim};
}

Ref dtype_of(const Tensor& tensor) {
    static PyObject* const dtype = name("dtype");
    return owned(PyObject_GetAttr(tensor.object, dtype));
}

Ref detached(PyObject* tensor) {
    static PyObject* const detach = name("detach");
    return owned(PyObject_CallMethodNoArgs(tensor, detach));
}

float* floats_of(const Ref& tensor) {
    DlTensor t;
    if (torch.exchange->view(tensor.get(), &t) != 0) throw Raised();
    return (float*)((char*)t.data + t.byte_offset);
}

Ref tuple(std::initializer_list<PyObject*> items) {
    Ref result = owned(PyTuple_New((Py_ssize_t)items.size()));
    Py_ssize_t place = 0;
    for (PyObject* item : items) {
        if (!item) item = Py_None;
        Py_INCREF(item);
        PyTuple_SET_ITEM(result.get(), place++, item);
    }
    return result;
}

PyObject* record(PyObject* apply, const Ref& outputs, const Ref& kept, const Ref& options,
                 const Inputs& inputs) {
    std::vector<PyObject*> arguments{outputs.get(), kept.get(), options.get()};
    for (PyObject* input : inputs) arguments.push_back(input ? input : Py_None);
    return PyObject_Vectorcall(apply, arguments.data(), arguments.size(), nullptr);
}

}  // namespace dfpo
