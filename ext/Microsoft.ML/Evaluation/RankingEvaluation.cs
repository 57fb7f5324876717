// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Evaluates scored rankings: a group is a run of neighbouring rows with the same key.</summary>
internal static class RankingEvaluation
{
    public static RankingMetrics Evaluate(IDataView data, RankingEvaluatorOptions options, string labelName, string groupName, string scoreName)
    {
        var counter = new RankingCounter(options);
        DataViewSchema schema = data.Schema;
        DataViewSchema.Column label = EvaluationColumns.Find(schema, "Label", labelName);
        DataViewSchema.Column group = EvaluationColumns.Find(schema, "Group", groupName);
        DataViewSchema.Column score = EvaluationColumns.Find(schema, AnnotationUtils.Const.ScoreValueKind.Score, scoreName);
        CheckTypes(label, group, score);

        using DataViewRowCursor cursor = data.GetRowCursor([label, group, score]);
        Func<float> readLabel = EvaluationColumns.LabelReader(cursor, label);
        Func<ulong> readGroup = EvaluationColumns.KeyReader(cursor, group);
        Func<float> readScore = EvaluationColumns.Reader<float>(cursor, score);
        ulong? current = null;
        while (cursor.MoveNext())
        {
            ulong key = readGroup();
            if (key != current)
                counter.EndGroup();
            current = key;
            float scored = readScore();
            if (!float.IsNaN(scored))
                counter.Add(readLabel(), scored);
        }

        counter.EndGroup();
        return new RankingMetrics(counter);
    }

    private static void CheckTypes(DataViewSchema.Column label, DataViewSchema.Column group, DataViewSchema.Column score)
    {
        if (!label.Type.Equals(NumberDataViewType.Single) && label.Type is not KeyDataViewType)
            throw Contracts.ExceptSchemaMismatch("LabelColumn", "label", label.Name, "Single or a Key", label.Type.ToString()!);
        if (!score.Type.Equals(NumberDataViewType.Single))
            throw Contracts.ExceptSchemaMismatch("ScoreColumn", "score", score.Name, "Single", score.Type.ToString()!);
        if (group.Type is not KeyDataViewType)
            throw Contracts.ExceptSchemaMismatch("GroupIdColumn", "group", group.Name, "Key", group.Type.ToString()!);
    }
}
