// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Bench;

/// <summary>How our time a token grows with rows, length, layers and threads.</summary>
internal sealed class Growth(string folder, Sides sides, int[] rows) : Section
{
    private static readonly int[] _lengths = [8, 16, 32, 64, 128, 256, 512], _layers = [1, 2, 3, 6, 12];
    private readonly List<(int Threads, double Train, double Score)> _threads = [];
    private Dictionary<string, double> _byRows = [], _byLength = [], _byLayers = [];

    public override void Begin()
    {
        Dictionary<string, double> Run(string kind, int[] values) => sides.Ours("growth-" + kind, folder, "--values", string.Join(',', values)).Report.Numbers;
        _byRows = Run("rows", rows);
        _byLength = Run("lengths", _lengths);
        _byLayers = Run("layers", _layers);
        string small = Preparation.Small(folder);
        for (int threads = 1; ; threads = Math.Min(2 * threads, sides.Threads))
        {
            Sides side = sides.With(threads);
            _threads.Add((threads, side.Ours("train", small, "--steps", "230", "--warmup", "138").Report.TokensPerSecond, side.Ours("score", small, "--warm", "3", "--seconds", "2").Report.TokensPerSecond));
            if (threads == sides.Threads) break;
        }
    }

    // It takes long, and its parts have turns of their own.
    public override void Round()
    {
    }

    public override IEnumerable<Verdict> Verdicts =>
        from kind in new[] { "train", "score" }
        from size in rows.Skip(1)
        select new Verdict($"{(kind == "train" ? "training" : "scoring")}, time a token: {size:N0} rows over {rows[0]:N0}", _byRows[$"{kind} {size}"] / _byRows[$"{kind} {rows[0]}"], Goals.Flat, AtMost: true);

    public override string Write() => $"""
        ## Growth

        This library in Float32, microseconds a token; measured once, with turns inside.

        Rows: whole calls of `Fit` (one epoch) and `Transform` over tables of short texts, through ML.NET's text loader, tokenizing, batches of like
        lengths and all; less what a call with 100 rows takes. Only the first layer of {Preparation.SmallName}, so that what is not the network weighs more.

        {Table("rows", rows, _byRows, rates: false)}

        Length of every sentence, all layers; in brackets GFLOP/s: attention's work grows with the length, and nothing else shall.

        {Table("tokens a sentence", _lengths, _byLength, rates: true)}

        Layers, of width 384, 32 sentences of 24 tokens:

        {Table("layers", _layers, _byLayers, rates: true)}

        Threads, {Preparation.SmallName}'s rows as above, tokens/s:

        | threads | {string.Join(" | ", _threads.Select(t => $"{t.Threads}"))} |
        |---|{string.Concat(_threads.Select(_ => "---:|"))}
        | training | {string.Join(" | ", _threads.Select(t => Over(t.Train, _threads[0].Train)))} |
        | scoring | {string.Join(" | ", _threads.Select(t => Over(t.Score, _threads[0].Score)))} |
        """;

    private static string Over(double value, double first) => FormattableString.Invariant($"{value:0} ({value / first:0.00})");

    private static string Table(string what, int[] values, Dictionary<string, double> numbers, bool rates)
    {
        string Cell(string kind, int value) => Figures.Short(numbers[$"{kind} {value}"]) + (rates ? $" ({Figures.Short(numbers[$"{kind} rate {value}"])})" : "");
        return FormattableString.Invariant($"""
            | {what} | {string.Join(" | ", values.Select(v => v.ToString("N0", System.Globalization.CultureInfo.InvariantCulture)))} |
            |---|{string.Concat(values.Select(_ => "---:|"))}
            | training | {string.Join(" | ", values.Select(v => Cell("train", v)))} |
            | scoring | {string.Join(" | ", values.Select(v => Cell("score", v)))} |
            """);
    }
}
