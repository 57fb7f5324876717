// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Text.Json;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Bench;

/// <summary>One measurement of this library, in a process of its own; the same modes as <c>pytorch_loop.py</c>.</summary>
internal static class OurSide
{
    /// <summary>What a side reports, as JSON.</summary>
    internal sealed record Report
    {
        public double[] Losses { get; init; } = [];
        public float[] Scores { get; init; } = [];
        public long Tokens { get; init; }
        public double Seconds { get; init; }
        public double CpuSeconds { get; init; }
        public double PeakMemoryMiB { get; init; }
        public string Torch { get; init; } = "";
        public string Blas { get; init; } = "";
        public string Library { get; init; } = "";

        public double TokensPerSecond => Tokens / Seconds;

        public double TokensPerCpuSecond => Tokens / CpuSeconds;

        public static JsonSerializerOptions Form { get; } = new(JsonSerializerDefaults.Web);
    }

    public static string Run(string mode, string folder, Arguments arguments)
    {
        bool dropout = arguments.Text("dropout", "on") == "on";
        using AdaptedModel model = Material.Load(folder, dropout);
        set_num_threads(arguments.Int("threads", get_num_threads()));
        model.Precision = Enum.Parse<Precision>(arguments.Text("precision", nameof(Precision.Float32)), ignoreCase: true);
        Material material = Material.Read(folder, mode == "train" ? "train" : "score");
        int[][] batches = [.. material.Batches.Take(arguments.Int("steps", int.MaxValue))];
        int warmup = arguments.Int("warmup", 3);
        Report report = mode switch
        {
            "train" => Train(model, material.Rows, batches, warmup, arguments.Number("rate", 5e-4)),
            "score" => Score(model, material.Rows, batches, warmup),
            _ => Score(model, material.Rows, [[0]], 0),
        };
        return JsonSerializer.Serialize(report with
        {
            PeakMemoryMiB = Machine.PeakMemoryMiB(),
            Blas = Machine.Blas(),
            Library = Machine.Loaded("libtorch_cpu"),
        }, Report.Form);
    }

    /// <summary>The library's own trainer over batches that are given; seconds and tokens count from the end of the warm-up steps.</summary>
    public static Report Train(AdaptedModel model, IReadOnlyList<Example> rows, int[][] batches, int warmup, double rate)
    {
        long began = Stopwatch.GetTimestamp();
        TimeSpan cpu = Environment.CpuUsage.TotalTime;
        var options = new TrainingOptions
        {
            MaxSteps = batches.Length,
            BatchSize = Material.TrainBatch,
            LearningRate = rate,
            WeightDecay = 0,
            PadToMultiple = 1,
            Seed = 1,
            Precision = model.Precision,
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

    /// <summary>Scores of all batches; the first ones are scored twice, to warm up.</summary>
    public static Report Score(AdaptedModel model, IReadOnlyList<Example> rows, int[][] batches, int warmup)
    {
        using var off = no_grad();
        foreach (int[] batch in batches.Take(warmup)) Score(model, rows, batch);
        var scores = new List<float>();
        long began = Stopwatch.GetTimestamp();
        TimeSpan cpu = Environment.CpuUsage.TotalTime;
        foreach (int[] batch in batches) scores.AddRange(Score(model, rows, batch));
        return new Report
        {
            Seconds = Stopwatch.GetElapsedTime(began).TotalSeconds,
            CpuSeconds = (Environment.CpuUsage.TotalTime - cpu).TotalSeconds,
            Scores = [.. scores],
            Tokens = batches.Sum(b => b.Sum(r => (long)rows[r].Length)),
        };
    }

    private static float[] Score(AdaptedModel model, IReadOnlyList<Example> rows, int[] batch)
    {
        using var scope = NewDisposeScope();
        BatchArrays arrays = BatchArrays.Of(Array.ConvertAll(batch, r => rows[r]), model.Backbone.Config, 1);
        return model.Forward(MiniBatch.ToTokens(arrays, CPU), new Pass(model.Patches)).data<float>().ToArray();
    }
}
