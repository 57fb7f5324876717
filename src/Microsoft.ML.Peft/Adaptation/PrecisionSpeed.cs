// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>How long products with frozen weights take on this machine: measured once for a shape, a precision and a number of threads.</summary>
internal static class PrecisionSpeed
{
    private const int Rows = 128, Widest = 4096, Runs = 5;

    private static readonly Lock _gate = new();
    private static readonly Dictionary<(int Out, int In, int Threads, Precision Precision), double> _known = [];

    /// <summary>Seconds of a site's product with some rows; with that of its input's gradient where it trains.</summary>
    public static double Seconds(Projection site, Precision precision, bool training)
    {
        Precision usable = FrozenLinear.Usable(precision, site);
        double forward = Seconds(site.Out, site.In, usable);
        return training ? forward + Seconds(site.In, site.Out, usable) : forward;
    }

    private static double Seconds(int outWidth, int inWidth, Precision precision)
    {
        var key = (outWidth, inWidth, get_num_threads(), precision);
        using Lock.Scope alone = _gate.EnterScope();
        if (!_known.TryGetValue(key, out double seconds)) _known[key] = seconds = Measure(outWidth, inWidth, precision);
        return seconds;
    }

    // The best of a few: what else runs on the machine only makes it slower. Very wide maps are measured in part.
    private static unsafe double Measure(int outWidth, int inWidth, Precision precision)
    {
        using var scope = NewDisposeScope();
        (int o, int i) = (Math.Min(outWidth, Widest), Math.Min(inWidth, Widest));
        // No random numbers: those belong to the run.
        Tensor weight = ones([o, i]) * 0.01, x = ones([Rows, i]), y = empty([Rows, o], dtype: ScalarType.Float32);
        using PackedWeight packed = PackedWeight.Of(weight, transposed: false, precision);
        double best = double.MaxValue;
        for (int run = 0; run <= Runs; run++)
        {
            long began = Stopwatch.GetTimestamp();
            FrozenLinear.Run(new NativeProduct { Rows = Rows, Out = o, In = i, X = NativeKernels.Pointer(x), XRow = i, XIn = 1, Y = NativeKernels.Pointer(y), YRow = o }, packed);
            if (run > 0) best = Math.Min(best, Stopwatch.GetElapsedTime(began).TotalSeconds);
        }
        GC.KeepAlive(x);
        GC.KeepAlive(y);
        return best * outWidth / o * inWidth / i;
    }
}
