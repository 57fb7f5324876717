// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>
/// The annotations that trainers, transforms and evaluators tell each other about columns with.
/// </summary>
/// <remarks>
/// The library's Persistence/ folder reaches these members by the names that they have in the real package: as a
/// friend of this assembly, or through the opened internals of the real one. What its trainers must write, each with
/// <c>DataViewSchema.Annotations.Builder</c> in this order, is what the real trainers write:
/// <list type="bullet">
/// <item>Multiclass. PredictedLabel: ScoreColumnKind, ScoreValueKind, KeyValues (the label's), ScoreColumnSetId. Score:
/// ScoreColumnKind, ScoreColumnSetId, ScoreValueKind, TrainingLabelValues (the label's key values, of their own type),
/// SlotNames (the same, only where they are texts).</item>
/// <item>Binary. PredictedLabel: ScoreColumnKind, ScoreValueKind, ScoreColumnSetId. Score: ScoreColumnKind,
/// ScoreColumnSetId, ScoreValueKind. Probability: ScoreColumnKind, ScoreColumnSetId, IsNormalized (true), ScoreValueKind.</item>
/// <item>Regression. Score: ScoreColumnSetId, ScoreColumnKind, ScoreValueKind.</item>
/// </list>
/// The kind is one of <see cref="Const.ScoreColumnKind"/>, the value kind one of <see cref="Const.ScoreValueKind"/>; the
/// set id, of type <see cref="ScoreColumnSetIdType"/>, is one more than the largest in the input schema
/// (<see cref="GetMaxAnnotationKind"/>). Estimators promise the same by <see cref="GetTrainerOutputAnnotation"/> and
/// <see cref="AnnotationsForMulticlassScoreColumn"/>.
/// </remarks>
internal static class AnnotationUtils
{
    /// <summary>The names of annotations.</summary>
    internal static class Kinds
    {
        internal const string SlotNames = "SlotNames";
        internal const string KeyValues = "KeyValues";
        internal const string ScoreColumnSetId = "ScoreColumnSetId";
        internal const string ScoreColumnKind = "ScoreColumnKind";
        internal const string ScoreValueKind = "ScoreValueKind";
        internal const string IsNormalized = "IsNormalized";
        internal const string IsUserVisible = "IsUserVisible";
        internal const string TrainingLabelValues = "TrainingLabelValues";
        internal const string CategoricalSlotRanges = "CategoricalSlotRanges";
    }

    /// <summary>The values of annotations.</summary>
    internal static class Const
    {
        internal static class ScoreColumnKind
        {
            internal const string BinaryClassification = "BinaryClassification";
            internal const string MulticlassClassification = "MulticlassClassification";
            internal const string Regression = "Regression";
            internal const string Ranking = "Ranking";
            internal const string Clustering = "Clustering";
            internal const string MultiOutputRegression = "MultiOutputRegression";
            internal const string AnomalyDetection = "AnomalyDetection";
            internal const string SequenceClassification = "SequenceClassification";
            internal const string QuantileRegression = "QuantileRegression";
            internal const string Recommender = "Recommender";
            internal const string ItemSimilarity = "ItemSimilarity";
            internal const string FeatureContribution = "FeatureContribution";
        }

        internal static class ScoreValueKind
        {
            internal const string Score = "Score";
            internal const string PredictedLabel = "PredictedLabel";
            internal const string Probability = "Probability";
        }
    }

    /// <summary>The type of <see cref="Kinds.ScoreColumnSetId"/>, which tells the columns of one scoring from those of another.</summary>
    internal static KeyDataViewType ScoreColumnSetIdType { get; } = new(typeof(uint), int.MaxValue);

    internal static VectorDataViewType GetNamesType(int size)
    {
        Contracts.CheckParam(size > 0, nameof(size), "must be known size");
        return new VectorDataViewType(TextDataViewType.Instance, size);
    }

    internal static VectorDataViewType GetCategoricalType(int rangeCount)
    {
        Contracts.CheckParam(rangeCount > 0, nameof(rangeCount), "must be known size");
        return new VectorDataViewType(NumberDataViewType.Int32, rangeCount, 2);
    }

    /// <summary>The largest unsigned key among the columns' annotations of one kind, 0 where there is none.</summary>
    internal static uint GetMaxAnnotationKind(this DataViewSchema schema, out int colMax, string annotationKind,
        Func<DataViewSchema, int, bool> filterFunc = null)
    {
        uint max = 0;
        colMax = -1;
        for (int col = 0; col < schema.Count; col++)
        {
            if (!IsUInt32Key(schema[col], annotationKind) || (filterFunc != null && !filterFunc(schema, col)))
                continue;
            uint value = 0;
            schema[col].Annotations.GetValue(annotationKind, ref value);
            if (value <= max)
                continue;
            max = value;
            colMax = col;
        }

        return max;
    }

    internal static IEnumerable<int> GetColumnSet(this DataViewSchema schema, string annotationKind, uint value)
    {
        for (int col = 0; col < schema.Count; col++)
        {
            uint found = 0;
            if (IsUInt32Key(schema[col], annotationKind))
                schema[col].Annotations.GetValue(annotationKind, ref found);
            if (found == value && IsUInt32Key(schema[col], annotationKind))
                yield return col;
        }
    }

    internal static IEnumerable<int> GetColumnSet(this DataViewSchema schema, string annotationKind, string value)
    {
        for (int col = 0; col < schema.Count; col++)
        {
            ReadOnlyMemory<char> found = default;
            if (schema.TryGetAnnotation(TextDataViewType.Instance, annotationKind, col, ref found) && found.Span.SequenceEqual(value))
                yield return col;
        }
    }

    internal static bool TryGetAnnotation<T>(this DataViewSchema schema, PrimitiveDataViewType type, string kind, int col, ref T value)
    {
        Contracts.CheckValue(schema, nameof(schema));
        Contracts.CheckValue(type, nameof(type));
        if (!type.Equals(schema[col].Annotations.Schema.GetColumnOrNull(kind)?.Type))
            return false;
        schema[col].Annotations.GetValue(kind, ref value);
        return true;
    }

    internal static bool HasSlotNames(this DataViewSchema.Column column, int vectorSize)
        => vectorSize > 0
            && column.Annotations.Schema.GetColumnOrNull(Kinds.SlotNames)?.Type is VectorDataViewType { ItemType: TextDataViewType } type
            && type.Size == vectorSize;

    internal static bool HasSlotNames(this SchemaShape.Column col)
    {
        CheckValid(col, nameof(col));
        return col.Kind == SchemaShape.Column.VectorKind.Vector
            && col.Annotations.TryFindColumn(Kinds.SlotNames, out var names)
            && names.Kind == SchemaShape.Column.VectorKind.Vector && !names.IsKey
            && names.ItemType.Equals(TextDataViewType.Instance);
    }

    /// <summary>Whether a label's key values are texts, which name the slots of the scores.</summary>
    internal static bool NeedsSlotNames(this SchemaShape.Column col)
        => col.Annotations.TryFindColumn(Kinds.KeyValues, out var values)
            && values.Kind == SchemaShape.Column.VectorKind.Vector
            && values.ItemType is TextDataViewType;

    internal static bool IsNormalized(this SchemaShape.Column column)
    {
        CheckValid(column, nameof(column));
        return column.Annotations.TryFindColumn(Kinds.IsNormalized, out var flag)
            && flag.Kind == SchemaShape.Column.VectorKind.Scalar && !flag.IsKey
            && flag.ItemType.Equals(BooleanDataViewType.Instance);
    }

    /// <summary>The annotations that an estimator promises for a score or predicted-label column.</summary>
    internal static IEnumerable<SchemaShape.Column> GetTrainerOutputAnnotation(bool isNormalized = false)
    {
        yield return Scalar(Kinds.ScoreColumnSetId, NumberDataViewType.UInt32, isKey: true);
        yield return Scalar(Kinds.ScoreColumnKind, TextDataViewType.Instance, isKey: false);
        yield return Scalar(Kinds.ScoreValueKind, TextDataViewType.Instance, isKey: false);
        if (isNormalized)
            yield return Scalar(Kinds.IsNormalized, BooleanDataViewType.Instance, isKey: false);
    }

    /// <summary>The annotations that an estimator promises for a multiclass score column, given the label it was trained on.</summary>
    internal static IEnumerable<SchemaShape.Column> AnnotationsForMulticlassScoreColumn(SchemaShape.Column? labelColumn = null)
    {
        var columns = new List<SchemaShape.Column>();
        if (labelColumn is { IsKey: true } label
            && label.Annotations.TryFindColumn(Kinds.KeyValues, out var values) && values.Kind == SchemaShape.Column.VectorKind.Vector)
        {
            if (values.ItemType is TextDataViewType)
                columns.Add(new SchemaShape.Column(Kinds.SlotNames, SchemaShape.Column.VectorKind.Vector, TextDataViewType.Instance, false));
            columns.Add(new SchemaShape.Column(Kinds.TrainingLabelValues, SchemaShape.Column.VectorKind.Vector, values.ItemType, false));
        }

        columns.AddRange(GetTrainerOutputAnnotation());
        return columns;
    }

    private static SchemaShape.Column Scalar(string name, DataViewType type, bool isKey)
        => new(name, SchemaShape.Column.VectorKind.Scalar, type, isKey);

    private static bool IsUInt32Key(DataViewSchema.Column column, string kind)
        => column.Annotations.Schema.GetColumnOrNull(kind)?.Type is KeyDataViewType key && key.RawType == typeof(uint);

    private static void CheckValid(SchemaShape.Column column, string name)
        => Contracts.CheckParam(column.IsValid, name, "struct not initialized properly");
}
