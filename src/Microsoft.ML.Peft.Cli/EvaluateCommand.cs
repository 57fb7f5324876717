// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>peft evaluate</c>.</summary>
internal static class EvaluateCommand
{
    private static readonly Argument<string> _model = new("model") { Description = "Model zip." };
    private static readonly Option<string> _data = new("--data") { Description = "Table with texts or paths and labels; for images and sounds also a folder of class folders.", Required = true };
    private static readonly Option<string?> _label = new("--label") { Description = "Column with the label; 'label' or the table's only other column where none is named." };
    private static readonly Option<string?> _text = new("--text") { Description = "Column with the text, where it differs from the model's." };
    private static readonly Option<string?> _text2 = new("--text2") { Description = "Column with the second text, where it differs from the model's." };
    private static readonly Option<string?> _path = new("--path") { Description = "Column with the paths, for images and sounds in a table." };
    private static readonly Option<string?> _report = new("--report") { Description = "JSON file with the figures." };
    private static readonly Option<Precision> _precision = PrecisionOption.Make("while scoring");

    public static System.CommandLine.Command Make()
    {
        var command = new System.CommandLine.Command("evaluate", "Score data and compare with their labels.") { _model, _data, _label, _text, _text2, _path, _precision, _report };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult call)
    {
        var context = new MLContext(1);
        using LoadedModel loaded = LoadedModel.Open(context, call.GetValue(_model)!);
        loaded.Classifier.ScoringPrecision = call.GetValue(_precision);
        EvaluationReport made = loaded.IsText ? EvaluateTable(call, context, loaded)
            : Report.Evaluate(loaded.Classifier, loaded.Files(context, call.GetValue(_data)!, call.GetValue(_path), call.GetValue(_label), labelled: true), LoadedModel.LabelColumn);
        Evaluation metrics = made.Metrics;
        Console.WriteLine(FormattableString.Invariant(
            $"rows {metrics.Rows}, accuracy {metrics.Metrics["accuracy"]:0.0000}, macro F1 {metrics.Metrics["macro_f1"]:0.0000}, MCC {metrics.Metrics["mcc"]:0.0000}, log-loss {metrics.Metrics["log_loss"]:0.0000}, {made.Speed}{made.Unread}"));
        PrecisionOption.Tell(loaded.Classifier);
        if (call.GetValue(_report) is not { } file) return 0;
        Report.Write(file, new JsonObject
        {
            ["metrics"] = Report.Metrics(metrics),
            ["rows"] = metrics.Rows,
            ["trainableParameters"] = loaded.Classifier.TrainableParameters,
            ["totalParameters"] = loaded.Classifier.TotalParameters,
            ["evalTokensPerSecond"] = made.TokensPerSecond,
            ["evalRowsPerSecond"] = made.RowsPerSecond,
            ["precision"] = (loaded.Classifier.ScoringPrecisionChoice?.Precision ?? loaded.Classifier.Model.Precision).ToString(),
            ["skippedRows"] = made.Skipped,
            ["peakMemoryMb"] = Report.PeakMemory(),
        });
        return 0;
    }

    private static EvaluationReport EvaluateTable(ParseResult call, MLContext context, LoadedModel loaded)
    {
        using TableFile table = TableFile.Open(call.GetValue(_data)!);
        string label = call.GetValue(_label) ?? GuessLabel(table, loaded.Text);
        return Report.Evaluate(loaded.Classifier, loaded.Rows(context, table, call.GetValue(_text), call.GetValue(_text2), label), LoadedModel.LabelColumn);
    }

    private static string GuessLabel(TableFile table, TextColumns text)
    {
        string[] others = [.. table.Columns.Where(c => !text.Names.Contains(c))];
        return others.FirstOrDefault(c => c.Equals("label", StringComparison.OrdinalIgnoreCase))
            ?? (others.Length == 1 ? others[0] : throw new UsageException($"Name the label column with --label; {table.Shown} has {string.Join(", ", table.Columns)}."));
    }
}
