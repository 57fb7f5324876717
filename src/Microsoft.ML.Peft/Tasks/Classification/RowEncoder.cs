// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>The input columns of a task: checking and reading them.</summary>
/// <typeparam name="TRow">What is read of a row.</typeparam>
internal interface IRowColumns<TRow>
{
    /// <summary>Names of the columns.</summary>
    IReadOnlyList<string> Names { get; }

    /// <summary>Refuses data without the columns.</summary>
    /// <param name="schema">Schema of the input.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of the wrong type.</exception>
    void Check(DataViewSchema schema);

    /// <summary>The same before there are data.</summary>
    /// <param name="shape">Shape of the input.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of the wrong type.</exception>
    void Check(SchemaShape shape);

    /// <summary>Gives a function that reads the row that the cursor stands on.</summary>
    /// <param name="row">A row or cursor with the columns active.</param>
    Func<TRow> Reader(DataViewRow row);
}

/// <summary>Turns what was read of a row into what the network reads: a tokenizer, or a processor of images or sounds. Immutable.</summary>
/// <typeparam name="TRow">What is read of a row.</typeparam>
internal abstract class RowEncoder<TRow>
{
    /// <summary>The columns that rows are read from.</summary>
    public abstract IRowColumns<TRow> Columns { get; }

    /// <summary>Rows that are read ahead and scored together.</summary>
    public virtual int Window => 512;

    /// <summary>True where a row that cannot be read gets no scores, false where it stops scoring.</summary>
    public virtual bool SkipsUnreadable => false;

    /// <summary>A row as the network takes it.</summary>
    /// <param name="row">The row.</param>
    /// <param name="number">Its number in the data, for messages; -1 where there is none.</param>
    /// <param name="label">Its class.</param>
    public abstract Example Encode(TRow row, long number = -1, int label = 0);

    /// <summary>Begins to collect training rows.</summary>
    public abstract RowCollector<TRow> Collect();

    /// <summary>Writes the settings into a model's description.</summary>
    /// <param name="description">The description.</param>
    /// <param name="columns">Its part with the column names.</param>
    public abstract void Describe(JsonObject description, JsonObject columns);
}

/// <summary>Takes the labelled rows of a data view one by one, and looks at all of them at the end.</summary>
/// <typeparam name="TRow">What is read of a row.</typeparam>
internal abstract class RowCollector<TRow>
{
    /// <summary>Takes a row.</summary>
    /// <param name="row">The row.</param>
    /// <param name="number">Its number in the data.</param>
    /// <param name="label">Its class.</param>
    public abstract void Add(TRow row, long number, int label);

    /// <summary>Ends the collection.</summary>
    /// <param name="channel">Takes warnings.</param>
    /// <exception cref="InvalidOperationException">The rows cannot be trained on; the message says why.</exception>
    public abstract CollectedRows Finish(IChannel channel);
}

/// <summary>Rows to train on or to evaluate with.</summary>
/// <param name="Rows">The rows.</param>
/// <param name="Skipped">How many were left out because they could not be read.</param>
internal sealed record CollectedRows(IReadOnlyList<Example> Rows, long Skipped = 0);
