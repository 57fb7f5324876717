// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Bench;

/// <summary>How our time grows: the measured processes. Figures are microseconds a token.</summary>
internal static class GrowthRuns
{
    private const int Few = 100, Turns = 7, Tokens = 2048, WarmSeconds = 12;

    public static string Run(string kind, string folder, Arguments arguments)
    {
        TorchSharp.torch.set_num_threads(arguments.Int("threads", Machine.Cores()));
        int[] values = [.. arguments.List("values", []).Select(v => int.Parse(v, CultureInfo.InvariantCulture))];
        return JsonSerializer.Serialize(new Report
        {
            Numbers = kind switch
            {
                "rows" => Rows(folder, values),
                "lengths" => Lengths(Preparation.Small(folder), values),
                "layers" => Layers(folder, values),
                _ => throw new ArgumentException($"There is no growth by '{kind}'."),
            },
        }, Report.Form);
    }

    /// <summary>
    /// Whole calls of Fit and Transform over tables of several sizes, in turns: reading, tokenizing and caching included. What a call
    /// costs for few rows (loading the backbone, opening the file) is taken off.
    /// </summary>
    private static Dictionary<string, double> Rows(string folder, int[] sizes)
    {
        var ml = new MLContext(seed: 1);
        Dictionary<int, List<(double Train, double Score, long Tokens)>> times = sizes.Append(Few).ToDictionary(n => n, _ => new List<(double, double, long)>());
        // As long as .NET compiles what runs often, which the later and larger tables would gain by.
        for (long began = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(began).TotalSeconds < WarmSeconds;) FitAndScore(ml, folder, 5 * sizes.Min());
        for (int turn = 0; turn < Turns; turn++)
            foreach (int size in times.Keys.Where(n => turn == 0 || turn < 50 * sizes.Min() / n || n <= sizes.Min()))
                times[size].Add(FitAndScore(ml, folder, size));
        var numbers = new Dictionary<string, double>();
        double fewTrain = Figures.Median(times[Few].Select(t => t.Train)), fewScore = Figures.Median(times[Few].Select(t => t.Score));
        foreach (int size in sizes)
        {
            double tokens = (times[size][0].Tokens - times[Few][0].Tokens) / 1e6;
            numbers[$"train {size}"] = (Figures.Median(times[size].Select(t => t.Train)) - fewTrain) / tokens;
            numbers[$"score {size}"] = (Figures.Median(times[size].Select(t => t.Score)) - fewScore) / tokens;
        }
        return numbers;
    }

    private static (double Train, double Score, long Tokens) FitAndScore(MLContext ml, string folder, int rows)
    {
        string path = Path.Combine(folder, "growth", $"rows-{rows}.tsv");
        if (!File.Exists(path)) RowTable.Write(path, RowTable.Words(File.ReadLines(Path.Combine(Preparation.Small(folder), Preparation.Texts))), rows);
        IDataView data = ml.Data.LoadFromTextFile<Sentence>(path, hasHeader: true);
        long began = Stopwatch.GetTimestamp();
        using TextClassificationTransformer model = Fit(ml, folder, data);
        double train = Stopwatch.GetElapsedTime(began).TotalSeconds;
        began = Stopwatch.GetTimestamp();
        IDataView scored = model.Transform(data);
        int count = scored.GetColumn<uint>(scored.Schema[model.PredictedLabelColumn]).Count();
        if (count != rows) throw new InvalidOperationException($"{count} of {rows} rows were scored.");
        return (train, Stopwatch.GetElapsedTime(began).TotalSeconds, model.Training!.Tokens);
    }

    /// <summary>One epoch over a table, through the library's pipeline, on the first layer of the small network.</summary>
    public static TextClassificationTransformer Fit(MLContext ml, string folder, IDataView data)
    {
        ITransformer keys = ml.Transforms.Conversion.MapValueToKey("Key", nameof(Sentence.Label)).Fit(data);
        return ml.Peft().TextClassification(new TextClassificationOptions
        {
            LabelColumnName = "Key",
            Sentence1ColumnName = nameof(Sentence.Text),
            BackboneFolder = Preparation.OneLayer(folder),
            Method = Material.Lora(dropout: true),
            Training = new TrainingOptions { Epochs = 1, BatchSize = Material.TrainBatch, LearningRate = 5e-4 },
        }).Fit(keys.Transform(data));
    }

    private static Dictionary<string, double> Lengths(string folder, int[] lengths)
    {
        using AdaptedModel model = Material.Load(folder, dropout: true, Material.Trained);
        var numbers = new Dictionary<string, double>();
        foreach (int length in lengths) Measure(model, length, Math.Max(1, Tokens / length), $"{length}", numbers);
        return numbers;
    }

    private static Dictionary<string, double> Layers(string folder, int[] layers)
    {
        var numbers = new Dictionary<string, double>();
        foreach (int count in layers)
        {
            using AdaptedModel model = Material.Model(Preparation.Layers(folder, count), classes: 2, dropout: true);
            Measure(model, length: 24, rows: 32, $"{count}", numbers);
        }
        return numbers;
    }

    // Batches of rows of one length: medians of three measurements, and their operations.
    private static void Measure(AdaptedModel model, int length, int rows, string name, Dictionary<string, double> numbers)
    {
        const int Warmup = 2, Batches = 4, Repeats = 3;
        var random = new Random(1);
        Example[] examples = [.. Enumerable.Range(0, rows).Select(i => new Example { Label = i % 2, Ids = [.. Enumerable.Range(0, length).Select(_ => random.Next(1000, 20000))] })];
        int[][] batches = [.. Enumerable.Repeat(Enumerable.Range(0, rows).ToArray(), Batches + Warmup)];
        double Median(Func<Report> run) => Figures.Median(Enumerable.Range(0, Repeats).Select(_ => run()).Select(r => 1e6 * r.Seconds / r.Tokens));
        double score = numbers["score " + name] = Median(() => OurSide.Score(model, examples, batches[..1], 0.2, 0.2));
        double train = numbers["train " + name] = Median(() => OurSide.Train(model, Precision.Float32, examples, batches, Warmup, 5e-4));
        numbers["score rate " + name] = Work.Scoring(model.Backbone.Config, [length]) / length / score / 1e3;
        numbers["train rate " + name] = Work.Training(model.Backbone.Config, [length]) / length / train / 1e3;
    }
}
