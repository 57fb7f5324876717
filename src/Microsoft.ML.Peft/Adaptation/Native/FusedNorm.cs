// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static Microsoft.ML.Peft.Adaptation.NativeKernels;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>A norm over the last axis with frozen numbers, and the sum before it, in one reading; the graph keeps the sum alone.</summary>
internal static unsafe class FusedNorm
{
    /// <summary>True where the kernel can take libtorch's place.</summary>
    public static bool Fits(Tensor x, Tensor? add, Tensor weight, Tensor? bias) => On && NativeKernels.Fits(x) && Frozen(weight) && (bias is null || Frozen(bias))
        && (add is null || (NativeKernels.Fits(add) && add.shape.AsSpan().SequenceEqual(x.shape)));

    /// <summary><c>norm(x + add)</c>.</summary>
    /// <param name="x">Input <c>[..., width]</c>.</param>
    /// <param name="add">Added to it, or null.</param>
    /// <param name="weight">Scale <c>[width]</c>.</param>
    /// <param name="bias">Shift <c>[width]</c>, or null.</param>
    /// <param name="epsilon">Added to the variance or mean square.</param>
    /// <param name="rootMeanSquare">True for the form that divides by the root of the mean square.</param>
    public static Tensor Apply(Tensor x, Tensor? add, Tensor weight, Tensor? bias, double epsilon, bool rootMeanSquare)
    {
        x = Contiguous(x);
        add = add is null ? null : Contiguous(add);
        var call = new Call(weight, bias, (float)epsilon, rootMeanSquare, add is not null);
        if (!is_grad_enabled() || !(x.requires_grad || add is { requires_grad: true })) return Forward(call, x, add, null);
        return add is null ? Function.apply(call, x) : Function.apply(call, x, add);
    }

    private sealed record Call(Tensor Weight, Tensor? Bias, float Epsilon, bool RootMeanSquare, bool Sums)
    {
        public NativeNorm Norm(Tensor x) => new()
        {
            Rows = x.numel() / Weight.shape[0],
            Width = Weight.shape[0],
            X = Pointer(x),
            Weight = Pointer(Weight),
            Bias = Bias is null ? null : Pointer(Bias),
            Epsilon = Epsilon,
            RootMeanSquare = RootMeanSquare ? 1 : 0,
            Threads = get_num_threads(),
        };
    }

    private static Tensor Forward(Call call, Tensor x, Tensor? add, Tensor? sum)
    {
        Tensor y = empty(x.shape, dtype: ScalarType.Float32);
        NativeNorm norm = call.Norm(x);
        norm.Add = add is null ? null : Pointer(add);
        norm.Sum = sum is null ? null : Pointer(sum);
        norm.Y = Pointer(y);
        Check(Calls.NormForward(&norm));
        GC.KeepAlive(x);
        GC.KeepAlive(add);
        return y;
    }

    private sealed class Function : autograd.SingleTensorFunction<Function>
    {
        public override string Name => nameof(FusedNorm);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var (call, x) = ((Call)vars[0], (Tensor)vars[1]);
            Tensor? sum = call.Sums ? empty(x.shape, dtype: ScalarType.Float32) : null;
            Tensor y = Forward(call, x, call.Sums ? (Tensor)vars[2] : null, sum);
            ctx.save_data("call", call);
            ctx.save_for_backward([sum ?? x, call.Weight]);
            return y;
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            using var scope = NewDisposeScope();
            var call = (Call)ctx.get_data("call")!;
            List<Tensor> saved = ctx.get_saved_variables();
            // The numbers as the graph holds them: a patch may have made them for this pass.
            call = call with { Weight = saved[1], Bias = null };
            Tensor sum = saved[0], given = Contiguous(grad_output), below = empty(sum.shape, dtype: ScalarType.Float32);
            NativeNorm norm = call.Norm(sum);
            norm.DY = Pointer(given);
            norm.DX = Pointer(below);
            Check(Calls.NormBackward(&norm));
            scope.MoveToOuter(below);
            return call.Sums ? [null!, below, below] : [null!, below];
        }
    }
}
