// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Report = Microsoft.ML.Peft.Bench.OurSide.Report;

namespace Microsoft.ML.Peft.Bench;

/// <summary>Runs both sides in turns, each measurement in a process of its own, and writes the medians.</summary>
internal sealed class Comparison(string folder, string python, string loop, string libraries, Arguments arguments)
{
    private readonly int _threads = arguments.Int("threads", Machine.Cores());
    private readonly int _rounds = arguments.Int("rounds", 3);
    private readonly int _steps = arguments.Int("steps", 40);
    private readonly int _scoreSteps = arguments.Int("score-steps", int.MaxValue);
    private readonly int _lossSteps = arguments.Int("loss-steps", 30);

    /// <summary>A report with the seconds from the start of the process to its first line.</summary>
    internal sealed record Measured(Report Report, double UntilFirstLine);

    /// <summary>One kind of measurement: ours and theirs, a round each.</summary>
    internal sealed record Series(List<Measured> Ours, List<Measured> Theirs)
    {
        public Series() : this([], [])
        {
        }
    }

    public int Run()
    {
        string before = Machine.LoadAverage();
        long began = Stopwatch.GetTimestamp();
        Series equal = new(), train = new(), score = new(), first = new();
        List<Measured> onnx = [];
        string? runtime = Environment.GetEnvironmentVariable("ONNXRUNTIME_NODE");
        if (runtime is not null) Start(python, [loop, "onnx", folder, "--backbone", Material.Backbone(folder, dropout: true), "--threads", $"{_threads}"]);
        Both(equal, "train", ["--steps", $"{_lossSteps}", "--warmup", "0", "--rate", "3e-3"], dropout: false);
        for (int round = 1; round <= _rounds; round++)
        {
            Both(train, "train", ["--steps", $"{_steps}"], dropout: true);
            Both(score, "score", ["--steps", $"{_scoreSteps}"], dropout: true);
            Both(first, "first", [], dropout: true);
            if (runtime is not null) onnx.Add(Start("node", [Path.Combine(Path.GetDirectoryName(loop)!, "onnx_score.mjs"), folder, $"{_threads}", "0", $"{_scoreSteps}"]));
            Console.WriteLine(FormattableString.Invariant(
                $"round {round}: train {Last(train, m => m.Report.TokensPerSecond)}, score {Last(score, m => m.Report.TokensPerSecond)} tokens/s, first prediction {Last(first, m => m.UntilFirstLine)} s"));
        }
        var results = new Results(
            File.ReadAllText(Path.Combine(folder, "name")), _threads, before, Machine.LoadAverage(),
            Stopwatch.GetElapsedTime(began).TotalSeconds, equal, train, score, first, onnx);
        string text = results.Write(), path = arguments.Text("out", Path.Combine(Path.GetDirectoryName(loop)!, "RESULTS.md"));
        Console.WriteLine(text);
        File.WriteAllText(path, text);
        return 0;
    }

    private static string Last(Series series, Func<Measured, double> value) => FormattableString.Invariant(
        $"{value(series.Ours[^1]):0.##} against {value(series.Theirs[^1]):0.##}");

    private void Both(Series series, string mode, string[] more, bool dropout)
    {
        string backbone = Material.Backbone(folder, dropout);
        string[] common = ["--threads", $"{_threads}", .. more];
        series.Ours.Add(Start(Environment.ProcessPath!, [mode, folder, "--dropout", dropout ? "on" : "off", .. common]));
        series.Theirs.Add(Start(python, [loop, mode, folder, "--backbone", backbone, .. common]));
    }

    private Measured Start(string program, string[] words)
    {
        var start = new ProcessStartInfo(program, words) { RedirectStandardOutput = true };
        // Both sides shall use the same BLAS; ours finds it by itself.
        if (libraries.Length > 0 && program == python) start.Environment["LD_LIBRARY_PATH"] = libraries;
        long began = Stopwatch.GetTimestamp();
        using Process process = Process.Start(start)!;
        string line = process.StandardOutput.ReadLine() ?? "";
        double seconds = Stopwatch.GetElapsedTime(began).TotalSeconds;
        process.WaitForExit();
        if (process.ExitCode != 0 || line.Length == 0)
            throw new InvalidOperationException($"{Path.GetFileName(program)} {words[0]} {words[1]} ended with code {process.ExitCode}.");
        return new Measured(JsonSerializer.Deserialize<Report>(line, Report.Form)!, seconds);
    }
}

/// <summary>The table and what stands around it.</summary>
internal sealed record Results(
    string Data, int Threads, string LoadBefore, string LoadAfter, double Seconds,
    Comparison.Series Equal, Comparison.Series Train, Comparison.Series Score, Comparison.Series First, List<Comparison.Measured> Onnx)
{
    public string Write() => $"""
        # Benchmark: this library beside a plain PyTorch loop in Python

        Written by `./eng/bench/run.sh`; numbers are medians of {Train.Ours.Count} rounds, in which both sides took turns, each measurement in a
        process of its own. all-MiniLM-L6-v2 in float32, LoRA of rank 8 (alpha 16, dropout 0.05) on query and value, batches of {Material.TrainBatch},
        AdamW at 5e-4 with linear decay, dropout 0.1 as config.json says. Scoring: rows sorted by length, {Material.ScoreBatch} a batch, LoRA not merged.
        Both sides read the same token ids, the same composition of batches and the same initial values from files, use
        {Threads} thread(s) and the same libtorch and BLAS. Tokens are real ones: padding does not count.

        | {Data} | this library | PyTorch | ratio |
        |---|---:|---:|---:|
        {Row("training, tokens/s", Train, m => m.Report.TokensPerSecond, "0", higher: true)}
        {Row("scoring, tokens/s", Score, m => m.Report.TokensPerSecond, "0", higher: true)}
        {Row("training, tokens a CPU second", Train, m => m.Report.TokensPerCpuSecond, "0", higher: true)}
        {Row("scoring, tokens a CPU second", Score, m => m.Report.TokensPerCpuSecond, "0", higher: true)}
        {Row("start of the process to the first prediction, s", First, m => m.UntilFirstLine, "0.00", higher: false)}
        {Row("peak memory of training (VmHWM), MiB", Train, m => m.Report.PeakMemoryMiB, "0", higher: false)}
        {Row("peak memory of scoring (VmHWM), MiB", Score, m => m.Report.PeakMemoryMiB, "0", higher: false)}

        A ratio above 1 is in this library's favour (the faster, the smaller). Seconds suffer from whatever else runs on the machine;
        CPU seconds, those of all threads, do so less. The single rounds, in order:

        | | this library | PyTorch |
        |---|---|---|
        {Rounds("training, tokens/s", Train, m => m.Report.TokensPerSecond, "0")}
        {Rounds("scoring, tokens/s", Score, m => m.Report.TokensPerSecond, "0")}
        {Rounds("training, tokens a CPU second", Train, m => m.Report.TokensPerCpuSecond, "0")}
        {Rounds("scoring, tokens a CPU second", Score, m => m.Report.TokensPerCpuSecond, "0")}
        {Rounds("first prediction, s", First, m => m.UntilFirstLine, "0.00")}

        ## The same numbers come out

        - Losses without dropout, {Equal.Ours[0].Report.Losses.Length} steps at 3e-3 from the same initial values over the same batches: largest difference between
          the two curves {LossGap():0.0e+0}; from {Equal.Ours[0].Report.Losses[0]:0.0000} to {Tail(Equal.Ours[0]):0.0000} (mean of the last five steps) here, {Equal.Theirs[0].Report.Losses[0]:0.0000} to {Tail(Equal.Theirs[0]):0.0000} there.
        - Losses with dropout (other random numbers on the two sides), mean of the last five steps of each round: {Tails(Train.Ours)} here, {Tails(Train.Theirs)} there.
        - Scores: largest difference between the {Score.Ours[0].Report.Scores.Length} scores of both sides {ScoreGap():0.0e+0}.

        ## The machine

        {Threads} thread(s) on {Machine.Cores()} cores; {Machine.InstructionSets()}. PyTorch {Theirs.Torch}; BLAS here {Ours.Blas}, there {Theirs.Blas};
        libtorch {(Ours.Library.Length > 0 && Ours.Library == Theirs.Library ? "is the same file on both sides" : "is NOT the same file on both sides")}. {DateTime.UtcNow.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture)}. Load average (1, 5, 15 minutes) before the run
        {LoadBefore}, after it {LoadAfter}; the run took {Seconds:0} s.

        {OnnxRuntime()}

        """;

    private string OnnxRuntime() => Onnx.Count == 0
        ? "ONNX Runtime beside it: set ONNXRUNTIME_NODE to a folder with the npm package onnxruntime-node."
        : FormattableString.Invariant($"""
        ONNX Runtime (npm's onnxruntime-node, the PyTorch side's network exported, LoRA not merged) scored {Median(Onnx.Select(m => m.Report.TokensPerSecond)):0} tokens/s in the same rounds:
        this library has {Median(Score.Ours.Select(m => m.Report.TokensPerSecond)) / Median(Onnx.Select(m => m.Report.TokensPerSecond)):0.00} of that. Largest difference of the scores {Onnx[0].Report.Scores.Zip(Score.Ours[0].Report.Scores, (a, b) => Math.Abs(a - b)).Max():0.0e+0}.
        """);

    private Report Ours => Train.Ours[0].Report;

    private Report Theirs => Train.Theirs[0].Report;

    private static double Median(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        return (sorted[sorted.Length / 2] + sorted[(sorted.Length - 1) / 2]) / 2;
    }

    private static string Row(string name, Comparison.Series series, Func<Comparison.Measured, double> value, string form, bool higher)
    {
        double ours = Median(series.Ours.Select(value)), theirs = Median(series.Theirs.Select(value));
        return FormattableString.Invariant($"| {name} | {ours.ToString(form, CultureInfo.InvariantCulture)} | {theirs.ToString(form, CultureInfo.InvariantCulture)} | **{(higher ? ours / theirs : theirs / ours):0.00}** |");
    }

    private static string Rounds(string name, Comparison.Series series, Func<Comparison.Measured, double> value, string form)
    {
        string Join(List<Comparison.Measured> side) => string.Join(", ", side.Select(m => value(m).ToString(form, CultureInfo.InvariantCulture)));
        return $"| {name} | {Join(series.Ours)} | {Join(series.Theirs)} |";
    }

    private double LossGap() => Equal.Ours[0].Report.Losses.Zip(Equal.Theirs[0].Report.Losses, (a, b) => Math.Abs(a - b)).Max();

    private double ScoreGap() => Score.Ours[0].Report.Scores.Zip(Score.Theirs[0].Report.Scores, (a, b) => Math.Abs(a - b)).Max();

    private static double Tail(Comparison.Measured measured) => measured.Report.Losses.TakeLast(5).Average();

    private static string Tails(List<Comparison.Measured> side) =>
        string.Join(", ", side.Select(m => Tail(m).ToString("0.000", CultureInfo.InvariantCulture)));
}
