// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>What the real ML.NET did, as recorded in the fixture area "mlnet", and how it was written down.</summary>
internal static class MlNetFixtures
{
    private static string Folder => Path.Combine(Shared.Fixtures, "mlnet");

    /// <summary>The cases of a file of the area; none where the area is absent.</summary>
    public static JsonArray Cases(string file) => Read(file)?.AsArray() ?? [];

    public static JsonObject Named(string file) => Read(file)?.AsObject() ?? [];

    private static JsonNode? Read(string file)
    {
        string path = Path.Combine(Folder, file);
        return File.Exists(path) ? JsonNode.Parse(File.ReadAllText(path)) : null;
    }

    /// <summary>The saved models of the area.</summary>
    public static string[] Models()
    {
        string[] found = Directory.Exists(Folder) ? Directory.GetFiles(Folder, "*.zip") : [];
        Array.Sort(found, StringComparer.Ordinal);
        return found;
    }

    /// <summary>A number, where JSON has no NaN and no infinities also by name.</summary>
    public static float Single(JsonNode? node) => node!.GetValueKind() == JsonValueKind.String
        ? float.Parse(node.GetValue<string>(), CultureInfo.InvariantCulture) : node.GetValue<float>();

    /// <summary>The schema and the first rows of data in the form of the records.</summary>
    public static JsonObject Dump(IDataView data)
    {
        JsonArray columns = [];
        foreach (DataViewSchema.Column column in data.Schema)
        {
            JsonArray annotations = [];
            foreach (DataViewSchema.Column annotation in column.Annotations.Schema)
            {
                annotations.Add(new JsonObject
                {
                    ["Name"] = annotation.Name,
                    ["type"] = annotation.Type.ToString(),
                    ["value"] = Annotation(column.Annotations, annotation),
                });
            }

            columns.Add(new JsonObject { ["Name"] = column.Name, ["type"] = column.Type.ToString(), ["IsHidden"] = column.IsHidden, ["annotations"] = annotations });
        }

        JsonArray rows = [];
        foreach (DataDebuggerPreview.RowInfo row in data.Preview(maxRows: 100).RowView)
            rows.Add(new JsonArray([.. row.Values.Select(pair => JsonValue.Create($"{pair.Key}={Show(pair.Value)}"))]));
        return new JsonObject { ["columns"] = columns, ["rows"] = rows };
    }

    private static string Annotation(DataViewSchema.Annotations annotations, DataViewSchema.Column annotation) => annotation.Type switch
    {
        VectorDataViewType { ItemType: TextDataViewType } => Show(Value<VBuffer<ReadOnlyMemory<char>>>(annotations, annotation)),
        VectorDataViewType vector when vector.ItemType == NumberDataViewType.Single => Show(Value<VBuffer<float>>(annotations, annotation)),
        TextDataViewType => Value<ReadOnlyMemory<char>>(annotations, annotation).ToString(),
        BooleanDataViewType => Value<bool>(annotations, annotation).ToString(),
        KeyDataViewType => Value<uint>(annotations, annotation).ToString(CultureInfo.InvariantCulture),
        var other => "(" + other + ")",
    };

    private static T Value<T>(DataViewSchema.Annotations annotations, DataViewSchema.Column annotation)
    {
        T value = default!;
        annotations.GetValue(annotation.Name, ref value);
        return value;
    }

    private static string Show(object? value) => value switch
    {
        VBuffer<float> floats => $"[{floats.Length}: {string.Join(",", floats.DenseValues().Select(x => x.ToString(CultureInfo.InvariantCulture)))}]",
        VBuffer<ReadOnlyMemory<char>> texts => $"[{texts.Length}: {string.Join("|", texts.DenseValues())}]",
        VBuffer<uint> keys => $"[{keys.Length}: {string.Join(",", keys.DenseValues())}]",
        null => "null",
        _ => Convert.ToString(value, CultureInfo.InvariantCulture)!,
    };
}
