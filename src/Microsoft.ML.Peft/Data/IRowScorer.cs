// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// What a task's transformer does with rows: which columns it reads, which it makes, and one call for a whole batch.
/// Data views and row mappers are written once over it.
/// </summary>
/// <typeparam name="TInput">What is read of a row.</typeparam>
/// <typeparam name="TOutput">What is made for a row.</typeparam>
internal interface IRowScorer<TInput, TOutput>
{
    /// <summary>Names of the columns that are read.</summary>
    IReadOnlyList<string> InputColumns { get; }

    /// <summary>Rows that are read ahead and scored together.</summary>
    int Window { get; }

    /// <summary>Checks the input schema and gives the new columns.</summary>
    /// <param name="schema">Schema of the input.</param>
    IReadOnlyList<DataViewSchema.DetachedColumn> OutputColumns(DataViewSchema schema);

    /// <summary>Gives a function that reads the row that the cursor stands on.</summary>
    /// <param name="row">A row or cursor with the input columns active.</param>
    Func<TInput> Reader(DataViewRow row);

    /// <summary>Scores rows; called from many threads at once.</summary>
    /// <param name="rows">Rows in order.</param>
    TOutput[] Score(IReadOnlyList<TInput> rows);

    /// <summary>A getter of an output column over the current row's result.</summary>
    /// <param name="column">Position among the output columns.</param>
    /// <param name="current">Gives the current row's result.</param>
    Delegate Getter(int column, Func<TOutput> current);
}
