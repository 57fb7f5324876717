// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>
/// The columns of a mapping's output: the input's, with each added column behind the column that it hides,
/// or at the end where it hides none.
/// </summary>
internal sealed class ColumnBindings
{
    // An input column's index, or the complement of an added column's.
    private readonly int[] _sources;

    internal ColumnBindings(DataViewSchema input, DataViewSchema.DetachedColumn[] added)
    {
        InputSchema = input;
        var sources = Enumerable.Range(0, input.Count).ToList();
        for (int i = 0; i < added.Length; i++)
        {
            int hidden = sources.FindLastIndex(source => NameOf(source) == added[i].Name);
            sources.Insert(hidden < 0 ? sources.Count : hidden + 1, ~i);
        }
        _sources = [.. sources];
        AddedColumnIndices = [.. Enumerable.Range(0, added.Length).Select(i => Array.IndexOf(_sources, ~i))];

        var builder = new DataViewSchema.Builder();
        builder.AddColumns(_sources.Select(source => source >= 0 ? new DataViewSchema.DetachedColumn(input[source]) : added[~source]));
        Schema = builder.ToSchema();

        string NameOf(int source) => source >= 0 ? input[source].Name : added[~source].Name;
    }

    internal DataViewSchema InputSchema { get; }

    internal DataViewSchema Schema { get; }

    /// <summary>Where each added column is in <see cref="Schema"/>.</summary>
    internal IReadOnlyList<int> AddedColumnIndices { get; }

    /// <summary>The index in the input's schema, or among the added columns.</summary>
    internal int MapColumnIndex(out bool isSource, int column)
    {
        int source = _sources[column];
        isSource = source >= 0;
        return isSource ? source : ~source;
    }
}
