// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>Bounds on gradients.</summary>
public static class GradientClip
{
    /// <summary>Length of a gradient over all its entries.</summary>
    /// <param name="gradient">Any tensor.</param>
    /// <param name="order">1, 2, or infinity for the largest absolute entry.</param>
    /// <returns>A single number on the gradient's device.</returns>
    public static Tensor Norm(Tensor gradient, double order = 2)
    {
        if (double.IsPositiveInfinity(order)) return gradient.abs().max();
        return order == 2 && NativeKernels.On && NativeKernels.Frozen(gradient)
            ? Root(SquareSum(gradient))
            : gradient.norm((float)order);
    }

    private static unsafe double SquareSum(Tensor gradient)
    {
        double sum;
        NativeKernels.Check(NativeKernels.Calls.SquareSum(NativeKernels.Pointer(gradient), gradient.numel(), &sum, get_num_threads()));
        GC.KeepAlive(gradient);
        return sum;
    }

    // Squares that float32 cannot hold would spoil second moments: as infinite as libtorch's sum of them.
    private static Tensor Root(double sum) => tensor(MathF.Sqrt((float)sum));

    /// <summary>The factor that brings a norm below a limit: <c>min(1, limit / (norm + 1e-6))</c>.</summary>
    /// <param name="norm">The norm.</param>
    /// <param name="limit">The limit.</param>
    public static double Factor(double norm, double limit) => Math.Min(1, limit / (norm + 1e-6));

    /// <summary>Scales a gradient in place so that its norm stays below a limit; one that is below keeps its bits.</summary>
    /// <param name="gradient">The gradient.</param>
    /// <param name="limit">The limit.</param>
    /// <param name="order">Order of the norm.</param>
    /// <returns>The norm before scaling.</returns>
    public static double ByNorm(Tensor gradient, double limit, double order = 2)
    {
        using var scope = NewDisposeScope();
        double norm = Norm(gradient, order).item<float>();
        gradient.mul_(Factor(norm, limit));
        return norm;
    }

    /// <summary>Cuts each entry in place to [-limit, limit].</summary>
    /// <param name="gradient">The gradient.</param>
    /// <param name="limit">The limit.</param>
    public static void ByValue(Tensor gradient, double limit) => gradient.clamp_(-limit, limit);
}
