// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Data;

/// <summary>What the labels of a classifier are: true and false, or keys with their values.</summary>
internal sealed class LabelSet
{
    private LabelSet(bool binary, int count, VectorDataViewType? valuesType, Array? values)
    {
        IsBinary = binary;
        Count = count;
        ValuesType = valuesType;
        Values = values;
    }

    /// <summary>True for a Boolean label column.</summary>
    public bool IsBinary { get; }

    /// <summary>Number of classes.</summary>
    public int Count { get; }

    /// <summary>Type of the key values' vector, or null where the key has none.</summary>
    public VectorDataViewType? ValuesType { get; }

    /// <summary>The key values, an array of the item type, or null.</summary>
    public Array? Values { get; }

    /// <summary>A short text for each class, for reports.</summary>
    public IReadOnlyList<string> Names => IsBinary
        ? ["False", "True"]
        : [.. Enumerable.Range(0, Count).Select(i => Values is null ? (i + 1).ToString() : AsText(Values.GetValue(i)!))];

    /// <summary>Reads the label column's kind and key values.</summary>
    /// <param name="column">The label column.</param>
    /// <exception cref="ArgumentOutOfRangeException">The type fits no classifier; the message says what to do.</exception>
    public static LabelSet Read(DataViewSchema.Column column)
    {
        if (column.Type is BooleanDataViewType) return new LabelSet(true, 2, null, null);
        if (column.Type is not KeyDataViewType key)
            throw new ArgumentOutOfRangeException("inputSchema",
                $"Schema mismatch for label column '{column.Name}': expected Key or Boolean, got {column.Type}. "
                + "Put mlContext.Transforms.Conversion.MapValueToKey on the label column in front of the trainer, or load it as bool.");
        if (key.Count is 0 or > int.MaxValue)
            throw new ArgumentException($"Label column '{column.Name}' is a key of {key.Count} values; expected a known number of classes.");
        DataViewSchema.Column? annotation = column.Annotations.Schema.GetColumnOrNull("KeyValues");
        if (annotation?.Type is not VectorDataViewType type) return new LabelSet(false, (int)key.Count, null, null);
        return new LabelSet(false, (int)key.Count, type, ReadValues(column, type.ItemType));
    }

    private static Array ReadValues(DataViewSchema.Column column, DataViewType item) => item switch
    {
        TextDataViewType => Annotation<ReadOnlyMemory<char>>(column),
        BooleanDataViewType => Annotation<bool>(column),
        _ when item.RawType == typeof(float) => Annotation<float>(column),
        _ when item.RawType == typeof(double) => Annotation<double>(column),
        _ when item.RawType == typeof(sbyte) => Annotation<sbyte>(column),
        _ when item.RawType == typeof(short) => Annotation<short>(column),
        _ when item.RawType == typeof(int) => Annotation<int>(column),
        _ when item.RawType == typeof(long) => Annotation<long>(column),
        _ when item.RawType == typeof(byte) => Annotation<byte>(column),
        _ when item.RawType == typeof(ushort) => Annotation<ushort>(column),
        _ when item.RawType == typeof(uint) => Annotation<uint>(column),
        _ when item.RawType == typeof(ulong) => Annotation<ulong>(column),
        _ => throw new NotSupportedException($"Label column '{column.Name}' has key values of type {item}; supported are text, numbers and Boolean."),
    };

    private static T[] Annotation<T>(DataViewSchema.Column column)
    {
        VBuffer<T> buffer = default;
        column.Annotations.GetValue("KeyValues", ref buffer);
        return [.. buffer.DenseValues()];
    }

    /// <summary>Writes the labels into a model's description.</summary>
    public JsonObject ToJson()
    {
        var json = new JsonObject { ["binary"] = IsBinary, ["count"] = Count };
        if (Values is null) return json;
        json["type"] = ValuesType!.ItemType is TextDataViewType ? "text" : ValuesType.ItemType.RawType.Name;
        // Numbers as round-trip text: JSON readers would turn 64-bit integers into doubles.
        json["values"] = new JsonArray([.. Values.Cast<object>().Select(v => (JsonNode?)JsonValue.Create(AsText(v)))]);
        return json;
    }

    private static string AsText(object value) => value switch
    {
        float or double => ((IFormattable)value).ToString("R", System.Globalization.CultureInfo.InvariantCulture),
        ReadOnlyMemory<char> or bool => value.ToString()!,
        _ => ((IFormattable)value).ToString(null, System.Globalization.CultureInfo.InvariantCulture),
    };

    /// <summary>Reads what <see cref="ToJson"/> wrote.</summary>
    public static LabelSet FromJson(JsonObject json)
    {
        if ((bool)json["binary"]!) return new LabelSet(true, 2, null, null);
        int count = (int)json["count"]!;
        if (json["values"] is not JsonArray values) return new LabelSet(false, count, null, null);
        if (values.Count != count) throw new FormatException($"The model names {values.Count} labels but has {count} classes.");
        string[] text = [.. values.Select(v => (string)v!)];
        var invariant = System.Globalization.CultureInfo.InvariantCulture;
        (DataViewType type, Array array) = (string)json["type"]! switch
        {
            "text" => ((DataViewType)TextDataViewType.Instance, (Array)text.Select(t => t.AsMemory()).ToArray()),
            nameof(Boolean) => (BooleanDataViewType.Instance, text.Select(bool.Parse).ToArray()),
            nameof(Single) => (NumberDataViewType.Single, text.Select(t => float.Parse(t, invariant)).ToArray()),
            nameof(Double) => (NumberDataViewType.Double, text.Select(t => double.Parse(t, invariant)).ToArray()),
            nameof(SByte) => (NumberDataViewType.SByte, text.Select(t => sbyte.Parse(t, invariant)).ToArray()),
            nameof(Int16) => (NumberDataViewType.Int16, text.Select(t => short.Parse(t, invariant)).ToArray()),
            nameof(Int32) => (NumberDataViewType.Int32, text.Select(t => int.Parse(t, invariant)).ToArray()),
            nameof(Int64) => (NumberDataViewType.Int64, text.Select(t => long.Parse(t, invariant)).ToArray()),
            nameof(Byte) => (NumberDataViewType.Byte, text.Select(t => byte.Parse(t, invariant)).ToArray()),
            nameof(UInt16) => (NumberDataViewType.UInt16, text.Select(t => ushort.Parse(t, invariant)).ToArray()),
            nameof(UInt32) => (NumberDataViewType.UInt32, text.Select(t => uint.Parse(t, invariant)).ToArray()),
            nameof(UInt64) => (NumberDataViewType.UInt64, text.Select(t => ulong.Parse(t, invariant)).ToArray()),
            string other => throw new FormatException($"The model's labels have the unknown type '{other}'."),
        };
        return new LabelSet(false, count, new VectorDataViewType((PrimitiveDataViewType)type, count), array);
    }

    /// <summary>Adds the key values to a column's annotations under a name.</summary>
    /// <param name="builder">Annotations under construction.</param>
    /// <param name="name">KeyValues, TrainingLabelValues or SlotNames.</param>
    public void Annotate(DataViewSchema.Annotations.Builder builder, string name)
    {
        if (Values is null) return;
        switch (Values)
        {
            case ReadOnlyMemory<char>[] v: Add(builder, name, v); break;
            case bool[] v: Add(builder, name, v); break;
            case float[] v: Add(builder, name, v); break;
            case double[] v: Add(builder, name, v); break;
            case sbyte[] v when Values.GetType() == typeof(sbyte[]): Add(builder, name, v); break;
            case short[] v when Values.GetType() == typeof(short[]): Add(builder, name, v); break;
            case int[] v when Values.GetType() == typeof(int[]): Add(builder, name, v); break;
            case long[] v when Values.GetType() == typeof(long[]): Add(builder, name, v); break;
            case byte[] v when Values.GetType() == typeof(byte[]): Add(builder, name, v); break;
            case ushort[] v when Values.GetType() == typeof(ushort[]): Add(builder, name, v); break;
            case uint[] v when Values.GetType() == typeof(uint[]): Add(builder, name, v); break;
            case ulong[] v when Values.GetType() == typeof(ulong[]): Add(builder, name, v); break;
        }
    }

    private void Add<T>(DataViewSchema.Annotations.Builder builder, string name, T[] values) =>
        builder.Add(name, ValuesType!, (ref VBuffer<T> target) =>
        {
            VBufferEditor<T> editor = VBufferEditor.Create(ref target, values.Length);
            values.CopyTo(editor.Values);
            target = editor.Commit();
        });
}
