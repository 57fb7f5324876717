// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Data;

/// <summary>Scores row by row, for prediction engines: one result a row position, made at the first getter that asks.</summary>
internal sealed class ScoredRowMapper<TInput, TOutput> : IRowToRowMapper
{
    private readonly IRowScorer<TInput, TOutput> _scorer;

    public ScoredRowMapper(DataViewSchema input, IRowScorer<TInput, TOutput> scorer)
    {
        _scorer = scorer;
        InputSchema = input;
        OutputSchema = ScoredSchema.Make(input, scorer.OutputColumns(input));
    }

    public DataViewSchema InputSchema { get; }

    public DataViewSchema OutputSchema { get; }

    public IEnumerable<DataViewSchema.Column> GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns)
    {
        bool scored = false;
        var needed = new SortedSet<int>();
        foreach (DataViewSchema.Column column in dependingColumns)
        {
            if (column.Index < InputSchema.Count) needed.Add(column.Index);
            else scored = true;
        }
        if (scored) needed.UnionWith(_scorer.InputColumns.Select(name => InputSchema[name].Index));
        return needed.Select(index => InputSchema[index]);
    }

    public DataViewRow GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns)
    {
        var active = new bool[OutputSchema.Count];
        foreach (DataViewSchema.Column column in activeColumns) active[column.Index] = true;
        return new Row(this, input, active);
    }

    private sealed class Row : DataViewRow
    {
        private readonly ScoredRowMapper<TInput, TOutput> _mapper;
        private readonly DataViewRow _input;
        private readonly bool[] _active;
        private readonly Func<TInput>? _read;
        private long _position = long.MinValue;
        private TOutput? _result;

        public Row(ScoredRowMapper<TInput, TOutput> mapper, DataViewRow input, bool[] active)
        {
            _mapper = mapper;
            _input = input;
            _active = active;
            if (active.Skip(mapper.InputSchema.Count).Any(a => a)) _read = mapper._scorer.Reader(input);
        }

        public override DataViewSchema Schema => _mapper.OutputSchema;

        public override long Position => _input.Position;

        public override long Batch => _input.Batch;

        public override ValueGetter<DataViewRowId> GetIdGetter() => _input.GetIdGetter();

        public override bool IsColumnActive(DataViewSchema.Column column) => _active[column.Index];

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            int inputs = _mapper.InputSchema.Count;
            if (!_active[column.Index]) throw new InvalidOperationException($"Column '{column.Name}' is not active in this row.");
            if (column.Index < inputs) return _input.GetGetter<TValue>(_mapper.InputSchema[column.Index]);
            return ScoredSchema.Cast<TValue>(_mapper._scorer.Getter(column.Index - inputs, Current), column);
        }

        private TOutput Current()
        {
            // A prediction engine moves its one row on by raising the position.
            if (_position != _input.Position)
            {
                _result = _mapper._scorer.Score([_read!()])[0];
                _position = _input.Position;
            }
            return _result!;
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing) _input.Dispose();
            base.Dispose(disposing);
        }
    }
}
