// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Google.Protobuf;
using static Microsoft.ML.Peft.Export.OnnxWire;

namespace Microsoft.ML.Peft.Export;

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

    /// <summary>Writes the file.</summary>
    /// <exception cref="NotSupportedException">It would be larger than the two gigabytes that the format allows.</exception>
    public void Save(Stream stream)
    {
        // Weights are handed through: only what stands around them is made in memory.
        var graph = new List<ReadOnlyMemory<byte>>();
        foreach (OnnxNode node in nodes) graph.Add(Part(o => Message(o, OnnxField.GraphNode, Node(node.Operator, node.Inputs, [node.Output], node.Output, node.Attributes))));
        graph.Add(Part(o => Text(o, OnnxField.GraphName, "graph")));
        foreach (OnnxTensor tensor in tensors)
        {
            byte[] head = Part(o =>
            {
                TensorHead(o, tensor);
                o.WriteTag(OnnxField.TensorBytes, WireFormat.WireType.LengthDelimited);
                o.WriteLength(tensor.Bytes.Length);
            });
            graph.Add(Part(o =>
            {
                o.WriteTag(OnnxField.GraphTensor, WireFormat.WireType.LengthDelimited);
                o.WriteLength(head.Length + tensor.Bytes.Length);
            }));
            graph.Add(head);
            graph.Add(tensor.Bytes);
        }
        foreach (OnnxValue value in inputs) graph.Add(Part(o => Message(o, OnnxField.GraphInput, Value(value))));
        foreach (OnnxValue value in outputs) graph.Add(Part(o => Message(o, OnnxField.GraphOutput, Value(value))));
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
        Number(output, OnnxField.ModelVersion, Representation);
        Text(output, OnnxField.ModelProducer, "Microsoft.ML.Peft");
        Message(output, OnnxField.ModelOperators, Part(o => Number(o, OnnxField.OperatorsVersion, Operators)));
        foreach ((string key, string value) in metadata)
        {
            Message(output, OnnxField.ModelMetadata, Part(o =>
            {
                Text(o, OnnxField.EntryKey, key);
                Text(o, OnnxField.EntryValue, value);
            }));
        }
        output.WriteTag(OnnxField.ModelGraph, WireFormat.WireType.LengthDelimited);
        output.WriteLength(graphLength);
    }

    private static byte[] Value(OnnxValue value) => Part(o =>
    {
        Text(o, OnnxField.ValueName, value.Name);
        Message(o, OnnxField.ValueType, Part(type => Message(type, OnnxField.TypeTensor, Part(tensor =>
        {
            Number(tensor, OnnxField.TensorElement, (long)value.Type);
            Message(tensor, OnnxField.TensorAxes, Part(axes =>
            {
                foreach (object axis in value.Shape)
                {
                    Message(axes, OnnxField.Axis, Part(a =>
                    {
                        if (axis is string name) Text(a, OnnxField.AxisName, name);
                        else Number(a, OnnxField.AxisNumber, (long)axis);
                    }));
                }
            }));
        }))));
    });
}
