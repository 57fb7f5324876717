// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>The rows of text files.</summary>
internal sealed class TextView(IHost host, TextFormat format, TextColumn[] columns, DataViewSchema schema, IMultiStreamSource source) : IDataView
{
    public DataViewSchema Schema => schema;

    public bool CanShuffle => false;

    public long? GetRowCount() => null;

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
        => new Cursor(this, ActiveColumns.Of(schema, columnsNeeded));

    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
        => [GetRowCursor(columnsNeeded, rand)];

    private IHost Host => host;

    private TextFormat Format => format;

    private TextColumn[] Columns => columns;

    private IEnumerable<LineReader.Line> Lines() => LineReader.Read(source, format, format.HasHeader);

    private sealed class Cursor : RootCursorBase
    {
        // Rows are parsed in blocks: of a block with a row that cannot be parsed, none is handed out.
        private const int BlockSize = 64;
        private const long MostShown = 10;

        private readonly TextView _parent;
        private readonly bool[] _active;
        private readonly FieldStore[] _stores;
        private readonly FieldScanner _scanner;
        private readonly IEnumerator<LineReader.Line> _lines;
        private readonly bool _inBlocks;
        private readonly IChannel _stats;
        private readonly Queue<LineReader.Line> _ahead = new();
        private LineReader.Line _line;
        private long _left;
        private int _row = -1;
        private int _rowsInBlock;
        private long _parsed, _badValues, _badFormats;

        internal Cursor(TextView parent, bool[] active) : base(parent.Host)
        {
            _parent = parent;
            _active = active;
            _left = parent.Format.MaxRows;
            _stats = parent.Host.Start("ParseStats");
            _inBlocks = parent.Format.UseThreads && parent.Format.MaxRows / BlockSize >= 2;
            _stores = [.. parent.Columns.Select((column, i) => active[i] ? FieldStore.Make(column, parent.Format, BlockSize) : null)];
            int limit = parent.Columns.Where((_, i) => active[i]).SelectMany(column => column.Segments).Select(segment => segment.Lim).DefaultIfEmpty(1).Max();
            if (parent.Format.InputSize > 0)
                limit = Math.Min(limit, parent.Format.InputSize);
            _scanner = new FieldScanner(parent.Format, limit - 1, ReportBadFormat);
            _lines = parent.Lines().GetEnumerator();
        }

        public override DataViewSchema Schema => _parent.Schema;

        public override long Batch => 0;

        protected override bool MoveNextCore()
        {
            if (++_row >= _rowsInBlock)
            {
                _row = 0;
                _rowsInBlock = _inBlocks ? ParseBlock() : ParseRows(1);
            }
            return _rowsInBlock > 0;
        }

        private int ParseBlock()
        {
            try
            {
                return ParseRows(BlockSize);
            }
            catch (Exception ex)
            {
                throw Ch.ExceptDecode(ex, $"Parsing failed with an exception: {ex.Message}");
            }
        }

        private int ParseRows(int count)
        {
            int row = 0;
            for (; row < count && _left > 0 && NextLine(); row++, _left--)
            {
                var text = _line.Text.AsMemory();
                int fields = _scanner.Scan(_parent.Format.TrimWhitespace ? text.TrimEnd() : text);
                for (int i = 0; i < _stores.Length; i++)
                    if (_stores[i] == null)
                        continue;
                    else if (_parent.Columns[i].Type is VectorDataViewType)
                        ParseVector(_parent.Columns[i], _stores[i], row, fields);
                    else
                        ParseScalar(_parent.Columns[i], _stores[i], row);
                _parsed++;
            }
            return row;
        }

        private bool NextLine()
        {
            try
            {
                // Lines are read in blocks too: an error among them shows before any of the block is parsed.
                if (_ahead.Count == 0)
                    for (int i = 0; i < BlockSize && i < _left && _lines.MoveNext(); i++)
                        _ahead.Enqueue(_lines.Current);
            }
            catch (Exception ex)
            {
                throw Ch.ExceptDecode(ex, "Stream reading encountered exception");
            }
            return _ahead.TryDequeue(out _line);
        }

        private void ParseScalar(TextColumn column, FieldStore store, int row)
        {
            int source = column.Segments[0].Min;
            int at = _scanner.FirstAtOrAfter(source);
            if (at >= _scanner.Count || _scanner.Index(at) != source)
            {
                store.Reset(row, 0);
                if (_parent.Format.MissingRealsAsNaNs && store.IsReal)
                    store.Consume(row, 0, default);
            }
            else if (!store.Consume(row, 0, _scanner.Text(at)))
            {
                if (!store.HasMissing)
                    throw Contracts.Except($"Could not parse value {_scanner.Text(at)} in line {_line.Number}, column {column.Name}");
                ReportBadValue($"  Bad value at line {_line.Number} in column {column.Name}");
            }
        }

        private void ParseVector(TextColumn column, FieldStore store, int row, int fields)
        {
            int variable = column.VariableSegment < 0 ? 0 : Math.Max(0, fields - column.Segments[column.VariableSegment].Min);
            store.Reset(row, checked(column.FixedSize + variable));
            int start = 0;
            for (int i = 0; i < column.Segments.Length; i++)
            {
                int min = column.Segments[i].Min;
                int lim = i == column.VariableSegment ? min + variable : column.Segments[i].Lim;
                int at = _scanner.FirstAtOrAfter(min);
                for (; at < _scanner.Count && _scanner.Index(at) < lim; at++)
                {
                    int slot = start + _scanner.Index(at) - min;
                    if (store.Consume(row, slot, _scanner.Text(at)))
                        continue;
                    if (!store.HasMissing)
                        throw Contracts.Except($"Could not parse value {_scanner.Text(at)} in slot {slot} of column {column.Name} in line {_line.Number}");
                    ReportBadValue($"  Bad value at line {_line.Number} in column {column.Name} at slot {slot}");
                }
                if (_parent.Format.MissingRealsAsNaNs && store.IsReal && at >= _scanner.Count)
                    for (int source = Math.Max(min, _scanner.Count); source < lim; source++)
                        store.Consume(row, start + source - min, default);
                start += lim - min;
            }
        }

        private void ReportBadValue(string message)
        {
            if (++_badValues > MostShown)
                return;
            _stats.Info(MessageSensitivity.Schema, message);
            if (_badValues == MostShown)
                _stats.Info(MessageSensitivity.Unknown, "  Suppressing further bad value messages");
        }

        private void ReportBadFormat(int from, int to, string what)
        {
            if (++_badFormats > MostShown)
                return;
            _stats.Warning(MessageSensitivity.Unknown, $"Format error at {_line.Path}({_line.Number},{from + 1})-({_line.Number},{to + 1}): {what}");
            if (_badFormats == MostShown)
                _stats.Warning(MessageSensitivity.Unknown, "Suppressing further format error messages");
        }

        public override ValueGetter<DataViewRowId> GetIdGetter() => (ref DataViewRowId value) =>
        {
            Ch.Check(IsGood, "Cannot get value as the cursor either has not started yet, or already finished");
            value = new DataViewRowId((ulong)Position, 0);
        };

        public override bool IsColumnActive(DataViewSchema.Column column)
        {
            Ch.Check(column.Index < _active.Length);
            return _active[column.Index];
        }

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            Ch.CheckParam(column.Index < _active.Length, nameof(column), "requested column not valid.");
            Ch.Check(IsColumnActive(column));
            var getter = _stores[column.Index].MakeGetter(() =>
            {
                Contracts.Check(IsGood, "Cannot get value as the cursor either has not started yet, or already finished");
                return _row;
            });
            return getter as ValueGetter<TValue>
                ?? throw Ch.Except($"Invalid TValue in GetGetter: '{typeof(TValue)}', expected type: '{column.Type.RawType}'.");
        }

        protected override void Dispose(bool disposing)
        {
            if (disposing && IsOpen)
            {
                IsOpen = false;
                _lines.Dispose();
                if (_badValues > 0 || _badFormats > 0)
                    _stats.Info(MessageSensitivity.Unknown, $"Processed {_parsed} rows with {_badValues} bad values and {_badFormats} format errors");
                _stats.Dispose();
            }
            base.Dispose(disposing);
        }

        private bool IsOpen { get; set; } = true;
    }
}
