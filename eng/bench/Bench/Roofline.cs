// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Bench;

/// <summary>How near training and scoring come to the speed of the products alone, and where the rest goes.</summary>
internal sealed class Roofline : Section
{
    private readonly string _folder;
    private readonly Sides _sides;
    private readonly string[] _precisions;
    private readonly Race _peaks, _train, _score;
    private Dictionary<string, Report> _kernels = [];
    private double _trainWork, _scoreWork;

    public Roofline(string folder, Sides sides, string[] precisions)
    {
        // Auto is one of the others, by choice.
        (_folder, _sides, _precisions) = (folder, sides, [.. precisions.Where(p => p != "Auto")]);
        _peaks = new Race("products", "GFLOP/s", [new Contender("all", ours: true, () => sides.Ours("peak", folder, "--precisions", string.Join(',', _precisions)))]);
        _train = new Race("training", "", [.. sides.Ours(_precisions, "train", folder, "--steps", "25")]);
        _score = new Race("scoring", "", [.. sides.Ours(_precisions, "score", folder)]);
    }

    public override void Begin()
    {
        using AdaptedModel model = Material.Load(_folder, dropout: false, Material.Init);
        Material train = Material.Read(_folder, "train"), score = Material.Read(_folder, "score");
        double Tokens(Material m, IEnumerable<int[]> batches) => batches.Sum(b => b.Sum(r => (double)m.Rows[r].Length));
        IEnumerable<int> Lengths(Material m, IEnumerable<int[]> batches) => batches.SelectMany(b => b).Select(r => m.Rows[r].Length);
        // The batches that are measured: training's first 25, less those to warm up.
        int[][] trained = [.. train.Batches.Take(25).Skip(3)];
        _trainWork = Work.Training(model.Backbone.Config, Lengths(train, trained)) / Tokens(train, trained);
        _scoreWork = Work.Scoring(model.Backbone.Config, Lengths(score, score.Batches)) / Tokens(score, score.Batches);
        _kernels = (from mode in new[] { "train", "score" } from precision in _precisions select (mode, precision))
            .ToDictionary(k => $"{k.mode} {k.precision}", k => _sides.Ours($"kernels-{k.mode}", _folder, "--precision", k.precision).Report);
    }

    public override void Round()
    {
        foreach (Race race in new[] { _peaks, _train, _score }) race.Round();
        Console.WriteLine($"products: {string.Join(", ", _peaks.Contenders[0].Rounds[^1].Report.Numbers.Select(n => FormattableString.Invariant($"{n.Key} {n.Value:0}")))} GFLOP/s");
    }

    public override IEnumerable<Verdict> Verdicts => [];

    private double Peak(string name) => _peaks.Contenders[0].Median(m => m.Report.Numbers[name]);

    public override string Write() => $"""
        ## Roofline, {Preparation.SmallName}

        A training step needs {_trainWork / 1e6:0.0} million operations a token, scoring {_scoreWork / 1e6:0.0}: products of frozen weights, attention and low-rank terms, real tokens only, in
        the last layer only what the first token's result needs, and in the backward pass only gradients that something asks for. Beside them
        the best single product of this library on this machine (2048 rows, widths of both networks; libtorch's own: {Peak("libtorch f32"):0} GFLOP/s in
        float32, {Peak("libtorch bf16"):0} in bfloat16).

        | GFLOP/s | best product | training | share | scoring | share |
        |---|---:|---:|---:|---:|---:|
        {string.Join('\n', _precisions.Select(Row))}

        {KernelTable()}
        """;

    private string Row(string precision)
    {
        double peak = Peak(precision);
        double train = _train[precision].Median(m => m.Report.TokensPerSecond) * _trainWork / 1e9, score = _score[precision].Median(m => m.Report.TokensPerSecond) * _scoreWork / 1e9;
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
            Where the time goes, by kernel: shares of all threads' samples in the second half of a run (`perf record`).

            | share of samples, % | {string.Join(" | ", _kernels.Keys.Select(k => k.Replace("train ", "training, ").Replace("score ", "scoring, ")))} |
            |---|{string.Concat(_kernels.Select(_ => "---:|"))}
            {string.Join('\n', names.Select(n => $"| {n} | {string.Join(" | ", _kernels.Values.Select(r => FormattableString.Invariant($"{r.Numbers.GetValueOrDefault(n):0.0}")))} |"))}
            """;
    }
}
