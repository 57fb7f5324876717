// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// A lazy data view that scores in batches: a second cursor reads a window of rows ahead, one call scores them, and the
/// first cursor gives the rows back in their order with the new columns beside the old ones.
/// </summary>
internal sealed class ScoredView<TInput, TOutput> : IDataView
{
    private readonly IDataView _source;
    private readonly IRowScorer<TInput, TOutput> _scorer;

    public ScoredView(IDataView source, IRowScorer<TInput, TOutput> scorer)
    {
        _source = source;
        _scorer = scorer;
        Schema = ScoredSchema.Make(source.Schema, scorer.OutputColumns(source.Schema));
    }

    public DataViewSchema Schema { get; }

    // Reading ahead needs two cursors in the same order.
    public bool CanShuffle => false;

    public long? GetRowCount() => _source.GetRowCount();

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random? rand = null)
    {
        int inputs = _source.Schema.Count;
        var active = new bool[Schema.Count];
        foreach (DataViewSchema.Column column in columnsNeeded) active[column.Index] = true;
        DataViewRowCursor rows = _source.GetRowCursor(_source.Schema.Where(c => active[c.Index]));
        if (!active.Skip(inputs).Any(a => a)) return new Cursor(this, rows, null, active);
        DataViewRowCursor ahead = _source.GetRowCursor(_scorer.InputColumns.Select(name => _source.Schema[name]));
        return new Cursor(this, rows, ahead, active);
    }

    // One cursor already keeps all cores busy: the scoring inside is parallel.
    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random? rand = null) =>
        [GetRowCursor(columnsNeeded, rand)];

    private sealed class Cursor : DataViewRowCursor
    {
        private readonly ScoredView<TInput, TOutput> _view;
        private readonly DataViewRowCursor _rows;
        private readonly DataViewRowCursor? _ahead;
        private readonly Func<TInput>? _read;
        private readonly bool[] _active;
        private readonly List<TInput> _window = [];
        private TOutput[] _results = [];
        private int _at;

        public Cursor(ScoredView<TInput, TOutput> view, DataViewRowCursor rows, DataViewRowCursor? ahead, bool[] active)
        {
            _view = view;
            _rows = rows;
            _ahead = ahead;
            _active = active;
            if (ahead is not null) _read = view._scorer.Reader(ahead);
        }

        public override DataViewSchema Schema => _view.Schema;

        public override long Position => _rows.Position;

        public override long Batch => _rows.Batch;

        public override ValueGetter<DataViewRowId> GetIdGetter() => _rows.GetIdGetter();

        public override bool IsColumnActive(DataViewSchema.Column column) => _active[Own(column).Index];

        public override bool MoveNext()
        {
            if (!_rows.MoveNext()) return false;
            if (_ahead is null) return true;
            if (++_at >= _results.Length) Fill();
            return true;
        }

        private void Fill()
        {
            _window.Clear();
            while (_window.Count < _view._scorer.Window && _ahead!.MoveNext()) _window.Add(_read!());
            if (_window.Count == 0)
                throw new InvalidOperationException("The data gave more rows at its second reading than at its first; it must give the same rows each time it is read.");
            _results = _view._scorer.Score(_window);
            _at = 0;
        }

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            int index = Own(column).Index, inputs = _view._source.Schema.Count;
            if (!_active[index]) throw new InvalidOperationException($"Column '{column.Name}' is not active in this cursor; ask for it when the cursor is opened.");
            if (index < inputs) return _rows.GetGetter<TValue>(_view._source.Schema[index]);
            return ScoredSchema.Cast<TValue>(_view._scorer.Getter(index - inputs, Current), column);
        }

        private TOutput Current() => _at >= 0 && _at < _results.Length
            ? _results[_at]
            : throw new InvalidOperationException("The cursor stands on no row; call MoveNext first.");

        private DataViewSchema.Column Own(DataViewSchema.Column column) =>
            column.Index < Schema.Count && Schema[column.Index].Name == column.Name
                ? column
                : throw new ArgumentException($"Column '{column.Name}' is not of this data view.", nameof(column));

        protected override void Dispose(bool disposing)
        {
            if (disposing)
            {
                _rows.Dispose();
                _ahead?.Dispose();
            }
            base.Dispose(disposing);
        }
    }
}

/// <summary>What batched views and row mappers share.</summary>
internal static class ScoredSchema
{
    public static DataViewSchema Make(DataViewSchema input, IReadOnlyList<DataViewSchema.DetachedColumn> added)
    {
        var builder = new DataViewSchema.Builder();
        builder.AddColumns(input);
        builder.AddColumns(added);
        return builder.ToSchema();
    }

    public static ValueGetter<TValue> Cast<TValue>(Delegate getter, DataViewSchema.Column column) =>
        getter as ValueGetter<TValue>
        ?? throw new InvalidOperationException(
            $"Column '{column.Name}' holds {column.Type.RawType.Name}; it cannot be read as {typeof(TValue).Name}.");
}
