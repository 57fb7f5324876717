// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Finds and reads what the real ML.NET was recorded to do.</summary>
internal static class MlNetRecords
{
    public static string Folder => Path.Combine(Shared.Fixtures, "mlnet");

    /// <summary>Every record file of the folder, parsed.</summary>
    public static IEnumerable<(string Name, JsonNode Root)> Files()
        => Directory.GetFiles(Folder, "*.json").Order()
            .Select(path => (Path.GetFileName(path), JsonNode.Parse(File.ReadAllText(path))!));

    /// <summary>A number, also where it had to be written as text.</summary>
    public static double Number(JsonNode? node)
        => node!.GetValueKind() == System.Text.Json.JsonValueKind.String
            ? double.Parse(node.GetValue<string>(), CultureInfo.InvariantCulture)
            : node.GetValue<double>();

    public static double[] Numbers(JsonNode? node) => node!.AsArray().Select(Number).ToArray();

    public static float[] Singles(JsonNode? node)
        => node!.AsArray().Select(x => x!.GetValueKind() == System.Text.Json.JsonValueKind.String
            ? float.Parse(x.GetValue<string>(), CultureInfo.InvariantCulture)
            : x.GetValue<float>()).ToArray();

    /// <summary>How the records write a value of a row.</summary>
    public static string Show(object? value) => value switch
    {
        VBuffer<float> x => $"[{x.Length}: {string.Join(",", x.DenseValues())}]",
        VBuffer<ReadOnlyMemory<char>> x => $"[{x.Length}: {string.Join("|", x.DenseValues())}]",
        VBuffer<uint> x => $"[{x.Length}: {string.Join(",", x.DenseValues())}]",
        null => "null",
        _ => Convert.ToString(value, CultureInfo.InvariantCulture)!,
    };

    /// <summary>How the records write an annotation's value.</summary>
    public static string Show(DataViewSchema.Annotations annotations, DataViewSchema.Column column) => column.Type switch
    {
        VectorDataViewType { ItemType: TextDataViewType } => Show(Get<VBuffer<ReadOnlyMemory<char>>>(annotations, column)),
        VectorDataViewType { ItemType: var item } when item == NumberDataViewType.Single => Show(Get<VBuffer<float>>(annotations, column)),
        TextDataViewType => Get<ReadOnlyMemory<char>>(annotations, column).ToString(),
        BooleanDataViewType => Get<bool>(annotations, column).ToString(),
        KeyDataViewType => Get<uint>(annotations, column).ToString(CultureInfo.InvariantCulture),
        _ => "(" + column.Type + ")",
    };

    private static T Get<T>(DataViewSchema.Annotations annotations, DataViewSchema.Column column)
    {
        T value = default!;
        annotations.GetValue(column.Name, ref value);
        return value;
    }
}
