// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Reads labelled text rows out of a data view, with all checks on the way.</summary>
internal static class LabeledRows
{
    /// <summary>What the label column holds.</summary>
    public static LabelSet Labels(IDataView data, string label)
    {
        DataViewSchema.Column column = data.Schema.GetColumnOrNull(label)
            ?? throw TextColumns.Missing(label, "label", data.Schema.Select(c => c.Name));
        return LabelSet.Read(column);
    }

    /// <summary>Tokenises all rows.</summary>
    /// <param name="data">The data view.</param>
    /// <param name="label">Name of the label column.</param>
    /// <param name="text">Names of the text columns.</param>
    /// <param name="classifier">Tokenizer and labels.</param>
    /// <param name="skipMissing">True to leave rows without a label out (validation), false to refuse them.</param>
    /// <param name="channel">Takes warnings.</param>
    /// <exception cref="InvalidOperationException">No rows, missing labels, or one class only.</exception>
    public static IReadOnlyList<Example> Read(
        IDataView data, string label, TextColumns text, TextClassifier classifier, bool skipMissing, IChannel channel)
    {
        text.Check(data.Schema);
        DataViewSchema.Column labelColumn = data.Schema[label];
        var rows = new List<Example>();
        long row = 0, missing = 0, firstMissing = -1, blank = 0, cut = 0;
        using DataViewRowCursor cursor = data.GetRowCursor([labelColumn, .. text.Names.Select(n => data.Schema[n])]);
        Func<int> readLabel = LabelReader(cursor, labelColumn, classifier.Labels);
        Func<TextRow> readText = text.Reader(cursor);
        for (; cursor.MoveNext(); row++)
        {
            int value = readLabel();
            if (value < 0)
            {
                if (missing++ == 0) firstMissing = row;
                continue;
            }
            TextRow words = readText();
            if (string.IsNullOrWhiteSpace(words.First) && string.IsNullOrWhiteSpace(words.Second)) blank++;
            Example example = classifier.Encode(words, row, value);
            if (example.Length >= classifier.MaxTokens) cut++;
            rows.Add(example);
        }
        Check(rows, row, missing, firstMissing, label, skipMissing, channel);
        if (blank == rows.Count) throw new InvalidOperationException($"All {rows.Count} texts of column '{text.First}' are empty; name the column that holds the text.");
        if (blank > 0) channel.Warning(MessageSensitivity.None, $"{blank} of {rows.Count} texts are empty.");
        if (cut > 0) channel.Info(MessageSensitivity.None, $"{cut} of {rows.Count} texts have {classifier.MaxTokens} tokens or more and are cut there (MaxTokens).");
        return rows;
    }

    private static void Check(List<Example> rows, long all, long missing, long firstMissing, string label, bool skipMissing, IChannel channel)
    {
        if (missing > 0 && !skipMissing)
            throw new InvalidOperationException(
                $"{missing} of {all} rows have no label (key 0) in column '{label}', the first is row {firstMissing}. Label them, or drop them with mlContext.Data.FilterRowsByMissingValues or FilterByCustomPredicate.");
        if (missing > 0)
            channel.Warning(MessageSensitivity.None, $"{missing} of {all} validation rows have a label that the training data lacks; they are left out.");
        if (rows.Count == 0)
            throw new InvalidOperationException(all == 0
                ? "The data has no rows; there is nothing to train on."
                : $"None of the {all} rows has a label in column '{label}'.");
        if (!skipMissing && rows.All(r => r.Label == rows[0].Label))
            throw new InvalidOperationException(
                $"All {rows.Count} rows have the same label in column '{label}'; a classifier needs rows of at least two classes.");
    }

    private static Func<int> LabelReader(DataViewRow row, DataViewSchema.Column column, LabelSet labels)
    {
        if (labels.IsBinary)
        {
            ValueGetter<bool> getter = row.GetGetter<bool>(column);
            bool value = false;
            return () =>
            {
                getter(ref value);
                return value ? 1 : 0;
            };
        }
        return column.Type.RawType == typeof(byte) ? Keys<byte>(row, column, v => v)
            : column.Type.RawType == typeof(ushort) ? Keys<ushort>(row, column, v => v)
            : column.Type.RawType == typeof(ulong) ? Keys<ulong>(row, column, v => v)
            : Keys<uint>(row, column, v => v);
    }

    // Key 0 is "missing": class -1 here.
    private static Func<int> Keys<T>(DataViewRow row, DataViewSchema.Column column, Func<T, ulong> widen) where T : unmanaged
    {
        ValueGetter<T> getter = row.GetGetter<T>(column);
        T value = default;
        ulong count = ((KeyDataViewType)column.Type).Count;
        return () =>
        {
            getter(ref value);
            ulong key = widen(value);
            return key == 0 || key > count ? -1 : (int)(key - 1);
        };
    }
}
