// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Persistence;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>The text of a row: one sentence or a pair.</summary>
internal readonly record struct TextRow(string First, string? Second);

/// <summary>The text columns of a task: checking and reading them.</summary>
/// <param name="First">Name of the first text column.</param>
/// <param name="Second">Name of the second text column, or null.</param>
internal sealed record TextColumns(string First, string? Second) : IRowColumns<TextRow>
{
    public IReadOnlyList<string> Names => Second is null ? [First] : [First, Second];

    /// <summary>Refuses a schema that lacks a text column.</summary>
    /// <param name="schema">Schema of the input.</param>
    public void Check(DataViewSchema schema)
    {
        foreach (string name in Names)
        {
            DataViewSchema.Column column = schema.GetColumnOrNull(name) ?? throw InputColumns.Missing(name, "text", schema.Select(c => c.Name));
            if (column.Type is not TextDataViewType)
                throw new ArgumentOutOfRangeException("inputSchema", $"Schema mismatch for text column '{name}': expected String, got {column.Type}.");
        }
    }

    /// <summary>Refuses a shape that lacks a text column.</summary>
    /// <param name="shape">Shape of the input.</param>
    public void Check(SchemaShape shape)
    {
        foreach (string name in Names) OutputShapes.CheckText(shape, name);
    }

    /// <summary>Gives a function that reads the current row's text.</summary>
    /// <param name="row">A row or cursor with the columns active.</param>
    public Func<TextRow> Reader(DataViewRow row)
    {
        Func<string> first = Reader(row, First);
        if (Second is null) return () => new TextRow(first(), null);
        Func<string> second = Reader(row, Second);
        return () => new TextRow(first(), second());
    }

    private static Func<string> Reader(DataViewRow row, string name)
    {
        ValueGetter<ReadOnlyMemory<char>> getter = row.GetGetter<ReadOnlyMemory<char>>(row.Schema[name]);
        ReadOnlyMemory<char> value = default;
        return () =>
        {
            getter(ref value);
            return value.ToString();
        };
    }
}
