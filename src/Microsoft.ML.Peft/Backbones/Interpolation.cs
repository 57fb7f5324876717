// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>Scaling of tables that lie on a grid: pixel centres (corners are not aligned), edges repeated, no antialias.</summary>
internal static class Interpolation
{
    /// <summary>Keys' kernel with a = -0.75 and four taps, as PyTorch's bicubic.</summary>
    public static (Func<double, double> Kernel, int Reach) Cubic { get; } = (x => x <= 1
        ? ((A + 2) * x - (A + 3)) * x * x + 1
        : (((x - 5) * x + 8) * x - 4) * A, 2);

    /// <summary>Straight lines between neighbours, as PyTorch's bilinear.</summary>
    public static (Func<double, double> Kernel, int Reach) Linear { get; } = (x => Math.Max(0, 1 - x), 1);

    private const double A = -0.75;

    /// <summary>Scales the last two axes.</summary>
    /// <param name="grid">Numbers <c>[..., rows, columns]</c>, float32.</param>
    /// <param name="rows">New number of rows.</param>
    /// <param name="columns">New number of columns.</param>
    /// <param name="by">The kernel.</param>
    /// <returns>Numbers <c>[..., new rows, new columns]</c>.</returns>
    public static Tensor Resize(Tensor grid, long rows, long columns, (Func<double, double> Kernel, int Reach) by)
    {
        Tensor down = Weights(grid.shape[^2], rows, by).to(grid.device), across = Weights(grid.shape[^1], columns, by).to(grid.device);
        return down.matmul(grid).matmul(across.t());
    }

    // [to, from]. Linear interpolation takes places before the first sample as the first; both kernels repeat edges then.
    private static Tensor Weights(long from, long to, (Func<double, double> Kernel, int Reach) by)
    {
        var weights = new float[to * from];
        for (long i = 0; i < to; i++)
        {
            double at = (i + 0.5) * from / to - 0.5, floor = Math.Floor(at);
            for (int tap = 1 - by.Reach; tap <= by.Reach; tap++)
                weights[i * from + (long)Math.Clamp(floor + tap, 0, from - 1)] += (float)by.Kernel(Math.Abs(at - floor - tap));
        }
        return tensor(weights, [to, from]);
    }
}
