// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Names of a classifier's output columns, and their types with annotations as ML.NET's own trainers make them:
/// for key labels <c>PredictedLabel</c> (key) and <c>Score</c> (one probability a class), for Boolean labels
/// <c>PredictedLabel</c>, <c>Score</c> (log-odds) and <c>Probability</c>.
/// </summary>
internal sealed record ClassifierColumns(string Score, string PredictedLabel, string Probability)
{
    public const int PredictedLabelAt = 0, ScoreAt = 1;

    public IReadOnlyList<DataViewSchema.DetachedColumn> Columns(LabelSet labels, uint setId) =>
        labels.IsBinary ? Binary(setId) : Multiclass(labels, setId);

    private DataViewSchema.DetachedColumn[] Binary(uint setId)
    {
        const string Kind = ScoreAnnotations.Binary;
        return
        [
            new(PredictedLabel, BooleanDataViewType.Instance, ScoreAnnotations.Make(Kind, ScoreAnnotations.PredictedLabelValue, setId)),
            new(Score, NumberDataViewType.Single, ScoreAnnotations.Make(Kind, ScoreAnnotations.ScoreValue, setId)),
            new(Probability, NumberDataViewType.Single, ScoreAnnotations.Make(Kind, ScoreAnnotations.ProbabilityValue, setId, isNormalized: true)),
        ];
    }

    private DataViewSchema.DetachedColumn[] Multiclass(LabelSet labels, uint setId)
    {
        const string Kind = ScoreAnnotations.Multiclass;
        return
        [
            new(PredictedLabel, new KeyDataViewType(typeof(uint), labels.Count),
                ScoreAnnotations.Make(Kind, ScoreAnnotations.PredictedLabelValue, setId, more: b => labels.Annotate(b, "KeyValues"))),
            new(Score, new VectorDataViewType(NumberDataViewType.Single, labels.Count),
                ScoreAnnotations.Make(Kind, ScoreAnnotations.ScoreValue, setId, more: b =>
                {
                    if (labels.ValuesType?.ItemType is TextDataViewType) labels.Annotate(b, "SlotNames");
                    labels.Annotate(b, "TrainingLabelValues");
                })),
        ];
    }

    /// <summary>A getter of an output column over the current row's scores.</summary>
    public Delegate Getter(LabelSet labels, int column, Func<ClassScores> current) => labels.IsBinary
        ? column switch
        {
            PredictedLabelAt => (ValueGetter<bool>)((ref bool value) => value = current().Best == 1),
            ScoreAt => (ValueGetter<float>)((ref float value) => value = current().Logits[1] - current().Logits[0]),
            _ => (ValueGetter<float>)((ref float value) => value = current().Probabilities[1]),
        }
        : column switch
        {
            PredictedLabelAt => (ValueGetter<uint>)((ref uint value) => value = (uint)(current().Best + 1)),
            _ => (ValueGetter<VBuffer<float>>)((ref VBuffer<float> value) =>
            {
                float[] shares = current().Probabilities;
                VBufferEditor<float> editor = VBufferEditor.Create(ref value, shares.Length);
                shares.CopyTo(editor.Values);
                value = editor.Commit();
            }),
        };
}
