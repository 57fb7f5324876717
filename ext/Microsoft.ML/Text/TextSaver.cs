// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Writes data as delimited text: by default with a header, and with comments that tell a loader how to read it.</summary>
internal sealed class TextSaver(IHostEnvironment env, char separator, bool headerRow, bool schema, bool forceDense)
{
    private readonly IHost _host = env.Register(nameof(TextSaver));

    // Where a line's tail is mostly default values, it is written as "index:value" pairs; each pair costs about this many fields.
    private const double SparseWeight = 2.5;

    internal void Save(IDataView data, Stream stream, bool keepHidden)
    {
        _host.CheckUserArg(separator is ' ' or '\t' or ',' or ';' or '|', "Separator", "Invalid separator - must be: space, tab, comma, semicolon, or bar");
        var columns = data.Schema.Where(column => (keepHidden || !column.IsHidden) && (column.Type.GetItemType() is KeyDataViewType || column.Type.GetItemType().IsStandardScalar())).ToArray();
        _host.Check(columns.Length > 0, "No valid columns to save");
        using var writer = new StreamWriter(stream, new UTF8Encoding(false), 1 << 12, leaveOpen: true);
        using var cursor = data.GetRowCursor(columns);
        var fields = Array.ConvertAll(columns, column => ColumnTypeExtensions.InvokeGeneric<ColumnWriter>(
            typeof(TextSaver), this, nameof(MakeWriter), column.Type.GetItemType().RawType, cursor, column));
        bool hasHeader = headerRow && Array.Exists(fields, field => field.Names != null);
        if (schema)
            WriteSchema(writer, columns, hasHeader);
        if (hasHeader)
            WriteLine(writer, [.. fields.Select(field => (field.Names ?? [], "\"\"", field.Size))]);
        while (cursor.MoveNext())
            WriteLine(writer, [.. fields.Select(field => (field.Read(out int length), field.Default, length))]);
    }

    private delegate List<(int Slot, string Text)> RowReader(out int length);

    private sealed record ColumnWriter(RowReader Read, string Default, List<(int Slot, string Text)> Names, int Size);

    private ColumnWriter MakeWriter<T>(DataViewRow row, DataViewSchema.Column column)
    {
        var format = Formatter<T>(column.Type.GetItemType());
        string blank = format(default);
        if (column.Type is not VectorDataViewType vector)
        {
            var getter = row.GetGetter<T>(column);
            return new ColumnWriter((out int length) =>
            {
                T value = default;
                getter(ref value);
                length = 1;
                return [(0, format(value))];
            }, blank, [(0, Quoted(column.Name))], 1);
        }
        var getVector = row.GetGetter<VBuffer<T>>(column);
        VBuffer<T> buffer = default;
        List<(int, string)> names = null;
        if (vector.IsKnownSize && column.HasSlotNames(vector.Size))
        {
            VBuffer<ReadOnlyMemory<char>> slots = default;
            column.Annotations.GetValue(AnnotationUtils.Kinds.SlotNames, ref slots);
            names = [.. slots.Items().Where(slot => !slot.Value.IsEmpty).Select(slot => (slot.Key, Quoted(slot.Value.ToString())))];
        }
        return new ColumnWriter((out int length) =>
        {
            getVector(ref buffer);
            length = buffer.Length;
            return [.. buffer.Items().Select(item => (item.Key, format(item.Value)))];
        }, blank, names, vector.Size);
    }

    private Func<T, string> Formatter<T>(DataViewType type)
    {
        if (type is KeyDataViewType)
            return ValueConversions.Writer<T>(type);
        return value => value switch
        {
            ReadOnlyMemory<char> text => Quoted(text.ToString()),
            float.NaN or double.NaN => "?",
            float number => number.ToString("R", CultureInfo.InvariantCulture),
            double number => number.ToString("G17", CultureInfo.InvariantCulture),
            bool flag => flag ? "1" : "0",
            TimeSpan span => $"\"{span:c}\"",
            DateTime time => $"\"{time:o}\"",
            DateTimeOffset time => $"\"{time:o}\"",
            DataViewRowId id => "0x" + id,
            _ => string.Create(CultureInfo.InvariantCulture, $"{value}"),
        };
    }

    private string Quoted(string text)
        => text.Length > 0 && text[0] != ' ' && text.AsSpan().IndexOfAny(['"', separator, ':', '\n']) < 0 ? text : "\"" + text.Replace("\"", "\"\"") + "\"";

    private void WriteLine(TextWriter writer, (List<(int Slot, string Text)> Items, string Default, int Length)[] columns)
    {
        // Only what differs from its column's default has to be written.
        var items = Array.ConvertAll(columns, column => column.Items.Where(item => item.Text != column.Default).ToList());
        int dense = forceDense ? columns.Length : SparseFrom(columns.Select(column => column.Length).ToArray(), items.Select(column => column.Count).ToArray());
        var fields = new List<string>();
        for (int i = 0; i < dense; i++)
        {
            string[] texts = [.. Enumerable.Repeat(columns[i].Default, columns[i].Length)];
            foreach (var (slot, text) in items[i])
                texts[slot] = text;
            fields.AddRange(texts);
        }
        if (dense < columns.Length)
        {
            fields.Add(columns[dense..].Sum(column => column.Length).ToString(CultureInfo.InvariantCulture));
            int start = 0, before = fields.Count;
            for (int i = dense; i < columns.Length; start += columns[i++].Length)
                fields.AddRange(items[i].Select(item => string.Create(CultureInfo.InvariantCulture, $"{start + item.Slot}:{item.Text}")));
            if (fields.Count == before)
                fields.Add("0:" + columns[dense].Default);
        }
        writer.WriteLine(string.Join(separator, fields));
    }

    // The column from which on pairs are shorter, or the number of columns where they are not worth it.
    private static int SparseFrom(int[] lengths, int[] counts)
    {
        int best = 0;
        double bestScore = SparseWeight * counts.Sum();
        for (int column = 1; column <= lengths.Length; column++)
        {
            double score = lengths[..column].Sum() + SparseWeight * counts[column..].Sum();
            if (score < bestScore)
                (best, bestScore) = (column, score);
        }
        int dense = lengths[..best].Sum(), sparse = lengths.Sum() - dense;
        return sparse < 5 || sparse < dense / 5 ? lengths.Length : best;
    }

    private void WriteSchema(TextWriter writer, DataViewSchema.Column[] columns, bool hasHeader)
    {
        writer.WriteLine("#@ TextLoader{");
        if (hasHeader)
            writer.WriteLine("#@   header+");
        writer.WriteLine("#@   sep=" + (EmbeddedOptions.Separators.FirstOrDefault(pair => pair.Value == separator).Key ?? separator.ToString()));
        int field = 0;
        foreach (var column in columns)
        {
            var item = column.Type.GetItemType();
            string type = ColumnTypeExtensions.KindOf(item.RawType) is { } kind ? EmbeddedOptions.Codes[kind] : "UG";
            if (item is KeyDataViewType key)
                type += $"[{key.Count}]";
            string fields = column.Type is not VectorDataViewType vector ? $"{field}" : vector.IsKnownSize ? $"{field}-{field + vector.Size - 1}" : $"{field}-**";
            writer.WriteLine($"#@   col={column.Name}:{type}:{fields}");
            field += column.Type.GetValueCount();
        }
        writer.WriteLine("#@ }");
    }
}
