// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>A precision as <see cref="Precision.Auto"/> saw it.</summary>
/// <param name="Precision">The precision.</param>
/// <param name="Speedup">How many times faster than in float32 the frozen products are on this machine; null where that was not measured.</param>
/// <param name="Deviation">Root mean square of the scores' differences from those in float32, over the spread of those; null where nothing was scored.</param>
/// <param name="Agreement">Share of rows whose highest score is that of the same class; null where nothing was scored.</param>
public sealed record PrecisionTrial(Precision Precision, double? Speedup, double? Deviation, double? Agreement)
{
    /// <inheritdoc/>
    public override string ToString()
    {
        var invariant = CultureInfo.InvariantCulture;
        string speed = Speedup is { } times ? string.Create(invariant, $"products {times:0.00} times as fast") : "not measured";
        return $"{Precision}: {speed}" + (Deviation is { } off ? string.Create(invariant, $", scores {100 * off:0.0} % off, {100 * Agreement:0.#} % of the classes the same") : "");
    }
}

/// <summary>
/// What <see cref="Precision.Auto"/> chose and why. The speed is that of products with the shapes of the backbone's own frozen weights, weighted by how
/// many there are, measured for some milliseconds and kept for the process; what is around the products is not measured. A precision is taken where
/// it is at least <see cref="LeastSpeedup"/> times as fast and the scores of the sample, compared with those in float32, are off by no more than
/// <see cref="MostDeviation"/> of their spread, with <see cref="LeastAgreement"/> of the classes the same (while training, where the head knows
/// nothing yet and classes are nearly equal, the deviation alone counts).
/// </summary>
/// <param name="Precision">The precision that was chosen.</param>
/// <param name="Trials">Those that were looked at, the fastest first.</param>
/// <param name="Rows">Rows of the sample.</param>
public sealed record PrecisionChoice(Precision Precision, IReadOnlyList<PrecisionTrial> Trials, int Rows)
{
    /// <summary>Speed over float32 below which it is not worth it.</summary>
    public const double LeastSpeedup = 1.1;

    /// <summary>Root mean square of the differences of scores over their spread that is allowed.</summary>
    public const double MostDeviation = 0.1;

    /// <summary>Share of the sample's rows that must get the same class.</summary>
    public const double LeastAgreement = 0.95;

    /// <summary>Chooses.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="training">True where gradients of inputs are made, too.</param>
    /// <param name="rows">Rows of the sample.</param>
    /// <param name="score">Scores of the sample's rows, class by class, in a precision; as many in each.</param>
    internal static PrecisionChoice Make(Backbone backbone, bool training, int rows, Func<Precision, float[][]> score)
    {
        var trials = new List<PrecisionTrial>();
        float[][]? wide = null;
        foreach ((Precision precision, double? speedup) in Candidates(backbone, training))
        {
            if (speedup < LeastSpeedup)
            {
                trials.Add(new PrecisionTrial(precision, speedup, null, null));
                continue;
            }
            (double deviation, double agreement) = Compare(wide ??= score(Precision.Float32), score(precision));
            trials.Add(new PrecisionTrial(precision, speedup, deviation, agreement));
            if (deviation <= MostDeviation && (training || agreement >= LeastAgreement)) return new PrecisionChoice(precision, trials, rows);
        }
        return new PrecisionChoice(Precision.Float32, trials, rows);
    }

    // The fastest first.
    private static IEnumerable<(Precision Precision, double? Speedup)> Candidates(Backbone backbone, bool training)
    {
        // On a GPU both are bfloat16.
        if (backbone.Device.type == TorchSharp.DeviceType.CUDA) return [(Precision.BFloat16, null)];
        if (!NativeKernels.On) return [];
        Projection[] sites = [.. backbone.Sites.OfType<Projection>().Where(s => s.Packs)];
        if (sites.Length == 0) return [];
        double Seconds(Precision precision) => sites.GroupBy(s => (s.Out, s.In)).Sum(g => g.Count() * PrecisionSpeed.Seconds(g.First(), precision, training));
        double wide = Seconds(Precision.Float32);
        return new[] { Precision.BFloat16, Precision.Int8Frozen }.Where(p => p != Precision.BFloat16 || NativeKernels.HasBFloat16)
            .Select(p => (p, (double?)(wide / Seconds(p)))).OrderByDescending(p => p.Item2).ToArray();
    }

    /// <summary>How far scores are from others: root mean square over the spread of those, and the share of rows whose highest is of the same class.</summary>
    internal static (double Deviation, double Agreement) Compare(float[][] wide, float[][] narrow)
    {
        (float[] Wide, float[] Narrow)[] rows = [.. wide.Zip(narrow).Where(r => !r.First.Any(float.IsNaN))];
        if (rows.Length == 0) return (double.PositiveInfinity, 0);
        int classes = rows[0].Wide.Length;
        double[] means = [.. Enumerable.Range(0, classes).Select(c => rows.Length > 1 ? rows.Average(r => (double)r.Wide[c]) : 0)];
        double spread = rows.Sum(r => r.Wide.Select((v, c) => Math.Pow(v - means[c], 2)).Sum());
        double off = rows.Sum(r => r.Wide.Zip(r.Narrow, (a, b) => Math.Pow((double)a - b, 2)).Sum());
        int same = rows.Count(r => Array.IndexOf(r.Wide, r.Wide.Max()) == Array.IndexOf(r.Narrow, r.Narrow.Max()));
        double deviation = off == 0 ? 0 : Math.Sqrt(off / spread);
        return (double.IsNaN(deviation) ? double.PositiveInfinity : deviation, (double)same / rows.Length);
    }

    /// <inheritdoc/>
    public override string ToString() => Trials.Count == 0
        ? $"Auto chose {Precision}: no other has kernels here"
        : $"Auto chose {Precision}, by {Rows} rows: {string.Join("; ", Trials)}";
}
