// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>
/// Reorders rows through a pool: each next row is drawn at random from the pool, and the source refills it.
/// Where the source can shuffle too, it is asked to.
/// </summary>
internal sealed class RowShuffling : RowSubsetView
{
    private readonly int _poolRows;
    private readonly bool _shuffleSource;
    private readonly int _seed;

    internal RowShuffling(IHostEnvironment env, IDataView source, int? seed, int poolRows, bool shuffleSource) : base(env, "ShuffleTransform", source)
    {
        _poolRows = poolRows;
        _shuffleSource = shuffleSource;
        _seed = seed ?? ((TauswortheHybrid)Host.Rand).NextSigned();
    }

    public override bool CanShuffle => true;

    public override long? GetRowCount() => Source.GetRowCount();

    public override DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
    {
        var active = ActiveColumns.Of(Schema, columnsNeeded);
        rand ??= new TauswortheHybrid((uint)_seed);
        // The source's generator is drawn even where the source cannot shuffle: the pool's stream depends on it.
        var sourceRand = _shuffleSource ? new TauswortheHybrid(rand) : null;
        var input = Source.GetRowCursor(Needed(active), sourceRand);
        return _poolRows == 1 ? input : MakeCursor(input, active, rand);
    }

    private protected override DataViewRowCursor MakeCursor(DataViewRowCursor input, bool[] active, Random rand) => new Cursor(Host, input, active, _poolRows, rand);

    private sealed class Cursor : RootCursorBase
    {
        // Rows are fetched in blocks, some of them ahead of need. How many rows are there to draw from,
        // and with it every draw, depends on these two numbers.
        private const int BlockSize = 16;
        private const int BufferDepth = 3;

        private readonly DataViewRowCursor _input;
        private readonly bool[] _active;
        private readonly int _poolRows;
        private readonly Random _rand;
        private readonly IStore[] _stores;
        private readonly Store<DataViewRowId> _ids;
        private readonly int[] _slots;
        private readonly Queue<int> _requests = new();
        private int _filled;
        private int _at;
        private int _dead = -1;
        private int _live = 1;
        private bool _exhausted;

        internal Cursor(IChannelProvider provider, DataViewRowCursor input, bool[] active, int poolRows, Random rand) : base(provider)
        {
            _input = input;
            _active = active;
            _poolRows = poolRows;
            _rand = rand;
            _slots = [.. Enumerable.Range(0, poolRows - 1 + BufferDepth * BlockSize)];
            _at = _slots.Length - 1;
            _ids = new Store<DataViewRowId>(input.GetIdGetter(), _slots.Length);
            _stores = [.. input.Schema.Select(column => active[column.Index]
                ? ColumnTypeExtensions.InvokeGeneric<IStore>(typeof(Cursor), this, nameof(MakeStore), column.Type.RawType, column) : null)];
            _requests.Enqueue(poolRows - 1 + BlockSize);
            for (int i = 1; i < BufferDepth; i++)
                _requests.Enqueue(BlockSize);
        }

        public override DataViewSchema Schema => _input.Schema;

        public override long Batch => 0;

        private IStore MakeStore<T>(DataViewSchema.Column column) => new Store<T>(_input.GetGetter<T>(column), _slots.Length);

        protected override bool MoveNextCore()
        {
            _at = (_at + 1) % _slots.Length;
            _live--;
            if (++_dead >= BlockSize && !_exhausted)
            {
                _requests.Enqueue(_dead);
                _dead = 0;
            }
            while (_live < _poolRows && !_exhausted)
                Fetch(_requests.Dequeue());
            if (_live == 0)
                return false;
            int drawn = (_rand.Next(Math.Min(_live, _poolRows)) + _at) % _slots.Length;
            (_slots[_at], _slots[drawn]) = (_slots[drawn], _slots[_at]);
            return true;
        }

        private void Fetch(int rows)
        {
            for (; rows > 0 && _input.MoveNext(); rows--)
            {
                int slot = _slots[_filled];
                _filled = (_filled + 1) % _slots.Length;
                _ids.Fill(slot);
                foreach (var store in _stores)
                    store?.Fill(slot);
                _live++;
            }
            _exhausted = rows > 0;
        }

        public override ValueGetter<DataViewRowId> GetIdGetter() => Getter(_ids);

        public override bool IsColumnActive(DataViewSchema.Column column)
        {
            Ch.CheckParam(column.Index < _active.Length, nameof(column));
            return _active[column.Index];
        }

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            Ch.CheckParam(IsColumnActive(column), nameof(column), "requested column not active");
            return _stores[column.Index] is Store<TValue> store ? Getter(store)
                : throw Ch.Except($"Invalid TValue: '{typeof(TValue)}', expected type: '{column.Type.RawType}'.");
        }

        private ValueGetter<T> Getter<T>(Store<T> store) => (ref T value) =>
        {
            Ch.Check(IsGood, "Cannot get value as the cursor either has not started yet, or already finished");
            store.Fetch(_slots[_at], ref value);
        };

        protected override void Dispose(bool disposing)
        {
            if (disposing)
                _input.Dispose();
            base.Dispose(disposing);
        }

        private interface IStore
        {
            void Fill(int slot);
        }

        private sealed class Store<T>(ValueGetter<T> getter, int size) : IStore
        {
            private readonly T[] _values = new T[size];

            public void Fill(int slot) => getter(ref _values[slot]);

            internal void Fetch(int slot, ref T value) => ValueCopier<T>.Instance(in _values[slot], ref value);
        }
    }
}
