// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Google.Protobuf;

namespace Microsoft.ML.Peft.Export;

/// <summary>Type of a tensor's elements, by ONNX's numbers.</summary>
internal enum OnnxType
{
    Single = 1,
    Int64 = 7,
}

/// <summary>A tensor that the file holds.</summary>
/// <param name="Name">Its name.</param>
/// <param name="Type">Type of the elements.</param>
/// <param name="Shape">Lengths of the axes.</param>
/// <param name="Bytes">The elements, little-endian, row by row.</param>
internal sealed record OnnxTensor(string Name, OnnxType Type, long[] Shape, ReadOnlyMemory<byte> Bytes);

/// <summary>An operator between named values.</summary>
/// <param name="Operator">Name in the default operator set.</param>
/// <param name="Inputs">Names of the inputs; an empty one is left out.</param>
/// <param name="Output">Name of the output, and of the node.</param>
/// <param name="Attributes">Settings: long, float, or long[].</param>
internal sealed record OnnxNode(string Operator, IReadOnlyList<string> Inputs, string Output, IReadOnlyList<(string Name, object Value)> Attributes);

/// <summary>An input or output of the whole; an axis is a number or a name.</summary>
internal sealed record OnnxValue(string Name, OnnxType Type, IReadOnlyList<object> Shape);

/// <summary>
/// A network in ONNX's file format (https://onnx.ai), written by the wire format of protocol buffers: version 8 of the
/// representation, version 17 of the operators.
/// </summary>
internal sealed class OnnxFile(
    IReadOnlyList<OnnxNode> nodes, IReadOnlyList<OnnxTensor> tensors, IReadOnlyList<OnnxValue> inputs, IReadOnlyList<OnnxValue> outputs,
    IReadOnlyList<(string Key, string Value)> metadata)
{
    private const int Representation = 8, Operators = 17;

    // Numbers of the fields, as the format defines them.
    private static class Field
    {
        public const int ModelVersion = 1, ModelProducer = 2, ModelGraph = 7, ModelOperators = 8, ModelMetadata = 14;
        public const int OperatorsVersion = 2, EntryKey = 1, EntryValue = 2;
        public const int GraphNode = 1, GraphName = 2, GraphTensor = 5, GraphInput = 11, GraphOutput = 12;
        public const int NodeInput = 1, NodeOutput = 2, NodeName = 3, NodeOperator = 4, NodeAttribute = 5;
        public const int AttributeName = 1, AttributeFloat = 2, AttributeInt = 3, AttributeInts = 8, AttributeType = 20;
        public const int TensorShape = 1, TensorType = 2, TensorName = 8, TensorBytes = 9;
        public const int ValueName = 1, ValueType = 2, TypeTensor = 1, TensorElement = 1, TensorAxes = 2, Axis = 1, AxisNumber = 1, AxisName = 2;
    }

    private enum AttributeKind
    {
        Float = 1,
        Int = 2,
        Ints = 7,
    }

    /// <summary>Writes the file.</summary>
    /// <exception cref="NotSupportedException">It would be larger than the two gigabytes that the format allows.</exception>
    public void Save(Stream stream)
    {
        // Weights are handed through: only what stands around them is made in memory.
        var graph = new List<ReadOnlyMemory<byte>>();
        foreach (OnnxNode node in nodes) graph.Add(Part(o => Message(o, Field.GraphNode, Node(node))));
        graph.Add(Part(o => Text(o, Field.GraphName, "graph")));
        foreach (OnnxTensor tensor in tensors)
        {
            byte[] head = Part(o => TensorHead(o, tensor));
            graph.Add(Part(o =>
            {
                o.WriteTag(Field.GraphTensor, WireFormat.WireType.LengthDelimited);
                o.WriteLength(head.Length + tensor.Bytes.Length);
            }));
            graph.Add(head);
            graph.Add(tensor.Bytes);
        }
        foreach (OnnxValue value in inputs) graph.Add(Part(o => Message(o, Field.GraphInput, Value(value))));
        foreach (OnnxValue value in outputs) graph.Add(Part(o => Message(o, Field.GraphOutput, Value(value))));
        long length = graph.Sum(p => (long)p.Length);
        if (length > int.MaxValue - 65536)
            throw new NotSupportedException($"The network has {length >> 20} MiB; an ONNX file of one piece holds at most 2,047 MiB.");
        using var output = new CodedOutputStream(stream, leaveOpen: true);
        WriteHead(output, (int)length);
        output.Flush();
        foreach (ReadOnlyMemory<byte> part in graph) stream.Write(part.Span);
    }

    private void WriteHead(CodedOutputStream output, int graphLength)
    {
        Number(output, Field.ModelVersion, Representation);
        Text(output, Field.ModelProducer, "Microsoft.ML.Peft");
        Message(output, Field.ModelOperators, Part(o => Number(o, Field.OperatorsVersion, Operators)));
        foreach ((string key, string value) in metadata)
        {
            Message(output, Field.ModelMetadata, Part(o =>
            {
                Text(o, Field.EntryKey, key);
                Text(o, Field.EntryValue, value);
            }));
        }
        output.WriteTag(Field.ModelGraph, WireFormat.WireType.LengthDelimited);
        output.WriteLength(graphLength);
    }

    private static byte[] Node(OnnxNode node) => Part(o =>
    {
        foreach (string input in node.Inputs) Text(o, Field.NodeInput, input);
        Text(o, Field.NodeOutput, node.Output);
        Text(o, Field.NodeName, node.Output);
        Text(o, Field.NodeOperator, node.Operator);
        foreach ((string name, object value) in node.Attributes) Message(o, Field.NodeAttribute, Attribute(name, value));
    });

    private static byte[] Attribute(string name, object value) => Part(o =>
    {
        Text(o, Field.AttributeName, name);
        switch (value)
        {
            case long number:
                Number(o, Field.AttributeInt, number);
                Number(o, Field.AttributeType, (long)AttributeKind.Int);
                break;
            case float number:
                o.WriteTag(Field.AttributeFloat, WireFormat.WireType.Fixed32);
                o.WriteFloat(number);
                Number(o, Field.AttributeType, (long)AttributeKind.Float);
                break;
            case long[] numbers:
                foreach (long number in numbers) Number(o, Field.AttributeInts, number);
                Number(o, Field.AttributeType, (long)AttributeKind.Ints);
                break;
            default:
                throw new ArgumentException($"Attribute '{name}' is a {value.GetType()}; allowed are long, float and long[].", nameof(value));
        }
    });

    private static void TensorHead(CodedOutputStream output, OnnxTensor tensor)
    {
        foreach (long axis in tensor.Shape) Number(output, Field.TensorShape, axis);
        Number(output, Field.TensorType, (long)tensor.Type);
        Text(output, Field.TensorName, tensor.Name);
        output.WriteTag(Field.TensorBytes, WireFormat.WireType.LengthDelimited);
        output.WriteLength(tensor.Bytes.Length);
    }

    private static byte[] Value(OnnxValue value) => Part(o =>
    {
        Text(o, Field.ValueName, value.Name);
        Message(o, Field.ValueType, Part(type => Message(type, Field.TypeTensor, Part(tensor =>
        {
            Number(tensor, Field.TensorElement, (long)value.Type);
            Message(tensor, Field.TensorAxes, Part(axes =>
            {
                foreach (object axis in value.Shape)
                {
                    Message(axes, Field.Axis, Part(a =>
                    {
                        if (axis is string name) Text(a, Field.AxisName, name);
                        else Number(a, Field.AxisNumber, (long)axis);
                    }));
                }
            }));
        }))));
    });

    private static byte[] Part(Action<CodedOutputStream> write)
    {
        using var memory = new MemoryStream();
        using (var output = new CodedOutputStream(memory, leaveOpen: true)) write(output);
        return memory.ToArray();
    }

    private static void Message(CodedOutputStream output, int field, byte[] bytes)
    {
        output.WriteTag(field, WireFormat.WireType.LengthDelimited);
        output.WriteBytes(UnsafeByteOperations.UnsafeWrap(bytes));
    }

    private static void Text(CodedOutputStream output, int field, string text)
    {
        output.WriteTag(field, WireFormat.WireType.LengthDelimited);
        output.WriteString(text);
    }

    private static void Number(CodedOutputStream output, int field, long number)
    {
        output.WriteTag(field, WireFormat.WireType.Varint);
        output.WriteInt64(number);
    }
}
