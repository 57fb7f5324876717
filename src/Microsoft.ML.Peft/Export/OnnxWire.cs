// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Google.Protobuf;

namespace Microsoft.ML.Peft.Export;

/// <summary>Type of a tensor's elements, by ONNX's numbers.</summary>
internal enum OnnxType
{
    Single = 1,
    Int8 = 3,
    Int64 = 7,
}

/// <summary>Type of a node's setting, by ONNX's numbers.</summary>
internal enum OnnxAttribute
{
    Float = 1,
    Int = 2,
    Ints = 7,
}

/// <summary>Numbers of the fields, as the format defines them.</summary>
internal static class OnnxField
{
    public const int ModelVersion = 1, ModelProducer = 2, ModelGraph = 7, ModelOperators = 8, ModelMetadata = 14;
    public const int OperatorsVersion = 2, EntryKey = 1, EntryValue = 2;
    public const int GraphNode = 1, GraphName = 2, GraphTensor = 5, GraphInput = 11, GraphOutput = 12;
    public const int NodeInput = 1, NodeOutput = 2, NodeName = 3, NodeOperator = 4, NodeAttribute = 5;
    public const int AttributeName = 1, AttributeFloat = 2, AttributeInt = 3, AttributeInts = 8, AttributeType = 20;
    public const int TensorShape = 1, TensorType = 2, TensorName = 8, TensorBytes = 9;
    public const int ValueName = 1, ValueType = 2, TypeTensor = 1, TensorElement = 1, TensorAxes = 2, Axis = 1, AxisNumber = 1, AxisName = 2;
}

/// <summary>What ONNX's files are made of, in the wire format of protocol buffers.</summary>
internal static class OnnxWire
{
    /// <summary>A message's bytes.</summary>
    public static byte[] Part(Action<CodedOutputStream> write)
    {
        using var memory = new MemoryStream();
        using (var output = new CodedOutputStream(memory, leaveOpen: true)) write(output);
        return memory.ToArray();
    }

    /// <summary>Writes a field that is a message, or bytes.</summary>
    public static void Message(CodedOutputStream output, int field, ReadOnlyMemory<byte> bytes)
    {
        output.WriteTag(field, WireFormat.WireType.LengthDelimited);
        output.WriteBytes(UnsafeByteOperations.UnsafeWrap(bytes));
    }

    /// <summary>Writes a field that is a text.</summary>
    public static void Text(CodedOutputStream output, int field, string text)
    {
        output.WriteTag(field, WireFormat.WireType.LengthDelimited);
        output.WriteString(text);
    }

    /// <summary>Writes a field that is a whole number.</summary>
    public static void Number(CodedOutputStream output, int field, long number)
    {
        output.WriteTag(field, WireFormat.WireType.Varint);
        output.WriteInt64(number);
    }

    /// <summary>An operator's message; settings are long, float or long[].</summary>
    public static byte[] Node(
        string operation, IEnumerable<string> inputs, IEnumerable<string> outputs, string name, IEnumerable<(string Name, object Value)> attributes) => Part(o =>
    {
        foreach (string input in inputs) Text(o, OnnxField.NodeInput, input);
        foreach (string output in outputs) Text(o, OnnxField.NodeOutput, output);
        Text(o, OnnxField.NodeName, name);
        Text(o, OnnxField.NodeOperator, operation);
        foreach ((string setting, object value) in attributes) Message(o, OnnxField.NodeAttribute, Attribute(setting, value));
    });

    private static byte[] Attribute(string name, object value) => Part(o =>
    {
        Text(o, OnnxField.AttributeName, name);
        switch (value)
        {
            case long number:
                Number(o, OnnxField.AttributeInt, number);
                Number(o, OnnxField.AttributeType, (long)OnnxAttribute.Int);
                break;
            case float number:
                o.WriteTag(OnnxField.AttributeFloat, WireFormat.WireType.Fixed32);
                o.WriteFloat(number);
                Number(o, OnnxField.AttributeType, (long)OnnxAttribute.Float);
                break;
            case long[] numbers:
                foreach (long number in numbers) Number(o, OnnxField.AttributeInts, number);
                Number(o, OnnxField.AttributeType, (long)OnnxAttribute.Ints);
                break;
            default:
                throw new ArgumentException($"Attribute '{name}' is a {value.GetType()}; allowed are long, float and long[].", nameof(value));
        }
    });

    /// <summary>Writes a tensor up to its elements, which are the last field.</summary>
    public static void TensorHead(CodedOutputStream output, OnnxTensor tensor)
    {
        foreach (long axis in tensor.Shape) Number(output, OnnxField.TensorShape, axis);
        Number(output, OnnxField.TensorType, (long)tensor.Type);
        Text(output, OnnxField.TensorName, tensor.Name);
    }
}
