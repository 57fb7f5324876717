// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The bridge's second half: backward, modes, and graph nodes whose backward is managed code.
#include "bridge.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <tuple>
#include <type_traits>

using namespace peft;
using torch::autograd::variable_list;

namespace {

// Managed entry points, set once. `apply` gets owned gradients and writes owned ones; -1 means that it failed.
using Apply = int32_t (*)(void* key, const Handle* grads, int32_t count, Handle* results, int32_t capacity);
using Release = void (*)(void* key);
Apply managed_apply = nullptr;
Release managed_release = nullptr;

struct ManagedNode : torch::autograd::Node {
  ManagedNode(void* key, int32_t inputs) : key(key), inputs(inputs) {}
  ~ManagedNode() override { managed_release(key); }

  variable_list apply(variable_list&& grads) override {
    std::vector<Handle> given(grads.size()), results(inputs, 0);
    for (size_t i = 0; i < grads.size(); i++) {
      if (!grads[i].defined() && materialize) grads[i] = input_metadata(i).zeros_like();
      given[i] = give(std::move(grads[i]));
    }
    int32_t made = managed_apply(key, given.data(), static_cast<int32_t>(given.size()), results.data(), inputs);
    if (made < 0) throw std::runtime_error("a custom function's backward failed");
    variable_list outputs;
    for (int32_t i = 0; i < made; i++) {
      outputs.push_back(borrow(results[i]));
      if (results[i]) c10::intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>::reclaim(reinterpret_cast<at::TensorImpl*>(results[i]));
    }
    return outputs;
  }

  void release_variables() override {
    for (auto& variable : saved) variable.reset_data();
    released = true;
  }

  void* key;
  int32_t inputs;
  bool materialize = true;
  bool released = false;
  std::vector<torch::autograd::SavedVariable> saved;
};

// Nodes are held by shared_ptr, and in later versions by libtorch's own intrusive_ptr. What names one kind stands in
// templates, so that it is not looked up where it does not exist.
using NodePointer = decltype(torch::autograd::Edge::function);
template <class Pointer>
constexpr bool is_shared = std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>;

template <class Pointer, class N = ManagedNode>
Pointer make_node(void* key, int32_t inputs) {
  if constexpr (is_shared<Pointer>) return Pointer(new N(key, inputs), [](auto* node) { deleteNode(node); });
  else return c10::make_intrusive<N>(key, inputs);
}

template <class Pointer, class N>
Pointer share_node(N* node) {
  if constexpr (is_shared<Pointer>) return node->shared_from_this();
  else return Pointer::reclaim_copy(node);
}

ManagedNode* managed(const NodePointer& node) { return static_cast<ManagedNode*>(node.get()); }

// What later libtorch versions want beyond the six arguments of 1.13, each by its type.
template <class T>
std::decay_t<T> extra() {
  if constexpr (std::is_same_v<std::decay_t<T>, std::function<at::Tensor(at::Tensor)>> ||
                std::is_same_v<std::decay_t<T>, std::function<at::Tensor(const at::Tensor&)>>)
    return [](const at::Tensor& x) { return x.view_as(x); };
  else
    return std::decay_t<T>{};
}

template <class Outputs, class B, class C, class D, class E, class F, class... More>
Outputs wrap_with(Outputs (*wrap)(const variable_list&, B, C, D, E, F, More...), const variable_list& inputs,
                  const std::unordered_set<at::TensorImpl*>& fixed, const std::unordered_set<at::TensorImpl*>& dirty,
                  const Handle* handles, int32_t count, const NodePointer& node) {
  Outputs outputs(count);
  for (int32_t i = 0; i < count; i++)
    if (handles[i]) outputs[i] = borrow(handles[i]);
  torch::autograd::_jvp_fn_t forward_mode = [](const variable_list&, const variable_list&) -> variable_list {
    throw std::runtime_error("forward-mode gradients of custom functions are not supported");
  };
  std::tuple<std::decay_t<More>...> rest{extra<More>()...};
  return std::apply([&](auto&... more) { return wrap(inputs, fixed, dirty, outputs, node, forward_mode, more...); }, rest);
}

std::unordered_set<at::TensorImpl*> set_of(const Handle* handles, int32_t count) {
  std::unordered_set<at::TensorImpl*> set;
  for (int32_t i = 0; i < count; i++) set.insert(reinterpret_cast<at::TensorImpl*>(handles[i]));
  return set;
}

variable_list defined(const Handle* handles, int64_t count) { return handles ? borrow_all(handles, count) : variable_list(); }

}  // namespace

// ---- gradients ----

PT_EXPORT int32_t pt_backward(const Handle* tensors, int64_t count, const Handle* grads, int64_t grad_count,
                              int32_t retain, int32_t create, const Handle* inputs, int64_t input_count) {
  PT_TRY(-1, {
    auto roots = borrow_all(tensors, count);
    auto seeds = defined(grads, grad_count);
    torch::autograd::backward(roots, seeds, retain != 0, create != 0, defined(inputs, input_count));
    return 0;
  })
}

PT_EXPORT int32_t pt_grad(const Handle* outputs, int64_t count, const Handle* inputs, int64_t input_count, const Handle* grads,
                          int64_t grad_count, int32_t retain, int32_t create, int32_t allow_unused, Handle* results) {
  PT_TRY(-1, {
    auto made = torch::autograd::grad(borrow_all(outputs, count), borrow_all(inputs, input_count), defined(grads, grad_count),
                                      retain != 0, create != 0, allow_unused != 0);
    for (size_t i = 0; i < made.size(); i++) results[i] = give(std::move(made[i]));
    return 0;
  })
}

PT_EXPORT int32_t pt_requires_grad(Handle handle) { return borrow(handle).requires_grad(); }
PT_EXPORT int32_t pt_set_requires_grad(Handle handle, int32_t value) { PT_TRY(-1, { borrow(handle).requires_grad_(value != 0); return 0; }) }
PT_EXPORT int32_t pt_is_leaf(Handle handle) { return borrow(handle).is_leaf(); }
PT_EXPORT int32_t pt_retain_grad(Handle handle) { PT_TRY(-1, { borrow(handle).retain_grad(); return 0; }) }
PT_EXPORT Handle pt_grad_of(Handle handle) { PT_TRY(0, { return give(borrow(handle).grad()); }) }
PT_EXPORT int32_t pt_set_grad(Handle handle, Handle grad) { PT_TRY(-1, { borrow(handle).mutable_grad() = borrow(grad); return 0; }) }
PT_EXPORT int64_t pt_version_of(Handle handle) { PT_TRY(-1, { return static_cast<int64_t>(borrow(handle)._version()); }) }

// ---- modes ----

PT_EXPORT int32_t pt_grad_mode() { return c10::GradMode::is_enabled(); }
PT_EXPORT void pt_set_grad_mode(int32_t on) { c10::GradMode::set_enabled(on != 0); }
PT_EXPORT int32_t pt_inference_mode() { return c10::InferenceMode::is_enabled(); }
PT_EXPORT void* pt_inference_enter(int32_t on) { return new c10::InferenceMode(on != 0); }
PT_EXPORT void pt_inference_leave(void* guard) { delete static_cast<c10::InferenceMode*>(guard); }
PT_EXPORT int32_t pt_anomaly(int32_t set, int32_t on, int32_t check_nan) {
  if (set) torch::autograd::AnomalyMode::set_enabled(on != 0, check_nan != 0);
  return torch::autograd::AnomalyMode::is_enabled() + 2 * torch::autograd::AnomalyMode::should_check_nan();
}

// ---- custom functions ----

PT_EXPORT void pt_set_callbacks(Apply apply, Release release) {
  managed_apply = apply;
  managed_release = release;
}

// Before forward: the node takes its place above its inputs. The caller owns one reference to it.
PT_EXPORT NodePointer* pt_node_new(void* key, const Handle* inputs, int32_t count, int32_t executable) {
  PT_TRY(nullptr, {
    auto node = make_node<NodePointer>(key, count);
    if (executable) node->set_next_edges(torch::autograd::collect_next_edges(borrow_all(inputs, count)));
    return new NodePointer(std::move(node));
  })
}

// After forward: outputs join the graph, tensors are saved. Results are new handles, one an output.
PT_EXPORT int32_t pt_node_finish(NodePointer* node, const Handle* inputs, int32_t count, const Handle* outputs, int32_t output_count,
                                 const Handle* fixed, int32_t fixed_count, const Handle* dirty, int32_t dirty_count,
                                 const Handle* saved, int32_t saved_count, int32_t executable, int32_t materialize, Handle* results) {
  PT_TRY(-1, {
    auto owner = managed(*node);
    auto changed = set_of(dirty, dirty_count);
    for (auto tensor : changed) tensor->bump_version();
    NodePointer graph;
    if (executable) graph = *node;
    auto wrapped = wrap_with(&torch::autograd::_wrap_outputs, borrow_all(inputs, count), set_of(fixed, fixed_count), changed, outputs, output_count, graph);
    for (int32_t i = 0; i < output_count; i++) results[i] = wrapped[i].has_value() ? give(std::move(*wrapped[i])) : 0;
    if (!executable) return 0;
    owner->materialize = materialize != 0;
    owner->saved.reserve(saved_count);
    for (int32_t i = 0; i < saved_count; i++) {
      auto tensor = borrow(saved[i]);
      bool is_output = tensor.defined() && tensor.grad_fn().get() == owner;
      if (tensor.defined()) owner->saved.emplace_back(tensor, is_output);
      else owner->saved.emplace_back();
    }
    return 0;
  })
}

PT_EXPORT void pt_node_free(NodePointer* node) { delete node; }
// For the managed side while a backward runs: the engine keeps the node alive.
PT_EXPORT ManagedNode* pt_node_raw(NodePointer* node) { return managed(*node); }
PT_EXPORT int32_t pt_node_saved(ManagedNode* node, int32_t index, Handle* result) {
  PT_TRY(-1, {
    TORCH_CHECK(!node->released, "Trying to backward through the graph a second time (or directly access saved tensors after they have already been freed).");
    *result = give(node->saved.at(index).unpack(share_node<NodePointer>(node)));
    return 0;
  })
}
