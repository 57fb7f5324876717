// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using TorchSharp.Bridge;

namespace TorchSharp;

/// <summary>What a managed backward threw, kept until the call that ran it comes back from native code.</summary>
internal static class CallbackFailure
{
    private static ExceptionDispatchInfo? s_last;

    internal static void Keep(Exception failure) => Interlocked.Exchange(ref s_last, ExceptionDispatchInfo.Capture(failure));

    internal static void Check(int result)
    {
        if (result >= 0)
            return;
        Interlocked.Exchange(ref s_last, null)?.Throw();
        throw Native.Error();
    }
}

public static partial class torch
{
    public static partial class autograd
    {
        /// <summary>What forward leaves for backward.</summary>
        public class AutogradContext : IDisposable
        {
            private readonly Dictionary<string, object?> _data = [];
            private List<Tensor> _saved = [];
            private int _savedCount;

            internal AutogradContext() { }

            // The graph's node while it runs backward: it owns the saved tensors.
            internal nint Node { get; set; }
            internal List<Tensor> Dirty { get; private set; } = [];
            internal List<Tensor> NonDifferentiable { get; private set; } = [];

            public bool MaterializeGrads { get; private set; } = true;

            public void save_for_backward(List<Tensor> tensors) => _saved = tensors;
            public void save_data(string key, object value) => _data[key] = value;
            public object? get_data(string key) => _data.GetValueOrDefault(key);
            public void mark_dirty(List<Tensor> tensors) => Dirty = [.. tensors];
            public void mark_non_differentiable(List<Tensor> tensors) => NonDifferentiable = [.. tensors];
            public void set_materialize_grads(bool value) => MaterializeGrads = value;

            /// <summary>The saved tensors, checked against changes in place since; null where null was saved.</summary>
            public unsafe List<Tensor> get_saved_variables()
            {
                var tensors = new List<Tensor>(_savedCount);
                for (int i = 0; i < _savedCount; i++)
                {
                    nint handle;
                    Native.Check(Native.pt_node_saved(Node, i, &handle));
                    tensors.Add(handle == 0 ? null! : new Tensor(handle));
                }
                return tensors;
            }

            // Once the graph holds them, the list would only keep the tensors' managed objects alive.
            internal nint[] TakeSaved()
            {
                nint[] handles = Handles(_saved);
                _savedCount = handles.Length;
                return handles;
            }

            internal void Forget()
            {
                _saved = [];
                Dirty = [];
                NonDifferentiable = [];
            }

            public void Dispose()
            {
                Dispose(true);
                GC.SuppressFinalize(this);
            }

            protected virtual void Dispose(bool disposing) => _data.Clear();
        }

        /// <summary>The managed half of a graph node: the native half holds it by a handle and frees that when the graph lets go.</summary>
        private sealed class Node
        {
            internal required Func<AutogradContext, List<Tensor>, List<Tensor>> Backward { get; init; }
            internal required string Name { get; init; }
            internal required bool[] IsTensor { get; init; }
            internal AutogradContext Context { get; } = new();
            internal nint Native { get; set; }

            static unsafe Node() => Bridge.Native.pt_set_callbacks(&Apply, &Release);

            [UnmanagedCallersOnly]
            private static void Release(nint key)
            {
                var handle = GCHandle.FromIntPtr(key);
                ((Node)handle.Target!).Context.Dispose();
                handle.Free();
            }

            [UnmanagedCallersOnly]
            private static unsafe int Apply(nint key, nint* grads, int count, nint* results, int capacity)
            {
                var given = new List<Tensor>(count);
                try
                {
                    var node = (Node)GCHandle.FromIntPtr(key).Target!;
                    for (int i = 0; i < count; i++)
                        given.Add(new Tensor(grads[i]));
                    var returned = node.Returned(node.Backward(node.Context, given));
                    for (int i = 0; i < returned.Count; i++)
                        results[i] = returned[i] is { IsInvalid: false } grad ? Bridge.Native.pt_share(grad.Handle) : 0;
                    return returned.Count;
                }
                catch (Exception failure)
                {
                    CallbackFailure.Keep(failure);
                    return -1;
                }
            }

            // One gradient an argument of forward; of these, the ones of tensors.
            private List<Tensor?> Returned(List<Tensor> grads)
            {
                if (grads.Count > IsTensor.Length && grads.Skip(IsTensor.Length).All(g => g is null || g.IsInvalid))
                    grads = grads.GetRange(0, IsTensor.Length);
                if (grads.Count != IsTensor.Length)
                    throw new NotImplementedException($"The backward of {Name} gave {grads.Count} gradients for {IsTensor.Length} inputs; give one an input, null where it needs none.");
                var ofTensors = new List<Tensor?>();
                for (int i = 0; i < grads.Count; i++)
                {
                    if (IsTensor[i])
                        ofTensors.Add(grads[i]);
                    else if (grads[i] is { IsInvalid: false })
                        throw new NotImplementedException($"The backward of {Name} gave a gradient for input {i + 1}, which is no tensor; give null there.");
                }
                return ofTensors;
            }
        }

        public abstract class Function<T> where T : Function<T>, new()
        {
            internal static T Instance { get; } = new();

            public abstract string Name { get; }

            internal abstract List<Tensor> ForwardAny(AutogradContext ctx, object[] vars);
            internal abstract List<Tensor> BackwardAny(AutogradContext ctx, List<Tensor> grads);

            /// <summary>Runs forward outside the graph and makes its outputs nodes of the graph.</summary>
            public static unsafe List<Tensor> apply_internal(params object[] vars)
            {
                var inputs = vars.OfType<Tensor>().Where(t => !t.IsInvalid).ToList();
                bool executable = is_grad_enabled() && inputs.Any(t => t.requires_grad);
                var node = new Node
                {
                    Backward = Instance.BackwardAny,
                    Name = Instance.Name,
                    IsTensor = [.. vars.Select(v => v is Tensor { IsInvalid: false })],
                };
                nint[] ins = Handles(inputs);
                nint native;
                fixed (nint* i = ins)
                    native = Native.Check(Native.pt_node_new(GCHandle.ToIntPtr(GCHandle.Alloc(node)), i, ins.Length, executable ? 1 : 0));
                try
                {
                    List<Tensor> outputs;
                    using (no_grad())
                        outputs = Instance.ForwardAny(node.Context, vars);
                    return Finish(node, native, ins, outputs, executable);
                }
                finally
                {
                    Native.pt_node_free(native);
                    GC.KeepAlive(inputs);
                }
            }

            private static unsafe List<Tensor> Finish(Node node, nint native, nint[] ins, List<Tensor> outputs, bool executable)
            {
                var context = node.Context;
                nint[] outs = Handles(outputs), plain = Handles(context.NonDifferentiable), dirty = Handles(context.Dirty);
                nint[] saved = context.TakeSaved(), results = new nint[outs.Length];
                fixed (nint* i = ins, o = outs, p = plain, d = dirty, s = saved, r = results)
                    Native.Check(Native.pt_node_finish(native, i, ins.Length, o, outs.Length, p, plain.Length, d, dirty.Length,
                        s, saved.Length, executable ? 1 : 0, context.MaterializeGrads ? 1 : 0, r));
                context.Node = Native.pt_node_raw(native);
                GC.KeepAlive(outputs);
                context.Forget();
                return results.Select(handle => new Tensor(handle)).ToList();
            }
        }

        public abstract class SingleTensorFunction<T> : Function<T> where T : SingleTensorFunction<T>, new()
        {
            public abstract Tensor forward(AutogradContext ctx, params object[] vars);
            public abstract List<Tensor> backward(AutogradContext ctx, Tensor grad_output);

            public static Tensor apply(params object[] vars) => apply_internal(vars)[0];

            internal sealed override List<Tensor> ForwardAny(AutogradContext ctx, object[] vars) => [forward(ctx, vars)];
            internal sealed override List<Tensor> BackwardAny(AutogradContext ctx, List<Tensor> grads) => backward(ctx, grads[0]);
        }

        public abstract class MultiTensorFunction<T> : Function<T> where T : MultiTensorFunction<T>, new()
        {
            public abstract List<Tensor> forward(AutogradContext ctx, params object[] vars);
            public abstract List<Tensor> backward(AutogradContext ctx, List<Tensor> grad_outputs);

            public static List<Tensor> apply(params object[] vars) => apply_internal(vars);

            internal sealed override List<Tensor> ForwardAny(AutogradContext ctx, object[] vars) => forward(ctx, vars);
            internal sealed override List<Tensor> BackwardAny(AutogradContext ctx, List<Tensor> grads) => backward(ctx, grads);
        }
    }
}
