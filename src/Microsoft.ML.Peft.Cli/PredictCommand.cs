// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using System.Globalization;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>peft predict</c>.</summary>
internal static class PredictCommand
{
    private static readonly Argument<string> _model = new("model") { Description = "Model zip." };
    private static readonly Option<string> _data = new("--data") { Description = "Table with texts; '-' reads one text a line (or a TSV with the model's header) from standard input.", Required = true };
    private static readonly Option<string> _out = new("--out") { Description = "TSV to write; '-' for standard output.", DefaultValueFactory = _ => "-" };
    private static readonly Option<string?> _text = new("--text") { Description = "Column with the text, where it differs from the model's." };
    private static readonly Option<string?> _text2 = new("--text2") { Description = "Column with the second text, where it differs from the model's." };
    private static readonly Option<bool> _scores = new("--scores") { Description = "Write the probability of every class." };

    public static System.CommandLine.Command Make()
    {
        var command = new System.CommandLine.Command("predict", "Classify texts.") { _model, _data, _out, _text, _text2, _scores };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult call)
    {
        var context = new MLContext(1);
        using LoadedModel loaded = LoadedModel.Open(context, call.GetValue(_model)!);
        bool scores = call.GetValue(_scores);
        string output = call.GetValue(_out)!;
        if (output == "-")
        {
            using var standard = new StreamWriter(Console.OpenStandardOutput()) { AutoFlush = true };
            return Write(standard, call, context, loaded, scores);
        }
        AtomicFile.Write(output, stream =>
        {
            using var writer = new StreamWriter(stream, leaveOpen: true);
            Write(writer, call, context, loaded, scores);
        });
        return 0;
    }

    private static int Write(TextWriter writer, ParseResult call, MLContext context, LoadedModel loaded, bool scores)
    {
        string[] labels = [.. loaded.Classifier.Labels];
        writer.WriteLine(string.Join('\t', [.. loaded.Text.Names, "predicted", "probability", .. scores ? labels.Select(l => "p:" + Cell(l)) : []]));
        if (call.GetValue(_data) == "-")
        {
            foreach (string[] lines in StandardInput(loaded.Text)) WriteRows(writer, loaded, FromLines(context, lines, loaded.Text), scores);
            return 0;
        }
        using TableFile table = TableFile.Open(call.GetValue(_data)!);
        WriteRows(writer, loaded, loaded.Rows(context, table, call.GetValue(_text), call.GetValue(_text2), null), scores);
        return 0;
    }

    private static void WriteRows(TextWriter writer, LoadedModel loaded, IDataView data, bool scores)
    {
        string[] labels = [.. loaded.Classifier.Labels];
        foreach (Prediction prediction in Predictions.Of(loaded.Classifier, data))
        {
            TextRow row = prediction.Text;
            writer.Write(Cell(row.First));
            if (loaded.Text.Second is not null) writer.Write('\t' + Cell(row.Second ?? ""));
            writer.Write('\t' + Cell(labels[prediction.Best]) + '\t' + prediction.Probabilities[prediction.Best].ToString("0.######", CultureInfo.InvariantCulture));
            if (scores) foreach (float p in prediction.Probabilities) writer.Write('\t' + p.ToString("0.######", CultureInfo.InvariantCulture));
            writer.WriteLine();
        }
    }

    // Lines as they come: a person at the keyboard gets an answer a line, a pipe gets batches.
    private static IEnumerable<string[]> StandardInput(TextColumns text)
    {
        bool first = true;
        var batch = new List<string>();
        while (Console.In.ReadLine() is { } line)
        {
            bool header = first && line.Split('\t').SequenceEqual(text.Names);
            first = false;
            if (header || line.Length == 0) continue;
            batch.Add(line);
            if (Console.IsInputRedirected && batch.Count < 512) continue;
            yield return [.. batch];
            batch.Clear();
        }
        if (batch.Count > 0) yield return [.. batch];
    }

    private sealed class Line
    {
        public string First { get; set; } = "";

        public string Second { get; set; } = "";
    }

    private static IDataView FromLines(MLContext context, string[] lines, TextColumns text)
    {
        var schema = SchemaDefinition.Create(typeof(Line));
        schema[nameof(Line.First)].ColumnName = text.First;
        schema[nameof(Line.Second)].ColumnName = text.Second ?? "Second";
        return context.Data.LoadFromEnumerable(lines.Select(line =>
        {
            string[] parts = text.Second is null ? [line] : line.Split('\t', 2);
            return new Line { First = parts[0], Second = parts.Length > 1 ? parts[1] : "" };
        }).ToArray(), schema);
    }

    private static string Cell(string text) => text.Replace('\t', ' ').Replace('\r', ' ').Replace('\n', ' ');
}
