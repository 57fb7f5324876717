// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Bench;

/// <summary>How near training and scoring come to the speed of the products alone, and where the rest goes.</summary>
internal sealed class Roofline : Section
{
    private readonly string _folder;
    private readonly Sides _sides;
    private readonly string[] _precisions;
    private readonly Throughput _measured;
    private readonly bool _alone;
    private Dictionary<string, double> _peaks = [];
    private Dictionary<string, Report> _kernels = [];
    private double _trainWork, _scoreWork;

    /// <param name="folder">The network's folder.</param>
    /// <param name="sides">Starts the processes.</param>
    /// <param name="precisions">Ours.</param>
    /// <param name="measured">Training and scoring of the network.</param>
    /// <param name="alone">True where that is no section of this run, and is measured here.</param>
    public Roofline(string folder, Sides sides, string[] precisions, Throughput measured, bool alone)
    {
        // Auto is one of the others, by choice.
        (_folder, _sides, _precisions, _measured, _alone) = (folder, sides, [.. precisions.Where(p => p != "Auto")], measured, alone);
    }

    public override void Begin()
    {
        using AdaptedModel model = Material.Load(_folder, dropout: false, Material.Init);
        Material train = Material.Read(_folder, "train"), score = Material.Read(_folder, "score");
        static IEnumerable<int> Lengths(Material m, IEnumerable<int[]> batches) => batches.SelectMany(b => b).Select(r => m.Rows[r].Length);
        int[] trained = [.. Lengths(train, train.Batches.ToArray()[_measured.Training.Steps])], scored = [.. Lengths(score, score.Batches)];
        _trainWork = Work.Training(model.Backbone.Config, trained) / trained.Sum();
        _scoreWork = Work.Scoring(model.Backbone.Config, scored) / scored.Sum();
        _peaks = _sides.Ours("peak", _folder, "--precisions", string.Join(',', _precisions)).Report.Numbers;
        _kernels = (from mode in new[] { "train", "score" } from precision in _precisions select (mode, precision))
            .ToDictionary(k => $"{k.mode} {k.precision}", k => _sides.Ours($"kernels-{k.mode}", _folder, "--precision", k.precision).Report);
        Console.WriteLine($"products: {string.Join(", ", _peaks.Select(n => FormattableString.Invariant($"{n.Key} {n.Value:0}")))} GFLOP/s");
    }

    public override void Round()
    {
        if (_alone) _measured.Round();
    }

    public override IEnumerable<Verdict> Verdicts => [];

    public override string Write() => $"""
        ## Roofline, {Preparation.SmallName}

        A training step needs {_trainWork / 1e6:0.0} million operations a token, scoring {_scoreWork / 1e6:0.0}: products of frozen weights, attention and low-rank terms, real tokens only, in
        the last layer only what the first token's result needs, and in the backward pass only gradients that something asks for. Beside them
        the best single product of this library on this machine (2048 rows, widths of both networks; libtorch's own: {_peaks["libtorch f32"]:0} GFLOP/s in
        float32, {_peaks["libtorch bf16"]:0} in bfloat16).

        | GFLOP/s | best product | training | share | scoring | share |
        |---|---:|---:|---:|---:|---:|
        {string.Join('\n', _precisions.Select(Row))}

        {KernelTable()}
        """;

    private string Row(string precision)
    {
        double Rate(Race race, double work) => race[precision].Median(m => m.Report.TokensPerSecond) * work / 1e9;
        double peak = _peaks[precision], train = Rate(_measured.Training.Race, _trainWork), score = Rate(_measured.Scoring, _scoreWork);
        return FormattableString.Invariant($"| {precision} | {peak:0} | {train:0} | {100 * train / peak:0} % | {score:0} | {100 * score / peak:0} % |");
    }

    private string KernelTable()
    {
        if (_kernels.Values.FirstOrDefault(r => r.Numbers.Count == 0) is { } timed) return $"""
            Where the time goes, part by part (perf is not here; with it this is a table of kernels):

            ```
            {timed.Text.TrimEnd()}
            ```
            """;
        string[] names = [.. _kernels.Values.SelectMany(r => r.Numbers.Keys).Distinct().OrderByDescending(n => _kernels.Values.Sum(r => r.Numbers.GetValueOrDefault(n)))];
        return $"""
            Where the time goes, by kernel: shares of all threads' samples (`perf record`), after as long a run before.

            | share of samples, % | {string.Join(" | ", _kernels.Keys.Select(k => k.Replace("train ", "training, ").Replace("score ", "scoring, ")))} |
            |---|{string.Concat(_kernels.Select(_ => "---:|"))}
            {string.Join('\n', names.Select(n => $"| {n} | {string.Join(" | ", _kernels.Values.Select(r => FormattableString.Invariant($"{r.Numbers.GetValueOrDefault(n):0.0}")))} |"))}
            """;
    }
}
