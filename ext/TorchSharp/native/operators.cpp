// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The bridge's first half: the dispatcher's boxed call, tensors, random numbers, threads, devices.
#include "bridge.h"

#include <ATen/Context.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <cstring>

namespace peft {

static thread_local std::string last_error;

void set_error(const char* message) {
  last_error = message ? message : "unknown error";
  auto end = last_error.find('\n');
  if (end != std::string::npos && end > 0) last_error.resize(end);
}

void catch_error() {
  try {
    throw;
  } catch (const c10::Error& e) {
    set_error(e.what_without_backtrace());
  } catch (const std::exception& e) {
    set_error(e.what());
  } catch (...) {
    set_error("an error that is not a C++ exception");
  }
}

enum Tag : int32_t {
  None = 0, TensorTag, Int, Double, Bool, IntList, DoubleList, TensorList, OptionalTensorList,
  String, BoolList, DeviceTag, Default, Complex, GeneratorTag,
};

// Mirrors the managed struct of the same name and layout.
struct Value {
  int64_t bits;
  int32_t tag;
  int32_t length;
};

struct Operator {
  c10::OperatorHandle handle;
  std::vector<c10::IValue> defaults;
};

static double as_double(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
static c10::List<T> list_of(const Value& v) {
  c10::List<T> list;
  list.reserve(v.length);
  auto items = reinterpret_cast<const int64_t*>(v.bits);
  for (int32_t i = 0; i < v.length; i++) {
    if constexpr (std::is_same_v<T, double>) list.push_back(as_double(items[i]));
    else if constexpr (std::is_same_v<T, at::Tensor>) list.push_back(borrow(items[i]));
    else list.push_back(static_cast<T>(items[i]));
  }
  return list;
}

static c10::IValue optional_tensors(const Value& v) {
  using Found = decltype(c10::Dispatcher::singleton().findSchema(std::declval<c10::OperatorName>()));
  using Optional = OptionalLike<Found>;
  c10::List<Optional> list;
  auto items = reinterpret_cast<const Handle*>(v.bits);
  for (int32_t i = 0; i < v.length; i++) list.push_back(items[i] ? Optional(borrow(items[i])) : Optional());
  return list;
}

static c10::IValue to_ivalue(const Value& v) {
  switch (v.tag) {
    case TensorTag: return c10::IValue(borrow(v.bits));
    case Int: return c10::IValue(v.bits);
    case Double: return c10::IValue(as_double(v.bits));
    case Bool: return c10::IValue(v.bits != 0);
    case IntList: return list_of<int64_t>(v);
    case DoubleList: return list_of<double>(v);
    case BoolList: return list_of<bool>(v);
    case TensorList: return list_of<at::Tensor>(v);
    case OptionalTensorList: return optional_tensors(v);
    case String: return std::string(reinterpret_cast<const char*>(v.bits), v.length);
    case DeviceTag: return c10::Device(static_cast<c10::DeviceType>(v.bits), static_cast<c10::DeviceIndex>(v.length));
    case Complex: {
      auto parts = reinterpret_cast<const double*>(v.bits);
      return c10::complex<double>(parts[0], parts[1]);
    }
    case GeneratorTag: return *reinterpret_cast<at::Generator*>(v.bits);
    default: return c10::IValue();
  }
}

static Value from_ivalue(c10::IValue&& result) {
  Value v{0, None, 0};
  if (result.isTensor()) {
    v.tag = TensorTag;
    v.bits = give(std::move(result).toTensor());
  } else if (result.isInt()) {
    v.tag = Int;
    v.bits = result.toInt();
  } else if (result.isBool()) {
    v.tag = Bool;
    v.bits = result.toBool();
  } else if (result.isDouble()) {
    v.tag = Double;
    double d = result.toDouble();
    std::memcpy(&v.bits, &d, sizeof d);
  } else if (result.isTensorList()) {
    auto tensors = std::move(result).toTensorVector();
    v.tag = TensorList;
    v.length = static_cast<int32_t>(tensors.size());
    auto handles = static_cast<Handle*>(std::malloc(sizeof(Handle) * (tensors.size() + 1)));
    for (size_t i = 0; i < tensors.size(); i++) handles[i] = give(std::move(tensors[i]));
    v.bits = reinterpret_cast<int64_t>(handles);
  } else {
    TORCH_CHECK(result.isNone(), "The bridge cannot return a value of the kind ", result.tagKind());
  }
  return v;
}

static at::Tensor& as_tensor(Handle& handle) { return reinterpret_cast<at::Tensor&>(handle); }
static at::TensorImpl* impl(Handle handle) { return reinterpret_cast<at::TensorImpl*>(handle); }

}  // namespace peft

using namespace peft;
static_assert(sizeof(at::Tensor) == sizeof(Handle), "a tensor is one pointer");

PT_EXPORT const char* pt_error() { return last_error.c_str(); }
PT_EXPORT void pt_fail(const char* message) { set_error(message); }
PT_EXPORT const char* pt_version() { return PT_TORCH_VERSION; }
PT_EXPORT void pt_free_memory(void* memory) { std::free(memory); }

// ---- operators ----

PT_EXPORT void* pt_find(const char* name, const char* overload) {
  PT_TRY(nullptr, {
    auto found = c10::Dispatcher::singleton().findSchema({name, overload});
    if (!found) {
      set_error((std::string("this libtorch has no operator ") + name + "." + overload).c_str());
      return nullptr;
    }
    auto op = new Operator{*found, {}};
    for (const auto& argument : found->schema().arguments())
      op->defaults.push_back(argument.default_value() ? *argument.default_value() : c10::IValue());
    return op;
  })
}

// Missing trailing arguments take the schema's defaults, so one caller fits schemas that grew later.
PT_EXPORT int32_t pt_call(Operator* op, const Value* args, int32_t count, Value* results, int32_t capacity) {
  PT_TRY(-1, {
    const size_t all = op->defaults.size();
    TORCH_CHECK(static_cast<size_t>(count) <= all, toString(op->handle.operator_name()), " takes ", all, " arguments, not ", count);
    torch::jit::Stack stack;
    stack.reserve(all > 8 ? all : 8);
    for (int32_t i = 0; i < count; i++)
      stack.push_back(args[i].tag == Default ? op->defaults[i] : to_ivalue(args[i]));
    for (size_t i = count; i < all; i++) stack.push_back(op->defaults[i]);
    op->handle.callBoxed(&stack);
    if (capacity == 0) return 0;
    TORCH_CHECK(stack.size() <= static_cast<size_t>(capacity), "more results than expected");
    for (size_t i = 0; i < stack.size(); i++) results[i] = from_ivalue(std::move(stack[i]));
    return static_cast<int32_t>(stack.size());
  })
}

// ---- tensors ----

PT_EXPORT void pt_free(Handle handle) {
  c10::intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>::reclaim(impl(handle));
}
PT_EXPORT Handle pt_share(Handle handle) { return give(borrow(handle)); }
PT_EXPORT int64_t pt_ndim(Handle handle) { return impl(handle)->dim(); }
PT_EXPORT int64_t pt_numel(Handle handle) { return impl(handle)->numel(); }
PT_EXPORT int64_t pt_element_size(Handle handle) { return impl(handle)->dtype().itemsize(); }
PT_EXPORT int32_t pt_dtype(Handle handle) { return static_cast<int32_t>(c10::typeMetaToScalarType(impl(handle)->dtype())); }
PT_EXPORT int32_t pt_layout(Handle handle) { return static_cast<int32_t>(impl(handle)->layout()); }
PT_EXPORT int32_t pt_device_type(Handle handle) { return static_cast<int32_t>(impl(handle)->device().type()); }
PT_EXPORT int32_t pt_device_index(Handle handle) { return impl(handle)->device().index(); }
PT_EXPORT void pt_sizes(Handle handle, int64_t* sizes) {
  auto from = impl(handle)->sizes();
  std::copy(from.begin(), from.end(), sizes);
}
PT_EXPORT int32_t pt_strides(Handle handle, int64_t* strides) {
  PT_TRY(-1, {
    auto from = impl(handle)->strides();
    std::copy(from.begin(), from.end(), strides);
    return 0;
  })
}
PT_EXPORT int64_t pt_storage_offset(Handle handle) { PT_TRY(-1, { return impl(handle)->storage_offset(); }) }
PT_EXPORT void* pt_data(Handle handle) { PT_TRY(nullptr, { return as_tensor(handle).data_ptr(); }) }
PT_EXPORT int32_t pt_is_contiguous(Handle handle) { PT_TRY(-1, { return impl(handle)->is_contiguous(); }) }
PT_EXPORT int32_t pt_same(Handle a, Handle b) { return a == b; }

PT_EXPORT Handle pt_from_blob(void* data, const int64_t* sizes, int32_t dims, int32_t dtype,
                              void (*release)(void*), void* key) {
  PT_TRY(0, {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(dtype));
    at::IntArrayRef shape(sizes, dims);
    if (release == nullptr) return give(at::from_blob(data, shape, options));
    return give(at::from_blob(data, shape, [release, key](void*) { release(key); }, options));
  })
}

PT_EXPORT int32_t pt_promote(int32_t a, int32_t b) {
  return static_cast<int32_t>(c10::promoteTypes(static_cast<c10::ScalarType>(a), static_cast<c10::ScalarType>(b)));
}
PT_EXPORT int32_t pt_set_default_dtype(int32_t dtype) {
  PT_TRY(-1, {
    c10::set_default_dtype(c10::scalarTypeToTypeMeta(static_cast<c10::ScalarType>(dtype)));
    return 0;
  })
}

// ---- random numbers ----

PT_EXPORT at::Generator* pt_generator_new(uint64_t seed, int32_t device, int32_t index) {
  PT_TRY(nullptr, {
    auto type = static_cast<c10::DeviceType>(device);
    auto made = type == c10::DeviceType::CPU
        ? at::detail::createCPUGenerator(seed)
        : at::globalContext().defaultGenerator(c10::Device(type, static_cast<c10::DeviceIndex>(index))).clone();
    made.set_current_seed(seed);
    return new at::Generator(std::move(made));
  })
}
PT_EXPORT at::Generator* pt_generator_default(int32_t device, int32_t index) {
  PT_TRY(nullptr, {
    c10::Device on(static_cast<c10::DeviceType>(device), static_cast<c10::DeviceIndex>(index));
    return new at::Generator(at::globalContext().defaultGenerator(on));
  })
}
PT_EXPORT void pt_generator_free(at::Generator* generator) { delete generator; }
PT_EXPORT int32_t pt_generator_seed(at::Generator* generator, uint64_t seed) {
  PT_TRY(-1, {
    std::lock_guard<std::mutex> lock(generator->mutex());
    generator->set_current_seed(seed);
    return 0;
  })
}
PT_EXPORT uint64_t pt_generator_initial_seed(at::Generator* generator) { return generator->current_seed(); }
PT_EXPORT uint64_t pt_generator_reseed(at::Generator* generator) { PT_TRY(0, {
  std::lock_guard<std::mutex> lock(generator->mutex());
  return generator->seed();
}) }
PT_EXPORT Handle pt_generator_state(at::Generator* generator) { PT_TRY(0, {
  std::lock_guard<std::mutex> lock(generator->mutex());
  return give(generator->get_state());
}) }
PT_EXPORT int32_t pt_generator_set_state(at::Generator* generator, Handle state) {
  PT_TRY(-1, {
    std::lock_guard<std::mutex> lock(generator->mutex());
    generator->set_state(borrow(state));
    return 0;
  })
}
PT_EXPORT int32_t pt_manual_seed(uint64_t seed) { PT_TRY(-1, { at::manual_seed(seed); return 0; }) }

// ---- threads and devices ----

PT_EXPORT int32_t pt_get_threads() { return at::get_num_threads(); }
PT_EXPORT int32_t pt_set_threads(int32_t count) { PT_TRY(-1, { at::set_num_threads(count); return 0; }) }
PT_EXPORT int32_t pt_get_interop_threads() { return static_cast<int32_t>(at::get_num_interop_threads()); }
PT_EXPORT int32_t pt_set_interop_threads(int32_t count) { PT_TRY(-1, { at::set_num_interop_threads(count); return 0; }) }

PT_EXPORT int32_t pt_device_count(int32_t device) {
  PT_TRY(0, {
    auto type = static_cast<c10::DeviceType>(device);
    return c10::impl::hasDeviceGuardImpl(type) ? static_cast<int32_t>(c10::impl::getDeviceGuardImpl(type)->deviceCount()) : 0;
  })
}
PT_EXPORT int32_t pt_synchronize(int32_t device, int32_t index) {
  PT_TRY(-1, {
    auto guard = c10::impl::getDeviceGuardImpl(static_cast<c10::DeviceType>(device));
    auto on = index < 0 ? guard->getDevice() : c10::Device(static_cast<c10::DeviceType>(device), static_cast<c10::DeviceIndex>(index));
    guard->synchronizeStream(guard->getStream(on));
    return 0;
  })
}
PT_EXPORT int32_t pt_deterministic(int32_t set, int32_t mode, int32_t warn_only) {
  auto& context = at::globalContext();
  if (set) context.setDeterministicAlgorithms(mode != 0, warn_only != 0);
  return context.deterministicAlgorithms() + 2 * context.deterministicAlgorithmsWarnOnly();
}
