// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Evaluates scored binary data; rows without a label or with a score that is not finite do not count.</summary>
internal static class BinaryEvaluation
{
    public static CalibratedBinaryClassificationMetrics Evaluate(IHost host, IDataView data, string labelName, string scoreName,
        string probabilityName, string predictedName)
    {
        var (counter, curves, matrix) = Count(host, data, labelName, scoreName, probabilityName, predictedName);
        return new CalibratedBinaryClassificationMetrics(counter, curves.AreaUnderRoc(), curves.AreaUnderPrecisionRecall(), matrix);
    }

    public static BinaryClassificationMetrics EvaluateNonCalibrated(IHost host, IDataView data, string labelName, string scoreName, string predictedName)
    {
        var (counter, curves, matrix) = Count(host, data, labelName, scoreName, null, predictedName);
        return new BinaryClassificationMetrics(counter, curves.AreaUnderRoc(), curves.AreaUnderPrecisionRecall(), matrix);
    }

    private static (BinaryCounter Counter, BinaryCurves Curves, ConfusionMatrix Matrix) Count(IHost host, IDataView data, string labelName,
        string scoreName, string? probabilityName, string predictedName)
    {
        DataViewSchema schema = data.Schema;
        DataViewSchema.Column label = EvaluationColumns.Find(schema, "Label", labelName);
        DataViewSchema.Column score = EvaluationColumns.Find(schema, AnnotationUtils.Const.ScoreValueKind.Score, scoreName);
        DataViewSchema.Column? probability = probabilityName == null
            ? null
            : EvaluationColumns.Find(schema, AnnotationUtils.Const.ScoreValueKind.Probability, probabilityName);
        EvaluationColumns.Find(schema, AnnotationUtils.Const.ScoreValueKind.PredictedLabel, predictedName);
        EvaluationColumns.CheckSingle(score, "score");
        if (!IsBinaryLabel(label.Type))
            throw EvaluationColumns.Mismatch(label, "label", "Single, Double, Boolean, or a Key with cardinality 2");
        if (probability is { } column)
            EvaluationColumns.CheckSingle(column, "probability");

        var counter = new BinaryCounter();
        var curves = new BinaryCurves(host.Register("Aggregator").Rand);
        DataViewSchema.Column[] needed = probability is { } p ? [label, score, p] : [label, score];
        using (DataViewRowCursor cursor = data.GetRowCursor(needed))
        {
            Func<float> readLabel = EvaluationColumns.LabelReader(cursor, label);
            Func<float> readScore = EvaluationColumns.Reader<float>(cursor, score);
            Func<float> readProbability = probability is { } c ? EvaluationColumns.Reader<float>(cursor, c) : () => float.NaN;
            while (cursor.MoveNext())
            {
                float value = readLabel();
                float scored = readScore();
                if (!float.IsFinite(scored) || float.IsNaN(value))
                    continue;
                counter.Add(value > 0, scored, readProbability());
                curves.Add(value > 0, scored);
            }
        }

        return (counter, curves, new ConfusionMatrix(counter.Confusion, ClassNames(label), isBinary: true));
    }

    private static bool IsBinaryLabel(DataViewType type)
        => type.Equals(NumberDataViewType.Single) || type.Equals(NumberDataViewType.Double) || type is BooleanDataViewType
            || EvaluationColumns.KeyCount(type) == 2;

    private static string[] ClassNames(DataViewSchema.Column label)
        => label.Type is KeyDataViewType && EvaluationColumns.Texts(label, AnnotationUtils.Kinds.KeyValues) is { Length: 2 } names
            ? names
            : ["positive", "negative"];
}
