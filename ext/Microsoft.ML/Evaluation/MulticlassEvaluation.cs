// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Evaluates scored multiclass data; rows without a label or with scores that are not finite do not count.</summary>
internal static class MulticlassEvaluation
{
    public static MulticlassClassificationMetrics Evaluate(IDataView data, string labelName, string scoreName, string predictedName, int topK)
    {
        DataViewSchema schema = data.Schema;
        DataViewSchema.Column label = EvaluationColumns.Find(schema, "Label", labelName);
        DataViewSchema.Column score = EvaluationColumns.Find(schema, AnnotationUtils.Const.ScoreValueKind.Score, scoreName);
        EvaluationColumns.Find(schema, AnnotationUtils.Const.ScoreValueKind.PredictedLabel, predictedName);
        if (score.Type is not VectorDataViewType { Size: >= 2 } vector || !vector.ItemType.Equals(NumberDataViewType.Single))
            throw EvaluationColumns.Mismatch(score, "score", "vector of two or more items of type Single");
        if (!label.Type.Equals(NumberDataViewType.Single) && EvaluationColumns.KeyCount(label.Type) == 0)
            throw EvaluationColumns.Mismatch(label, "label", "Single or Key");

        int classes = vector.Size;
        var counter = new MulticlassCounter(classes);
        using (DataViewRowCursor cursor = data.GetRowCursor([label, score]))
        {
            Func<float> readLabel = EvaluationColumns.LabelReader(cursor, label);
            ValueGetter<VBuffer<float>> readScores = cursor.GetGetter<VBuffer<float>>(score);
            VBuffer<float> scores = default;
            var dense = new float[classes];
            while (cursor.MoveNext())
            {
                float value = readLabel();
                if (float.IsNaN(value) || value < 0 || value != (int)value)
                    continue;
                readScores(ref scores);
                Contracts.Check(scores.Length == classes);
                scores.CopyTo(dense);
                if (AllFinite(dense))
                    counter.Add((int)value, dense);
            }
        }

        string[] names = EvaluationColumns.Texts(score, AnnotationUtils.Kinds.SlotNames)
            ?? Enumerable.Range(0, classes).Select(i => i.ToString()).ToArray();
        return new MulticlassClassificationMetrics(counter, topK, new ConfusionMatrix(counter.Confusion, names, isBinary: false));
    }

    private static bool AllFinite(ReadOnlySpan<float> values)
    {
        foreach (float value in values)
        {
            if (!float.IsFinite(value))
                return false;
        }

        return true;
    }
}
