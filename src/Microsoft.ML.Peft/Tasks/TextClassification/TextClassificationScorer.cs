// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>The columns that a text classifier reads and makes.</summary>
internal sealed class TextClassificationScorer : IRowScorer<TextRow, ClassScores>
{
    private readonly TextClassifier _classifier;
    private readonly TextColumns _text;
    private readonly ClassifierColumns _names;

    public TextClassificationScorer(TextClassifier classifier, TextColumns text, ClassifierColumns names)
    {
        _classifier = classifier;
        _text = text;
        _names = names;
    }

    public IReadOnlyList<string> InputColumns => _text.Names;

    public int Window => 512;

    public Func<TextRow> Reader(DataViewRow row) => _text.Reader(row);

    public ClassScores[] Score(IReadOnlyList<TextRow> rows) => _classifier.Score(rows);

    public IReadOnlyList<DataViewSchema.DetachedColumn> OutputColumns(DataViewSchema schema)
    {
        _text.Check(schema);
        return _names.Columns(_classifier.Labels, ScoreAnnotations.NextSetId(schema));
    }

    public Delegate Getter(int column, Func<ClassScores> current) => _names.Getter(_classifier.Labels, column, current);
}
