// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>The parsed values of one column, for a block of rows.</summary>
internal abstract class FieldStore
{
    /// <summary>Whether what cannot be parsed becomes a missing value rather than an error.</summary>
    internal bool HasMissing { get; init; }

    internal bool IsReal { get; init; }

    internal abstract void Reset(int row, int size);

    internal abstract bool Consume(int row, int slot, ReadOnlyMemory<char> text);

    internal abstract Delegate MakeGetter(Func<int> currentRow);

    internal static FieldStore Make(TextColumn column, TextFormat format, int rows)
        => ColumnTypeExtensions.InvokeGeneric<FieldStore>(typeof(FieldStore), null, nameof(MakeTyped), column.ItemType.RawType, column, format, rows);

    private static FieldStore MakeTyped<T>(TextColumn column, TextFormat format, int rows)
    {
        FieldParser<T> parser = typeof(T) == typeof(ReadOnlyMemory<char>) ? null : FieldParsers.Of<T>(column.ItemType, format);
        bool isReal = typeof(T) == typeof(float) || typeof(T) == typeof(double);
        bool hasMissing = isReal || column.ItemType is KeyDataViewType;
        return column.Type is VectorDataViewType
            ? new Vectors<T>(parser, rows) { IsReal = isReal, HasMissing = hasMissing }
            : new Scalars<T>(parser, rows) { IsReal = isReal, HasMissing = hasMissing };
    }

    private static bool Parse<T>(FieldParser<T> parser, ReadOnlyMemory<char> text, out T value)
    {
        if (parser != null)
            return parser(text.Span, out value);
        value = (T)(object)text;
        return true;
    }

    private sealed class Scalars<T>(FieldParser<T> parser, int rows) : FieldStore
    {
        private readonly T[] _values = new T[rows];

        internal override void Reset(int row, int size) => _values[row] = default;

        internal override bool Consume(int row, int slot, ReadOnlyMemory<char> text) => Parse(parser, text, out _values[row]);

        internal override Delegate MakeGetter(Func<int> currentRow) => (ValueGetter<T>)((ref T value) => value = _values[currentRow()]);
    }

    private sealed class Vectors<T>(FieldParser<T> parser, int rows) : FieldStore
    {
        private readonly List<(int Slot, T Value)>[] _items = [.. Enumerable.Range(0, rows).Select(_ => new List<(int, T)>())];
        private readonly int[] _sizes = new int[rows];

        internal override void Reset(int row, int size)
        {
            _items[row].Clear();
            _sizes[row] = size;
        }

        internal override bool Consume(int row, int slot, ReadOnlyMemory<char> text)
        {
            bool parsed = Parse(parser, text, out T value);
            _items[row].Add((slot, value));
            return parsed;
        }

        internal override Delegate MakeGetter(Func<int> currentRow) => (ValueGetter<VBuffer<T>>)((ref VBuffer<T> value) =>
        {
            int row = currentRow();
            var items = _items[row];
            bool isDense = items.Count > _sizes[row] / 2;
            var editor = VBufferEditor.Create(ref value, _sizes[row], isDense ? _sizes[row] : items.Count);
            if (isDense)
                editor.Values.Clear();
            for (int i = 0; i < items.Count; i++)
            {
                editor.Values[isDense ? items[i].Slot : i] = items[i].Value;
                if (!isDense)
                    editor.Indices[i] = items[i].Slot;
            }
            value = editor.Commit();
        });
    }
}
