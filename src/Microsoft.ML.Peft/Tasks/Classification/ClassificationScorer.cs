// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>The columns that a classifier reads and makes.</summary>
internal sealed class ClassificationScorer<TRow>(Classifier<TRow> classifier, ClassifierColumns names) : IRowScorer<TRow, ClassScores>
{
    private IRowColumns<TRow> Columns => classifier.Encoder.Columns;

    public IReadOnlyList<string> InputColumns => Columns.Names;

    public int Window => classifier.Encoder.Window;

    public Func<TRow> Reader(DataViewRow row) => Columns.Reader(row);

    public ClassScores[] Score(IReadOnlyList<TRow> rows) => classifier.Score(rows);

    public IReadOnlyList<DataViewSchema.DetachedColumn> OutputColumns(DataViewSchema schema)
    {
        Columns.Check(schema);
        return names.Columns(classifier.Labels, ScoreAnnotations.NextSetId(schema));
    }

    public Delegate Getter(int column, Func<ClassScores> current) => names.Getter(classifier.Labels, column, current);
}
