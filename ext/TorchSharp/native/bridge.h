// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// What the two halves of the bridge share: tensor handles, tagged values, the error of the thread.
#pragma once
#include <ATen/core/Tensor.h>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#define PT_EXPORT extern "C" __attribute__((visibility("default")))

namespace peft {

// A handle is a TensorImpl* that owns one reference; 0 is "no tensor".
using Handle = int64_t;

inline at::Tensor borrow(Handle handle) {
  if (handle == 0) return at::Tensor();
  using Pointer = c10::intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;
  return at::Tensor(Pointer::reclaim_copy(reinterpret_cast<at::TensorImpl*>(handle)));
}

inline Handle give(at::Tensor tensor) {
  return tensor.defined() ? reinterpret_cast<Handle>(tensor.unsafeReleaseTensorImpl()) : 0;
}

inline std::vector<at::Tensor> borrow_all(const Handle* handles, int64_t count) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(count);
  for (int64_t i = 0; i < count; i++) tensors.push_back(borrow(handles[i]));
  return tensors;
}

// An optional tensor, of the kind that this libtorch uses: its own one, and from 2.3 on the standard library's.
template <template <class> class Optional, class T>
Optional<at::Tensor> optional_like(Optional<T>);
template <class T>
using OptionalLike = decltype(optional_like(std::declval<T>()));

// Keeps the first line of what went wrong for the calling thread.
void set_error(const char* message);
void catch_error();

}  // namespace peft

// Runs a body; whatever it throws becomes the thread's error and the given result.
#define PT_TRY(failed, ...)                        \
  try {                                            \
    __VA_ARGS__                                    \
  } catch (...) {                                  \
    peft::catch_error();                           \
    return failed;                                 \
  }
