// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    public partial class Tensor
    {
        public bool requires_grad
        {
            get => Native.pt_requires_grad(Handle) != 0;
            set => Native.Check(Native.pt_set_requires_grad(Handle, value ? 1 : 0));
        }

        public bool is_leaf => Native.pt_is_leaf(Handle) != 0;

        /// <summary>The accumulated gradient, a new object each time, or null.</summary>
        public Tensor? grad
        {
            get => Native.pt_grad_of(Handle) is var handle and not 0 ? new Tensor(handle) : null;
            set => Native.Check(Native.pt_set_grad(Handle, value?.Handle ?? 0));
        }

        public Tensor requires_grad_(bool requires_grad = true)
        {
            this.requires_grad = requires_grad;
            return this;
        }

        public Tensor with_requires_grad(bool requires_grad = true) => requires_grad_(requires_grad);
        public void retain_grad() => Native.Check(Native.pt_retain_grad(Handle));
        public void backward() => autograd.backward([this]);
    }

    public static partial class autograd
    {
        public static void backward(Tensor tensor, IList<Tensor>? grad_tensors = null, bool? retain_graph = null, bool create_graph = false, IList<Tensor>? inputs = null) =>
            backward([tensor], grad_tensors, retain_graph, create_graph, inputs);

        public static void backward(Tensor tensor, Tensor grad_tensor, bool? retain_graph = null, bool create_graph = false, IList<Tensor>? inputs = null) =>
            backward([tensor], [grad_tensor], retain_graph, create_graph, inputs);

        public static unsafe void backward(IList<Tensor> tensors, IList<Tensor>? grad_tensors = null, bool? retain_graph = null, bool create_graph = false, IList<Tensor>? inputs = null)
        {
            nint[] roots = Handles(tensors), grads = Handles(grad_tensors), leaves = Handles(inputs);
            fixed (nint* r = roots, g = grads, l = leaves)
            {
                int result = Native.pt_backward(r, roots.Length, g, grads.Length, (retain_graph ?? create_graph) ? 1 : 0, create_graph ? 1 : 0, l, leaves.Length);
                CallbackFailure.Check(result);
            }
            GC.KeepAlive(tensors);
            GC.KeepAlive(grad_tensors);
            GC.KeepAlive(inputs);
        }

        /// <summary>Gradients of the outputs for the inputs; an unused input, where allowed, gives an invalid tensor.</summary>
        public static unsafe IList<Tensor> grad(IList<Tensor> outputs, IList<Tensor> inputs, IList<Tensor>? grad_outputs = null, bool retain_graph = false, bool create_graph = false, bool allow_unused = false)
        {
            nint[] roots = Handles(outputs), leaves = Handles(inputs), seeds = Handles(grad_outputs), results = new nint[leaves.Length];
            fixed (nint* o = roots, i = leaves, g = seeds, r = results)
            {
                int result = Native.pt_grad(o, roots.Length, i, leaves.Length, g, seeds.Length, retain_graph ? 1 : 0, create_graph ? 1 : 0, allow_unused ? 1 : 0, r);
                CallbackFailure.Check(result);
            }
            GC.KeepAlive(outputs);
            GC.KeepAlive(inputs);
            GC.KeepAlive(grad_outputs);
            return results.Select(handle => new Tensor(handle)).ToList();
        }

        public static AnomalyMode detect_anomaly(bool check_nan = true) => new(true, check_nan);
        public static AnomalyMode set_detect_anomaly(bool mode, bool check_nan = true) => new(mode, check_nan);

        internal static nint[] Handles(IEnumerable<Tensor?>? tensors) => tensors?.Select(t => t is null || t.IsInvalid ? 0 : t.Handle).ToArray() ?? [];
    }

    // A mode of the thread that goes back at the end of a using block.
    private sealed class GradMode : IDisposable
    {
        private readonly int _before = Native.pt_grad_mode();

        internal GradMode(bool on) => Native.pt_set_grad_mode(on ? 1 : 0);
        public void Dispose() => Native.pt_set_grad_mode(_before);
    }

    private sealed class InferenceMode(bool on) : IDisposable
    {
        private nint _guard = Native.pt_inference_enter(on ? 1 : 0);

        public void Dispose()
        {
            if (_guard != 0)
                Native.pt_inference_leave(_guard);
            _guard = 0;
        }
    }

    public static IDisposable no_grad() => new GradMode(false);
    public static IDisposable enable_grad(bool enabled = true) => new GradMode(enabled);
    public static IDisposable set_grad_enabled(bool mode = true) => new GradMode(mode);
    public static bool is_grad_enabled() => Native.pt_grad_mode() != 0;
    public static IDisposable inference_mode(bool mode = true) => new InferenceMode(mode);
    public static bool is_inference_mode_enabled() => Native.pt_inference_mode() != 0;
}

/// <summary>Anomaly detection of backward while the object lives.</summary>
public class AnomalyMode : IDisposable
{
    private readonly int _before;

    public AnomalyMode(bool enabled, bool check_nan = true)
    {
        _before = Native.pt_anomaly(0, 0, 0);
        Native.pt_anomaly(1, enabled ? 1 : 0, check_nan ? 1 : 0);
    }

    public static bool IsEnabled => (Native.pt_anomaly(0, 0, 0) & 1) != 0;
    public static bool ShouldCheckNaN => (Native.pt_anomaly(0, 0, 0) & 2) != 0;

    public void Dispose()
    {
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    protected virtual void Dispose(bool disposing) => Native.pt_anomaly(1, _before & 1, _before >> 1);
}
