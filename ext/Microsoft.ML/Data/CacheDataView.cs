// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Concurrent;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Keeps columns in memory once somebody read them: later cursors no longer touch the source.</summary>
internal sealed class CacheDataView : IDataView
{
    private readonly IHost _host;
    private readonly IDataView _source;
    private readonly Lock _lock = new();
    private readonly ConcurrentDictionary<int, Array> _columns = new();
    private long? _rowCount;

    internal CacheDataView(IHostEnvironment env, IDataView source, int[] prefetch)
    {
        _host = env.Register("Cache");
        _source = Contracts.CheckRef(source, nameof(source));
        if (prefetch is { Length: > 0 })
            Fill(prefetch);
    }

    public DataViewSchema Schema => _source.Schema;

    public bool CanShuffle => true;

    public long? GetRowCount() => _rowCount ??= _source.GetRowCount();

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
    {
        var active = ActiveColumns.Of(Schema, columnsNeeded);
        Fill([.. Enumerable.Range(0, active.Length).Where(i => active[i])]);
        return new Cursor(_host, this, active, rand);
    }

    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
        => [GetRowCursor(columnsNeeded, rand)];

    private void Fill(int[] columns)
    {
        lock (_lock)
        {
            int[] missing = [.. columns.Where(column => !_columns.ContainsKey(column))];
            if (missing.Length == 0 && _rowCount != null)
                return;
            using var cursor = _source.GetRowCursor(missing.Select(column => Schema[column]));
            var readers = Array.ConvertAll(missing, column => ColumnTypeExtensions.InvokeGeneric<(Action Read, Func<Array> Finish)>(
                typeof(CacheDataView), null, nameof(Reader), Schema[column].Type.RawType, cursor, Schema[column]));
            long rows = 0;
            for (; cursor.MoveNext(); rows++)
                foreach (var reader in readers)
                    reader.Read();
            for (int i = 0; i < missing.Length; i++)
                _columns[missing[i]] = readers[i].Finish();
            _rowCount = rows;
        }
    }

    private static (Action, Func<Array>) Reader<T>(DataViewRow row, DataViewSchema.Column column)
    {
        var getter = row.GetGetter<T>(column);
        var values = new List<T>();
        return (() =>
        {
            // A fresh value each time: a buffer that is handed in again would be overwritten.
            T value = default;
            getter(ref value);
            values.Add(value is ReadOnlyMemory<char> text ? (T)(object)text.ToString().AsMemory() : value);
        }, () => values.ToArray());
    }

    private sealed class Cursor(IChannelProvider provider, CacheDataView parent, bool[] active, Random rand) : RootCursorBase(provider)
    {
        private readonly long _rows = parent._rowCount.Value;
        private readonly int[] _order = rand == null ? null : Permutation.Random(rand, (int)parent._rowCount.Value);

        public override DataViewSchema Schema => parent.Schema;

        public override long Batch => 0;

        private long Index => _order == null ? Position : _order[Position];

        protected override bool MoveNextCore() => Position + 1 < _rows;

        public override bool IsColumnActive(DataViewSchema.Column column)
        {
            Ch.Check(column.Index < Schema.Count);
            return active[column.Index];
        }

        public override ValueGetter<DataViewRowId> GetIdGetter() => (ref DataViewRowId value) =>
        {
            Ch.Check(IsGood, "The cursor is at no row.");
            value = new DataViewRowId((ulong)Index, 0);
        };

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            Ch.Check(IsColumnActive(column), "Can't get getter for inactive column");
            if (parent._columns[column.Index] is not TValue[] values)
                throw Ch.Except($"Invalid TValue in GetGetter: '{typeof(TValue)}', expected type: '{column.Type.RawType}'.");
            var copy = ValueCopier<TValue>.Instance;
            return (ref TValue value) =>
            {
                Ch.Check(IsGood, "The cursor is at no row.");
                copy(in values[Index], ref value);
            };
        }
    }
}

/// <summary>Random orders.</summary>
internal static class Permutation
{
    /// <summary>The numbers below <paramref name="count"/> in random order; the order depends on the generator's exact stream.</summary>
    internal static int[] Random(Random rand, int count)
    {
        int[] order = [.. Enumerable.Range(0, count)];
        for (int i = 0; i < count; i++)
        {
            int other = i + rand.Next(count - i);
            (order[i], order[other]) = (order[other], order[i]);
        }
        return order;
    }
}

/// <summary>Copies a column's value into a place of its own: buffers by content, the rest by assignment.</summary>
internal static class ValueCopier<T>
{
    internal delegate void Copier(in T source, ref T destination);

    internal static Copier Instance { get; } = Make();

    private static Copier Make()
        => typeof(T).IsGenericType && typeof(T).GetGenericTypeDefinition() == typeof(VBuffer<>)
            ? ColumnTypeExtensions.InvokeGeneric<Copier>(typeof(ValueCopier<T>), null, nameof(OfBuffer), typeof(T).GetGenericArguments()[0])
            : (in T source, ref T destination) => destination = source;

    private static Copier OfBuffer<TItem>()
    {
        ValueCopier<VBuffer<TItem>>.Copier copy = (in VBuffer<TItem> source, ref VBuffer<TItem> destination) => source.CopyTo(ref destination);
        return (Copier)(object)copy;
    }
}
