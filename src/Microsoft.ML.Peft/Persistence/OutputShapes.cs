// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;
using VectorKind = Microsoft.ML.SchemaShape.Column.VectorKind;

namespace Microsoft.ML.Peft.Persistence;

/// <summary>What a trainer promises before it is fitted; the columns of a <see cref="SchemaShape"/> can only be made inside ML.NET.</summary>
internal static class OutputShapes
{
    /// <summary>The input shape with the output columns of a classifier.</summary>
    /// <param name="input">Shape of the input.</param>
    /// <param name="label">Name of the label column.</param>
    /// <param name="score">Name of the score column.</param>
    /// <param name="predictedLabel">Name of the predicted-label column.</param>
    /// <param name="probability">Name of the probability column.</param>
    /// <exception cref="ArgumentOutOfRangeException">The label is missing or of another kind.</exception>
    public static SchemaShape Classifier(SchemaShape input, string label, string score, string predictedLabel, string probability)
    {
        SchemaShape.Column labels = Find(input, label, "label");
        bool binary = labels.Kind == VectorKind.Scalar && !labels.IsKey && labels.ItemType is BooleanDataViewType;
        if (!binary && !(labels.Kind == VectorKind.Scalar && labels.IsKey))
            throw Mismatch("label", label, "Key or Boolean", Describe(labels), "Put mlContext.Transforms.Conversion.MapValueToKey on it first.");
        SchemaShape.Column[] added = binary
            ?
            [
                new(predictedLabel, VectorKind.Scalar, BooleanDataViewType.Instance, false, Annotations(binary: true)),
                new(score, VectorKind.Scalar, NumberDataViewType.Single, false, Annotations(binary: true)),
                new(probability, VectorKind.Scalar, NumberDataViewType.Single, false, Annotations(binary: true, normalized: true)),
            ]
            :
            [
                new(predictedLabel, VectorKind.Scalar, NumberDataViewType.UInt32, true, Annotations(labels, "KeyValues")),
                new(score, VectorKind.Vector, NumberDataViewType.Single, false, Annotations(labels, "SlotNames", "TrainingLabelValues")),
            ];
        HashSet<string> names = [.. added.Select(c => c.Name)];
        return new SchemaShape([.. input.Where(c => !names.Contains(c.Name)), .. added]);
    }

    /// <summary>Refuses an input shape without the text column.</summary>
    /// <param name="input">Shape of the input.</param>
    /// <param name="name">Name of the column.</param>
    public static void CheckText(SchemaShape input, string name)
    {
        SchemaShape.Column column = Find(input, name, "text");
        if (column.Kind != VectorKind.Scalar || column.IsKey || column.ItemType is not TextDataViewType)
            throw Mismatch("text", name, "String", Describe(column), "Text columns hold one string a row.");
    }

    /// <summary>Refuses an input shape without a column of one of several kinds.</summary>
    /// <param name="input">Shape of the input.</param>
    /// <param name="name">Name of the column.</param>
    /// <param name="role">Its role, for messages.</param>
    /// <param name="fits">Says whether a column is of one of the kinds.</param>
    /// <param name="expected">The kinds, for messages.</param>
    public static void CheckColumn(SchemaShape input, string name, string role, Func<SchemaShape.Column, bool> fits, string expected)
    {
        SchemaShape.Column column = Find(input, name, role);
        if (!fits(column)) throw Mismatch(role, name, expected, Describe(column), "");
    }

    private static SchemaShape.Column Find(SchemaShape shape, string name, string role)
    {
        foreach (SchemaShape.Column column in shape) if (column.Name == name) return column;
        throw Tasks.InputColumns.Missing(name, role, shape.Select(c => c.Name));
    }

    private static SchemaShape Annotations(SchemaShape.Column labels, params string[] copies)
    {
        List<SchemaShape.Column> columns = Common();
        foreach (SchemaShape.Column annotation in labels.Annotations ?? new SchemaShape([]))
        {
            if (annotation.Name != "KeyValues") continue;
            foreach (string name in copies)
            {
                if (name == "SlotNames" && annotation.ItemType is not TextDataViewType) continue;
                columns.Add(new(name, VectorKind.Vector, annotation.ItemType, false));
            }
        }
        return new SchemaShape(columns);
    }

    private static SchemaShape Annotations(bool binary, bool normalized = false)
    {
        List<SchemaShape.Column> columns = Common();
        if (binary && normalized) columns.Add(new(ScoreAnnotations.IsNormalizedName, VectorKind.Scalar, BooleanDataViewType.Instance, false));
        return new SchemaShape(columns);
    }

    private static List<SchemaShape.Column> Common() =>
    [
        new(ScoreAnnotations.SetIdName, VectorKind.Scalar, NumberDataViewType.UInt32, true),
        new(ScoreAnnotations.KindName, VectorKind.Scalar, TextDataViewType.Instance, false),
        new(ScoreAnnotations.ValueKindName, VectorKind.Scalar, TextDataViewType.Instance, false),
    ];

    private static string Describe(SchemaShape.Column column) =>
        $"{(column.Kind == VectorKind.Scalar ? "" : column.Kind + " of ")}{(column.IsKey ? $"Key<{column.ItemType}>" : column.ItemType)}";

    private static ArgumentOutOfRangeException Mismatch(string role, string name, string expected, string found, string advice) =>
        new("inputSchema", $"Schema mismatch for {role} column '{name}': expected {expected}, got {found}.{(advice.Length == 0 ? "" : " " + advice)}");
}
