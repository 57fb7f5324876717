// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Data;

/// <summary>The annotations by which ML.NET's evaluators find a trainer's columns.</summary>
internal static class ScoreAnnotations
{
    public const string Binary = "BinaryClassification";
    public const string Multiclass = "MulticlassClassification";
    public const string ScoreValue = "Score";
    public const string PredictedLabelValue = "PredictedLabel";
    public const string ProbabilityValue = "Probability";

    public const string KindName = "ScoreColumnKind";
    public const string ValueKindName = "ScoreValueKind";
    public const string SetIdName = "ScoreColumnSetId";
    public const string IsNormalizedName = "IsNormalized";

    public static KeyDataViewType SetIdType { get; } = new(typeof(uint), int.MaxValue);

    /// <summary>The number that tells this trainer's columns from those already in the schema.</summary>
    /// <param name="schema">Schema of the input.</param>
    public static uint NextSetId(DataViewSchema schema)
    {
        uint highest = 0;
        foreach (DataViewSchema.Column column in schema)
        {
            if (column.Annotations.Schema.GetColumnOrNull(SetIdName) is not { Type: KeyDataViewType type } || type.RawType != typeof(uint)) continue;
            uint id = 0;
            column.Annotations.GetValue(SetIdName, ref id);
            highest = Math.Max(highest, id);
        }
        return highest + 1;
    }

    /// <summary>Annotations of one output column.</summary>
    /// <param name="kind">Kind of task.</param>
    /// <param name="value">What the column holds.</param>
    /// <param name="setId">Number of the trainer's columns.</param>
    /// <param name="isNormalized">True for probabilities.</param>
    /// <param name="more">Adds further annotations.</param>
    public static DataViewSchema.Annotations Make(
        string kind, string value, uint setId, bool isNormalized = false, Action<DataViewSchema.Annotations.Builder>? more = null)
    {
        var builder = new DataViewSchema.Annotations.Builder();
        AddText(builder, KindName, kind);
        builder.AddPrimitiveValue(SetIdName, SetIdType, setId);
        if (isNormalized) builder.AddPrimitiveValue(IsNormalizedName, BooleanDataViewType.Instance, true);
        AddText(builder, ValueKindName, value);
        more?.Invoke(builder);
        return builder.ToAnnotations();
    }

    private static void AddText(DataViewSchema.Annotations.Builder builder, string name, string text) =>
        builder.AddPrimitiveValue(name, TextDataViewType.Instance, text.AsMemory());
}
