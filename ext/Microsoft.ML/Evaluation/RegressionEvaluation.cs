// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>Evaluates scored regression data; rows whose label or score is missing do not count.</summary>
internal static class RegressionEvaluation
{
    public static RegressionMetrics Evaluate(IDataView data, string labelName, string scoreName)
    {
        DataViewSchema schema = data.Schema;
        DataViewSchema.Column label = EvaluationColumns.Find(schema, "Label", labelName);
        DataViewSchema.Column score = EvaluationColumns.Find(schema, AnnotationUtils.Const.ScoreValueKind.Score, scoreName);
        EvaluationColumns.CheckSingle(score, "score");
        EvaluationColumns.CheckSingle(label, "label");

        var counter = new RegressionCounter();
        using DataViewRowCursor cursor = data.GetRowCursor([label, score]);
        Func<float> readLabel = EvaluationColumns.Reader<float>(cursor, label);
        Func<float> readScore = EvaluationColumns.Reader<float>(cursor, score);
        while (cursor.MoveNext())
        {
            float value = readLabel();
            float scored = readScore();
            if (!float.IsNaN(value) && !float.IsNaN(scored))
                counter.Add(value, scored);
        }

        return new RegressionMetrics(counter);
    }
}
