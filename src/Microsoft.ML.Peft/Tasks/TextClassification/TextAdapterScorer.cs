// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>The columns of a classifier whose rows name their adapter: the texts, the adapter's name, and what a classifier makes.</summary>
internal sealed class TextAdapterScorer(TextAdapterClassifier classifier, TextColumns text, string adapterColumn, ClassifierColumns names)
    : IRowScorer<AdapterRow, ClassScores>
{
    public IReadOnlyList<string> InputColumns => [.. text.Names, adapterColumn];

    public int Window => 512;

    public Func<AdapterRow> Reader(DataViewRow row)
    {
        Func<TextRow> read = text.Reader(row), name = new TextColumns(adapterColumn, null).Reader(row);
        return () => new AdapterRow(read(), name().First);
    }

    public ClassScores[] Score(IReadOnlyList<AdapterRow> rows) => classifier.Score(rows);

    public IReadOnlyList<DataViewSchema.DetachedColumn> OutputColumns(DataViewSchema schema)
    {
        text.Check(schema);
        new TextColumns(adapterColumn, null).Check(schema);
        return names.Columns(classifier.Labels, ScoreAnnotations.NextSetId(schema));
    }

    public Delegate Getter(int column, Func<ClassScores> current) => names.Getter(classifier.Labels, column, current);
}
