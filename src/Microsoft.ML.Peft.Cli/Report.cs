// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Cli;

/// <summary>Figures of a run, for people and as JSON.</summary>
internal static class Report
{
    /// <summary>Scores rows and compares with their labels.</summary>
    public static (Evaluation Metrics, double TokensPerSecond) Evaluate(
        TextClassificationTransformer model, IDataView data, string label)
    {
        string[] names = [.. model.Labels];
        var index = names.Select((name, i) => (name, i)).ToDictionary(p => p.name, p => p.i, StringComparer.Ordinal);
        var sums = new ClassSums(names.Length);
        long row = 0;
        var texts = new List<TextRow>();
        var clock = Stopwatch.StartNew();
        foreach (Prediction prediction in Predictions.Of(model, data, label))
        {
            row++;
            texts.Add(prediction.Text);
            if (!index.TryGetValue(prediction.Label!, out int wanted) && !TryBinary(prediction.Label!, names, out wanted))
                throw new InvalidDataException(
                    $"Row {row}: the label '{prediction.Label}' is none of the model's: {string.Join(", ", names.Take(20))}{(names.Length > 20 ? ", ..." : "")}.");
            float[] logits = [.. prediction.Probabilities.Select(p => MathF.Log(Math.Max(p, 1e-30f)))];
            var example = new Example { Ids = [0], Label = wanted };
            sums.Add(logits, [example], -logits[wanted], 1);
        }
        double seconds = clock.Elapsed.TotalSeconds;
        if (row == 0) throw new InvalidDataException("The data has no rows; there is nothing to evaluate.");
        // Counted when the clock has stopped.
        return (sums.Result(), texts.Sum(t => (long)model.CountTokens(t.First, t.Second)) / seconds);
    }

    private static bool TryBinary(string label, string[] names, out int wanted)
    {
        wanted = label is "1" or "true" ? 1 : 0;
        return names is ["False", "True"] && label is "0" or "1" or "true" or "false";
    }

    public static JsonObject Metrics(Evaluation evaluation) => new()
    {
        ["accuracy"] = evaluation.Metrics["accuracy"],
        ["macroF1"] = evaluation.Metrics["macro_f1"],
        ["mcc"] = evaluation.Metrics["mcc"],
        ["logLoss"] = evaluation.Metrics["log_loss"],
    };

    /// <summary>Highest memory of this process in MiB.</summary>
    public static double PeakMemory()
    {
        using var process = Process.GetCurrentProcess();
        return process.PeakWorkingSet64 / 1048576.0;
    }

    /// <summary>Writes JSON beside its place and renames it.</summary>
    public static void Write(string path, JsonObject report) => AtomicFile.Write(path, stream =>
        stream.Write(Encoding.UTF8.GetBytes(report.ToJsonString(new JsonSerializerOptions { WriteIndented = true }) + "\n")));
}
