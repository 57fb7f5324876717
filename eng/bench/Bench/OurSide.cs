// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Bench;

/// <summary>One measurement of this library, in a process of its own; the same modes as <c>pytorch_loop.py</c>, and those of the model zip.</summary>
internal static class OurSide
{
    /// <summary>Calls that are timed one by one, after as many rounds of them as fill the warm-up.</summary>
    public const int Calls = 300;

    public static string Run(string mode, string folder, Arguments arguments)
    {
        Precision precision = Enum.Parse<Precision>(arguments.Text("precision", nameof(Precision.Float32)), ignoreCase: true);
        Report report = mode.EndsWith("-zip", StringComparison.Ordinal) ? WithZip(mode, folder, precision, arguments) : WithModel(mode, folder, precision, arguments);
        return report.Line();
    }

    private static Report WithModel(string mode, string folder, Precision precision, Arguments arguments)
    {
        set_num_threads(arguments.Int("threads", get_num_threads()));
        bool train = mode == "train";
        using AdaptedModel model = Material.Load(folder, arguments.Text("dropout", "on") == "on", train ? Material.Init : Material.Trained);
        Material material = Material.Read(folder, train ? "train" : "score");
        int[][] batches = [.. material.Batches.Take(arguments.Int("steps", int.MaxValue))];
        int warmup = arguments.Int("warmup", 3);
        if (train) return Train(model, precision, material.Rows, batches, warmup, arguments.Number("rate", 5e-4));
        string chosen = "";
        if (precision != Precision.Auto) model.Precision = precision;
        else chosen = model.ChoosePrecision(Tokens(model, material.Rows, batches[batches.Length / 2])).ToString();
        Report report = mode switch
        {
            "score" => Score(model, material.Rows, batches, arguments.Number("warm", 1), arguments.Number("seconds", 1)),
            "latency" => Latency(material.Rows.Take(Calls), row => Probabilities(model, row), arguments),
            "first" => new Report { Scores = Probabilities(model, material.Rows[0]) },
            _ => throw new ArgumentException($"There is no mode '{mode}'."),
        };
        return report with { Text = chosen };
    }

    /// <summary>The library's own trainer over batches that are given; seconds and tokens count from the end of the warm-up steps.</summary>
    public static Report Train(AdaptedModel model, Precision precision, IReadOnlyList<Example> rows, int[][] batches, int warmup, double rate)
    {
        long began = Stopwatch.GetTimestamp();
        TimeSpan cpu = Environment.CpuUsage.TotalTime;
        var options = new TrainingOptions
        {
            MaxSteps = batches.Length,
            BatchSize = batches[0].Length,
            LearningRate = rate,
            WeightDecay = 0,
            PadToMultiple = 1,
            Seed = 1,
            Precision = precision,
        };
        var trainer = new Trainer(options)
        {
            PlanBatches = (all, o) => new GivenBatches(all, o, batches),
            AfterStep = step =>
            {
                if (step == warmup) (began, cpu) = (Stopwatch.GetTimestamp(), Environment.CpuUsage.TotalTime);
            },
        };
        int classes = ((SequenceClassificationHead)model.Head).Outputs;
        TrainingResult result = trainer.Fit(model, rows, null, new CrossEntropyObjective(classes));
        double seconds = Stopwatch.GetElapsedTime(began).TotalSeconds;
        return new Report
        {
            Losses = [.. result.Losses],
            Text = result.PrecisionReason ?? "",
            Tokens = batches.Skip(warmup).Sum(b => b.Sum(r => (long)rows[r].Length)),
            Seconds = seconds,
            CpuSeconds = (Environment.CpuUsage.TotalTime - cpu).TotalSeconds,
        };
    }

    private sealed class GivenBatches(IReadOnlyList<Example> rows, TrainingOptions options, int[][] batches) : BatchPlan(rows, options)
    {
        public override int MicroBatchesAnEpoch => batches.Length;

        public override IReadOnlyList<int[]> Epoch(int epoch) => batches;
    }

    /// <summary>
    /// Scores of the rows by the library's own batches, pass after pass: passes until the warm-up is over, then as many as fill the
    /// time that is measured.
    /// </summary>
    public static Report Score(AdaptedModel model, IReadOnlyList<Example> rows, int[][] batches, double warmup, double seconds)
    {
        Example[] all = [.. batches.SelectMany(b => b).Select(r => rows[r])];
        ClassScores[] Pass() => LengthBatches.Score(model.Backbone, all, (tokens, _) => model.Forward(tokens, new Pass(model.Patches)));
        Passes(Pass, warmup);
        long began = Stopwatch.GetTimestamp();
        TimeSpan cpu = Environment.CpuUsage.TotalTime;
        (ClassScores[] scores, int passes) = Passes(Pass, seconds);
        return new Report
        {
            Seconds = Stopwatch.GetElapsedTime(began).TotalSeconds,
            CpuSeconds = (Environment.CpuUsage.TotalTime - cpu).TotalSeconds,
            Scores = [.. scores.SelectMany(s => s.Logits)],
            Tokens = passes * all.Sum(row => (long)row.Length),
        };
    }

    private static (ClassScores[] Scores, int Passes) Passes(Func<ClassScores[]> pass, double seconds)
    {
        ClassScores[] scores = [];
        int passes = 0;
        for (long began = Stopwatch.GetTimestamp(); passes == 0 || Stopwatch.GetElapsedTime(began).TotalSeconds < seconds; passes++) scores = pass();
        return (scores, passes);
    }

    private static TokenBatch Tokens(AdaptedModel model, IReadOnlyList<Example> rows, int[] batch) =>
        MiniBatch.ToTokens(BatchArrays.Of(Array.ConvertAll(batch, r => rows[r]), model.Backbone.Config, 1), CPU);

    // What the transformer calls for a row, less ML.NET and the tokenizer.
    private static float[] Probabilities(AdaptedModel model, Example row) =>
        LengthBatches.Score(model.Backbone, [row], (tokens, _) => model.Forward(tokens, new Pass(model.Patches)))[0].Probabilities;

    private sealed class Answer
    {
        public string PredictedLabel { get; set; } = "";

        public float[] Score { get; set; } = [];
    }

    private static Report WithZip(string mode, string folder, Precision precision, Arguments arguments)
    {
        var ml = new MLContext();
        ITransformer loaded = ml.Model.Load(Path.Combine(folder, Preparation.Zip), out _);
        set_num_threads(arguments.Int("threads", get_num_threads()));
        ((IEnumerable<ITransformer>)loaded).OfType<TextClassificationTransformer>().First().ScoringPrecision = precision;
        using PredictionEngine<Sentence, Answer> engine = ml.Model.CreatePredictionEngine<Sentence, Answer>(loaded);
        IEnumerable<string> texts = File.ReadLines(Path.Combine(folder, Preparation.Texts));
        float[] Predict(string text) => engine.Predict(new Sentence { Text = text }).Score;
        return mode == "first-zip" ? new Report { Scores = Predict(texts.First()) } : Latency(texts.Take(Calls), Predict, arguments);
    }

    private static Report Latency<T>(IEnumerable<T> inputs, Func<T, float[]> score, Arguments arguments)
    {
        T[] all = [.. inputs];
        double warm = arguments.Number("warm", 1);
        int calls = 0;
        for (long began = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(began).TotalSeconds < warm;) score(all[calls++ % all.Length]);
        var scores = new List<float>();
        double[] milliseconds = Array.ConvertAll(all, input =>
        {
            long began = Stopwatch.GetTimestamp();
            float[] made = score(input);
            double time = Stopwatch.GetElapsedTime(began).TotalMilliseconds;
            scores.AddRange(made);
            return time;
        });
        return new Report { Milliseconds = milliseconds, Scores = [.. scores] };
    }
}
