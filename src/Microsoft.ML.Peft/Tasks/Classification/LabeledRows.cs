// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Reads labelled rows out of a data view, with all checks on the way.</summary>
internal static class LabeledRows
{
    /// <summary>What the label column holds.</summary>
    public static LabelSet Labels(IDataView data, string label)
    {
        DataViewSchema.Column column = data.Schema.GetColumnOrNull(label)
            ?? throw InputColumns.Missing(label, "label", data.Schema.Select(c => c.Name));
        return LabelSet.Read(column);
    }

    /// <summary>Reads all rows.</summary>
    /// <param name="data">The data view.</param>
    /// <param name="label">Name of the label column.</param>
    /// <param name="labels">What it holds.</param>
    /// <param name="encoder">Reads the other columns.</param>
    /// <param name="skipMissing">True to leave rows without a label out (validation), false to refuse them.</param>
    /// <param name="channel">Takes warnings.</param>
    /// <exception cref="InvalidOperationException">No rows, missing labels, or one class only.</exception>
    public static CollectedRows Read<TRow>(
        IDataView data, string label, LabelSet labels, RowEncoder<TRow> encoder, bool skipMissing, IChannel channel)
    {
        encoder.Columns.Check(data.Schema);
        DataViewSchema.Column labelColumn = data.Schema[label];
        RowCollector<TRow> collector = encoder.Collect();
        long row = 0, missing = 0, firstMissing = -1;
        using DataViewRowCursor cursor = data.GetRowCursor([labelColumn, .. encoder.Columns.Names.Select(n => data.Schema[n])]);
        Func<int> readLabel = LabelReader(cursor, labelColumn, labels);
        Func<TRow> read = encoder.Columns.Reader(cursor);
        for (; cursor.MoveNext(); row++)
        {
            int value = readLabel();
            if (value < 0)
            {
                if (missing++ == 0) firstMissing = row;
                continue;
            }
            collector.Add(read(), row, value);
        }
        CheckMissing(row, missing, firstMissing, label, skipMissing, channel);
        CollectedRows collected = collector.Finish(channel);
        Check(collected, row, label, skipMissing);
        return collected;
    }

    private static void CheckMissing(long all, long missing, long firstMissing, string label, bool skipMissing, IChannel channel)
    {
        if (missing > 0 && !skipMissing)
            throw new InvalidOperationException(
                $"{missing} of {all} rows have no label (key 0) in column '{label}', the first is row {firstMissing}. Label them, or drop them with mlContext.Data.FilterRowsByMissingValues or FilterByCustomPredicate.");
        if (missing > 0)
            channel.Warning(MessageSensitivity.None, $"{missing} of {all} validation rows have a label that the training data lacks; they are left out.");
        if (all == 0) throw new InvalidOperationException("The data has no rows; there is nothing to train on.");
        if (missing == all) throw new InvalidOperationException($"None of the {all} rows has a label in column '{label}'.");
    }

    private static void Check(CollectedRows collected, long all, string label, bool skipMissing)
    {
        IReadOnlyList<Example> rows = collected.Rows;
        if (rows.Count == 0) throw new InvalidOperationException($"None of the {all} rows can be read; the data leave nothing to train on.");
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
