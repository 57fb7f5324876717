// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms;

namespace Microsoft.ML.Data;

internal abstract partial class KeyTerms
{
    /// <summary>Collects the distinct values of a column.</summary>
    internal abstract class Builder
    {
        public static Builder Create(DataViewType itemType, ValueToKeyMappingEstimator.KeyOrdinality order, int maximum)
            => RowGetters.Call<Builder>(Make<int>, itemType.RawType, itemType, order == ValueToKeyMappingEstimator.KeyOrdinality.ByValue, maximum);

        /// <summary>A function that takes in the cursor's present row, and tells whether there is room for more values.</summary>
        public abstract Func<bool> Reader(DataViewRow row, DataViewSchema.Column column);

        public abstract KeyTerms Finish();

        /// <summary>Texts are compared by what they say, not by where they are stored.</summary>
        internal static IEqualityComparer<T> Comparer<T>()
            => typeof(T) == typeof(ReadOnlyMemory<char>) ? (IEqualityComparer<T>)(object)TextComparer.Instance : EqualityComparer<T>.Default;

        private static Builder Make<T>(PrimitiveDataViewType type, bool sorted, int maximum) => new BuilderOf<T>(type, sorted, maximum);
    }

    private sealed class BuilderOf<T>(PrimitiveDataViewType type, bool sorted, int maximum) : Builder
    {
        private readonly HashSet<T> _seen = new(Comparer<T>());
        private readonly List<T> _values = [];
        private readonly Func<T, bool> _isMissing = Missing.Test<T>(type);

        public override Func<bool> Reader(DataViewRow row, DataViewSchema.Column column)
        {
            if (column.Type is VectorDataViewType)
                return VectorReader(row.GetGetter<VBuffer<T>>(column));
            ValueGetter<T> get = row.GetGetter<T>(column);
            T value = default;
            return () =>
            {
                get(ref value);
                return TryAdd(value);
            };
        }

        public override KeyTerms Finish()
        {
            if (sorted)
                _values.Sort(typeof(T) == typeof(ReadOnlyMemory<char>) ? (IComparer<T>)(object)TextComparer.Instance : System.Collections.Generic.Comparer<T>.Default);
            return new Of<T>(type, _values.ToArray());
        }

        // Unset slots of a sparse vector count as the value that they stand for, where the first of them stands.
        private Func<bool> VectorReader(ValueGetter<VBuffer<T>> get)
        {
            VBuffer<T> vector = default;
            return () =>
            {
                get(ref vector);
                foreach (var (_, value) in vector.Items(all: true))
                {
                    if (!TryAdd(value))
                        return false;
                }

                return true;
            };
        }

        private bool TryAdd(T value)
        {
            // Text may lie in a buffer that its row writes over.
            if (!_isMissing(value) && _seen.Count < maximum && !_seen.Contains(value))
            {
                T kept = value is ReadOnlyMemory<char> text ? (T)(object)text.ToString().AsMemory() : value;
                _seen.Add(kept);
                _values.Add(kept);
            }

            return _seen.Count < maximum;
        }
    }

    private sealed class TextComparer : IEqualityComparer<ReadOnlyMemory<char>>, IComparer<ReadOnlyMemory<char>>
    {
        public static readonly TextComparer Instance = new();

        public bool Equals(ReadOnlyMemory<char> x, ReadOnlyMemory<char> y) => x.Span.SequenceEqual(y.Span);

        public int GetHashCode(ReadOnlyMemory<char> text) => string.GetHashCode(text.Span);

        public int Compare(ReadOnlyMemory<char> x, ReadOnlyMemory<char> y) => x.Span.CompareTo(y.Span, StringComparison.Ordinal);
    }
}
