// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using TorchSharp;

namespace Microsoft.ML.Peft.Cli;

/// <summary>Which BLAS libtorch multiplies with, and how fast.</summary>
internal static class BlasReport
{
    /// <summary>GFLOP/s of a product of the size that small encoders need; the median of five.</summary>
    public static double Measure()
    {
        using var scope = torch.NewDisposeScope();
        torch.Tensor a = torch.rand(2048, 384), b = torch.rand(384, 1536);
        torch.mm(a, b).Dispose();
        var seconds = new double[5];
        for (int i = 0; i < seconds.Length; i++)
        {
            var clock = Stopwatch.StartNew();
            torch.mm(a, b).Dispose();
            seconds[i] = clock.Elapsed.TotalSeconds;
        }
        Array.Sort(seconds);
        return 2.0 * 2048 * 384 * 1536 / seconds[2] / 1e9;
    }

    /// <summary>The BLAS among the loaded libraries.</summary>
    public static string Loaded()
    {
        if (!OperatingSystem.IsLinux()) return "unknown";
        string[] found = [.. File.ReadLines("/proc/self/maps").Where(l => l.Contains("blas", StringComparison.OrdinalIgnoreCase) || l.Contains("mkl", StringComparison.OrdinalIgnoreCase))
            .Select(l => l[l.IndexOf('/')..]).Distinct().Select(p => Path.GetFileName(Path.GetDirectoryName(p)) + "/" + Path.GetFileName(p))];
        return found.Length == 0 ? "none (built in)" : string.Join(", ", found);
    }
}
