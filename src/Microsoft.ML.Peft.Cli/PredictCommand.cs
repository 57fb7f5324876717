// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using System.Globalization;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>peft predict</c>.</summary>
internal static class PredictCommand
{
    private static readonly Argument<string> _model = new("model") { Description = "Model zip." };
    private static readonly Option<string> _data = new("--data") { Description = "Table with texts or paths; a folder or file of images or sounds; '-' reads one text or path a line (texts also as a TSV with the model's header) from standard input.", Required = true };
    private static readonly Option<string> _out = new("--out") { Description = "TSV to write; '-' for standard output.", DefaultValueFactory = _ => "-" };
    private static readonly Option<string?> _text = new("--text") { Description = "Column with the text, where it differs from the model's." };
    private static readonly Option<string?> _text2 = new("--text2") { Description = "Column with the second text, where it differs from the model's." };
    private static readonly Option<string?> _path = new("--path") { Description = "Column with the paths, for images and sounds in a table." };
    private static readonly Option<bool> _scores = new("--scores") { Description = "Write the probability of every class." };
    private static readonly Option<Precision> _precision = PrecisionOption.Make("while scoring");

    public static System.CommandLine.Command Make()
    {
        var command = new System.CommandLine.Command("predict", "Classify texts, images or sounds.") { _model, _data, _out, _text, _text2, _path, _precision, _scores };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult call)
    {
        var context = new MLContext(1);
        using LoadedModel loaded = LoadedModel.Open(context, call.GetValue(_model)!);
        loaded.Classifier.ScoringPrecision = call.GetValue(_precision);
        bool scores = call.GetValue(_scores);
        string output = call.GetValue(_out)!;
        if (output == "-")
        {
            using var standard = new StreamWriter(Console.OpenStandardOutput()) { AutoFlush = true };
            Write(standard, call, context, loaded, scores);
            PrecisionOption.Tell(loaded.Classifier);
            return 0;
        }
        AtomicFile.Write(output, stream =>
        {
            using var writer = new StreamWriter(stream, leaveOpen: true);
            Write(writer, call, context, loaded, scores);
        });
        PrecisionOption.Tell(loaded.Classifier);
        return 0;
    }

    private static void Write(TextWriter writer, ParseResult call, MLContext context, LoadedModel loaded, bool scores)
    {
        string[] labels = [.. loaded.Classifier.Labels];
        writer.WriteLine(string.Join('\t', [.. loaded.Classifier.InputColumns.Take(loaded.IsText ? 2 : 1), "predicted", "probability", .. scores ? labels.Select(l => "p:" + Cell(l)) : []]));
        if (!loaded.IsText && call.GetValue(_data) != "-")
        {
            WriteRows(writer, loaded, loaded.Files(context, call.GetValue(_data)!, call.GetValue(_path), null, labelled: false), scores);
            return;
        }
        if (call.GetValue(_data) == "-")
        {
            foreach (string[] lines in StandardInput(loaded.Text)) WriteRows(writer, loaded, FromLines(context, lines, loaded.Text), scores);
            return;
        }
        using TableFile table = TableFile.Open(call.GetValue(_data)!);
        WriteRows(writer, loaded, loaded.Rows(context, table, call.GetValue(_text), call.GetValue(_text2), null), scores);
    }

    private static void WriteRows(TextWriter writer, LoadedModel loaded, IDataView data, bool scores)
    {
        string[] labels = [.. loaded.Classifier.Labels];
        foreach (Prediction prediction in Predictions.Of(loaded.Classifier, data))
        {
            writer.Write(string.Join('\t', prediction.Inputs.Select(Cell)));
            // What could not be read has empty cells.
            writer.Write('\t' + (prediction.Best < 0 ? "" : Cell(labels[prediction.Best])) + '\t' + Number(prediction.Best < 0 ? float.NaN : prediction.Probabilities[prediction.Best]));
            if (scores) foreach (float p in prediction.Probabilities) writer.Write('\t' + Number(p));
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

    private static string Number(float share) => float.IsNaN(share) ? "" : share.ToString("0.######", CultureInfo.InvariantCulture);

    private static string Cell(string text) => text.Replace('\t', ' ').Replace('\r', ' ').Replace('\n', ' ');
}
