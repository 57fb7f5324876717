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

/// <summary>What an evaluation found.</summary>
/// <param name="Metrics">The metrics.</param>
/// <param name="RowsPerSecond">Rows scored a second.</param>
/// <param name="TokensPerSecond">Tokens scored a second; null where rows are no texts.</param>
/// <param name="Skipped">Rows that could not be read.</param>
internal sealed record EvaluationReport(Evaluation Metrics, double RowsPerSecond, double? TokensPerSecond, long Skipped)
{
    public string Unread => Skipped == 0 ? "" : $", {Skipped} rows could not be read";

    public string Speed => TokensPerSecond is { } tokens ? FormattableString.Invariant($"{tokens:0} tokens/s") : FormattableString.Invariant($"{RowsPerSecond:0.0} rows/s");
}

/// <summary>Figures of a run, for people and as JSON.</summary>
internal static class Report
{
    /// <summary>Scores rows and compares with their labels.</summary>
    public static EvaluationReport Evaluate(ClassificationTransformer model, IDataView data, string label)
    {
        string[] names = [.. model.Labels];
        var index = names.Select((name, i) => (name, i)).ToDictionary(p => p.name, p => p.i, StringComparer.Ordinal);
        var sums = new ClassSums(names.Length);
        long row = 0, skipped = 0;
        var inputs = new List<string[]>();
        var clock = Stopwatch.StartNew();
        foreach (Prediction prediction in Predictions.Of(model, data, label))
        {
            row++;
            if (model is TextClassificationTransformer) inputs.Add(prediction.Inputs);
            if (!index.TryGetValue(prediction.Label!, out int wanted) && !TryBinary(prediction.Label!, names, out wanted))
                throw new InvalidDataException(
                    $"Row {row}: the label '{prediction.Label}' is none of the model's: {string.Join(", ", names.Take(20))}{(names.Length > 20 ? ", ..." : "")}.");
            if (prediction.Best < 0)
            {
                skipped++;
                continue;
            }
            float[] logits = [.. prediction.Probabilities.Select(p => MathF.Log(Math.Max(p, 1e-30f)))];
            sums.Add(logits, [new Example { Label = wanted }], -logits[wanted], 1);
        }
        double seconds = clock.Elapsed.TotalSeconds;
        if (row == 0) throw new InvalidDataException("The data has no rows; there is nothing to evaluate.");
        if (row == skipped) throw new InvalidDataException($"None of the {row} rows can be read.");
        // Counted when the clock has stopped.
        double? tokens = model is TextClassificationTransformer text ? inputs.Sum(t => (long)text.CountTokens(t[0], t.Length > 1 ? t[1] : null)) / seconds : null;
        return new EvaluationReport(sums.Result(), row / seconds, tokens, skipped);
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
