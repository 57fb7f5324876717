// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Bench;

/// <summary>Training and scoring of one network: tokens a second, memory, and whether the same numbers come out.</summary>
internal sealed class Throughput : Section
{
    // What each side scores before it is measured, in which .NET compiles what runs often, and how long it is measured at least.
    public const int WarmSeconds = 4;
    private const int Seconds = 3;

    private readonly string _network, _folder;
    private readonly bool _hasGoals;
    private readonly int _steps, _lossSteps;
    private readonly Race _train, _score, _equal;

    public Throughput(string network, string folder, Sides sides, string[] precisions, int steps, int lossSteps, int rounds, bool hasGoals)
    {
        (_network, _folder, _hasGoals, _steps, _lossSteps, Rounds) = (network, folder, hasGoals, steps, lossSteps, rounds);
        string[] train = ["--steps", $"{steps}", "--warmup", $"{Warmup(steps)}"];
        string[] equal = ["--steps", $"{lossSteps}", "--warmup", "0", "--rate", "3e-3", "--dropout", "off"];
        _train = new Race($"training, {network}", "tokens/s", [.. sides.Ours(precisions, "train", folder, train), .. sides.Torch("train", folder, train)]);
        string[] score = ["--warm", $"{WarmSeconds}", "--seconds", $"{Seconds}"];
        _score = new Race($"scoring, {network}", "tokens/s", [.. sides.Ours(precisions, "score", folder, score), .. sides.Torch("score", folder, score), .. sides.Onnx("score", folder, WarmSeconds, Seconds)]);
        _equal = new Race("losses", "", [.. sides.Ours(precisions, "train", folder, equal), .. sides.Torch("train", folder, equal)]);
    }

    public override int Rounds { get; }

    /// <summary>Training, with the steps that are timed.</summary>
    public (Race Race, Range Steps) Training => (_train, Warmup(_steps).._steps);

    /// <summary>Scoring of all batches.</summary>
    public Race Scoring => _score;

    // Long enough for .NET to have compiled what runs often.
    private static int Warmup(int steps) => 3 * steps / 5;

    public override void Begin() => _equal.Round();

    public override void Round()
    {
        _train.Round();
        Console.WriteLine(_train.Last(Speed));
        _score.Round();
        Console.WriteLine(_score.Last(Speed));
    }

    public override (Report Ours, Report Theirs)? Libraries => (_train.Ours.First().First, _train.Theirs.First().First);

    public override IEnumerable<Verdict> Verdicts => !_hasGoals ? [] :
    [
        .. _train.Verdicts(Goals.Training, Speed),
        .. _score.Verdicts(Goals.Scoring, Speed),
        .. new Race($"peak memory of training, {_network}", "MiB", _train.Contenders).Verdicts(Goals.TrainingMemory, Memory, higher: false),
    ];

    private static double Speed(Measured m) => m.Report.TokensPerSecond;

    private static double SpeedOfCpu(Measured m) => m.Report.TokensPerCpuSecond;

    private static double Memory(Measured m) => m.Report.PeakMemoryMiB;

    public override string Write() => $"""
        ## {_network}

        LoRA of rank 8 (alpha 16, dropout 0.05) on query and value, batches of {Material.TrainBatch}, AdamW at 5e-4 with linear decay, dropout 0.1 as
        config.json says, {_steps} steps of which the first {Warmup(_steps)} are not timed, medians of {_train.Contenders[0].Rounds.Count} round(s). Scoring: {Rows.Length} rows, again and
        again, {WarmSeconds} seconds to warm up (.NET compiles what runs often) and at least {Seconds} that are timed, on every side; sorted by length, here in batches of
        the library's own choice, a core each, there {Material.ScoreBatch} a batch; LoRA beside the weights here and in PyTorch, merged in the file that ONNX Runtime reads. Tokens are real ones: padding does not count. Ratios above 1 are in this library's favour.

        {_train.Table(Speed)}

        {_score.Table(Speed)}
        {Choices()}

        Seconds suffer from whatever else runs on the machine; CPU seconds, those of all threads, do so less (waiting threads count, where they spin):

        {Renamed(_train, "tokens a CPU second").Table(SpeedOfCpu)}

        {Renamed(_score, "tokens a CPU second").Table(SpeedOfCpu)}

        Peak memory (VmHWM; ONNX Runtime's with Node's):

        {Renamed(_train, "MiB").Table(Memory, higher: false)}

        {Renamed(_score, "MiB").Table(Memory, higher: false)}

        The same numbers come out. Losses without dropout, {_lossSteps} steps at 3e-3 from the same values over the same batches; and with dropout
        (other random numbers on each side) in the timed runs:

        | losses | first | last (mean of up to five) | largest difference to {Sides.TorchFloat} | with dropout, last of each round |
        |---|---:|---:|---:|---|
        {string.Join('\n', _equal.Contenders.Select(LossRow))}

        | scores | largest difference to our Float32 | classes as our Float32 | accuracy |
        |---|---:|---:|---:|
        {string.Join('\n', _score.Contenders.Select(ScoreRow))}
        """;

    private string Choices() => string.Concat(
        from race in new[] { _train, _score }
        from contender in race.Ours
        from choice in contender.Rounds.Select(r => r.Report.Text).Where(t => t.Length > 0).GroupBy(Chosen)
        select $"\n{race.What}, {choice.Count()} of {contender.Rounds.Count} rounds: {choice.First()}.\n");

    // The figures differ each time.
    private static string Chosen(string reason) => reason.Split(',')[0];

    private static Race Renamed(Race race, string unit) => new(race.What, unit, race.Contenders);

    private Example[] Rows => [.. Material.Read(_folder, "score").InOrder];

    private static string Name(Contender c) => (c.Ours ? "this library, " : "") + c.Name;

    private string LossRow(Contender c)
    {
        double[] losses = c.First.Losses, theirs = _equal[Sides.TorchFloat].First.Losses;
        string last = string.Join(", ", _train[c.Name].Rounds.Select(r => FormattableString.Invariant($"{Last(r.Report.Losses):0.000}")));
        return FormattableString.Invariant($"| {Name(c)} | {losses[0]:0.0000} | {Last(losses):0.0000} | {losses.Zip(theirs, (a, b) => Math.Abs(a - b)).Max():0.0e+0} | {last} |");
    }

    private static double Last(double[] losses) => losses.TakeLast(5).Average();

    private string ScoreRow(Contender c)
    {
        float[] ours = _score.Contenders[0].First.Scores, scores = c.First.Scores;
        int[] labels = [.. Rows.Select(r => r.Label)];
        int[] classes = Classes(scores, labels.Length), wanted = Classes(ours, labels.Length);
        double gap = scores.Zip(ours, (a, b) => Math.Abs((double)a - b)).Max();
        return FormattableString.Invariant(
            $"| {Name(c)} | {gap:0.0e+0} | {100.0 * classes.Zip(wanted).Count(p => p.First == p.Second) / labels.Length:0.00} % | {(_hasGoals ? $"{100.0 * classes.Zip(labels).Count(p => p.First == p.Second) / labels.Length:0.0} %" : "random weights")} |");
    }

    private static int[] Classes(float[] scores, int rows) =>
        [.. scores.Chunk(scores.Length / rows).Select(row => Array.IndexOf(row, row.Max()))];
}
