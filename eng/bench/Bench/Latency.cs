// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Bench;

/// <summary>One sentence at a time.</summary>
internal sealed class Latency : Section
{
    public const string Engine = "PredictionEngine, ", Core = "without ML.NET, ";
    private readonly Race _race;

    public Latency(string folder, Sides sides, string[] precisions) => _race = new Race("one sentence at a time", "median ms",
    [
        .. precisions.Select(p => new Contender(Engine + p, ours: true, () => sides.Ours("latency-zip", folder, "--precision", p, "--warm", $"{Throughput.WarmSeconds}"))),
        .. precisions.Select(p => new Contender(Core + p, ours: true, () => sides.Ours("latency", folder, "--precision", p, "--warm", $"{Throughput.WarmSeconds}"))),
        .. sides.Torch("latency", folder, "--warm", $"{Throughput.WarmSeconds}"),
        .. sides.Onnx("latency", folder, Throughput.WarmSeconds),
    ]);

    public override void Round()
    {
        _race.Round();
        Console.WriteLine(_race.Last(Median));
    }

    public override IEnumerable<Verdict> Verdicts => _race.Verdicts(Goals.Latency, Median, higher: false);

    private static double Median(Measured m) => Figures.Median(m.Report.Milliseconds);

    private static double Slow(Measured m) => Figures.Share(m.Report.Milliseconds, 0.95);

    public override string Write() => $"""
        ## One sentence at a time

        {OurSide.Calls} sentences of {Preparation.SmallName}'s, one call each, after {Throughput.WarmSeconds} seconds of such calls to warm up, on every side. `PredictionEngine` on the model zip starts from the text: its time has
        ML.NET and the tokenizer in it. The others get token ids. ONNX Runtime is called from Node, whose calls are asynchronous.

        {_race.Table(Median, higher: false)}

        {new Race(_race.What, "95th percentile, ms", _race.Contenders).Table(Slow, higher: false)}

        Largest difference of the probabilities to {Core}Float32: {string.Join(", ", _race.Contenders.Select(Gap))}.
        """;

    private string Gap(Contender c) => FormattableString.Invariant(
        $"{c.Name} {c.First.Scores.Zip(_race[Core + "Float32"].First.Scores, (a, b) => Math.Abs((double)a - b)).Max():0.0e+0}");
}

/// <summary>From the start of the process to its first prediction.</summary>
internal sealed class Start : Section
{
    public const string Folder = "token ids, safetensors", FromZip = "text, model zip through ML.NET";
    private readonly Race _race;

    public Start(string folder, Sides sides) => _race = new Race("start to first prediction", "s",
    [
        new Contender(Folder, ours: true, () => sides.Ours("first", folder)),
        new Contender(FromZip, ours: true, () => sides.Ours("first-zip", folder)),
        new Contender(Sides.TorchFloat, ours: false, () => sides.Torch("first", folder, autocast: false)),
        .. sides.Onnx("first", folder).Take(1),
    ]);

    public override void Round()
    {
        _race.Round();
        Console.WriteLine(_race.Last(Seconds));
    }

    public override IEnumerable<Verdict> Verdicts => _race.Verdicts(Goals.Start, Seconds, higher: false);

    private static double Seconds(Measured m) => m.UntilFirstLine;

    public override string Write() => $"""
        ## Start

        From the start of the process to its first prediction. PyTorch's side imports torch alone, no transformers and no tokenizer, and reads
        the same safetensors file as our first row does.

        {_race.Table(Seconds, higher: false)}
        """;
}
