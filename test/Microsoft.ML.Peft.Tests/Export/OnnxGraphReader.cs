// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using Google.Protobuf;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Export;

/// <summary>
/// An ONNX file read back and computed operator by operator, each as its specification says: an engine of our own to
/// compare with, since none is among the packages. Knows the operators that encoders need.
/// </summary>
internal sealed class OnnxGraphReader
{
    private readonly List<Node> _nodes = [];
    private readonly Dictionary<string, (int Type, long[] Shape, byte[] Bytes)> _tensors = [];

    private OnnxGraphReader()
    {
    }

    private sealed record Node(string Operator, List<string> Inputs, string Output, Dictionary<string, object> Attributes);

    public List<string> Inputs { get; } = [];

    public List<string> Outputs { get; } = [];

    public Dictionary<string, string> Metadata { get; } = [];

    public long Representation { get; private set; }

    public long Operators { get; private set; }

    public static OnnxGraphReader Open(string path)
    {
        var file = new OnnxGraphReader();
        foreach ((int field, object value) in Fields(File.ReadAllBytes(path)))
        {
            if (field == 1) file.Representation = (long)value;
            if (field == 7) file.ReadGraph((byte[])value);
            if (field == 8) file.Operators = (long)Fields((byte[])value).Single(f => f.Field == 2).Value;
            if (field == 14)
            {
                Dictionary<int, object> entry = Fields((byte[])value).ToDictionary(f => f.Field, f => f.Value);
                file.Metadata[Text(entry[1])] = Text(entry[2]);
            }
        }
        return file;
    }

    private static string Text(object bytes) => System.Text.Encoding.UTF8.GetString((byte[])bytes);

    // Fields of a message: long for numbers, float, or bytes.
    private static List<(int Field, object Value)> Fields(byte[] message)
    {
        var input = new CodedInputStream(message);
        var fields = new List<(int, object)>();
        while (input.ReadTag() is var tag and not 0)
        {
            int field = WireFormat.GetTagFieldNumber(tag);
            fields.Add((field, WireFormat.GetTagWireType(tag) switch
            {
                WireFormat.WireType.Varint => input.ReadInt64(),
                WireFormat.WireType.Fixed32 => input.ReadFloat(),
                WireFormat.WireType.LengthDelimited => input.ReadBytes().ToByteArray(),
                var other => throw new InvalidDataException($"wire type {other}"),
            }));
        }
        return fields;
    }

    private void ReadGraph(byte[] graph)
    {
        foreach ((int field, object value) in Fields(graph))
        {
            switch (field)
            {
                case 1: _nodes.Add(ReadNode((byte[])value)); break;
                case 5: ReadTensor((byte[])value); break;
                case 11: Inputs.Add(Text(Fields((byte[])value).Single(f => f.Field == 1).Value)); break;
                case 12: Outputs.Add(Text(Fields((byte[])value).Single(f => f.Field == 1).Value)); break;
            }
        }
    }

    private static Node ReadNode(byte[] bytes)
    {
        var node = new Node("", [], "", []);
        foreach ((int field, object value) in Fields(bytes))
        {
            if (field == 1) node.Inputs.Add(Text(value));
            if (field == 2) node = node with { Output = Text(value) };
            if (field == 4) node = node with { Operator = Text(value) };
            if (field != 5) continue;
            List<(int Field, object Value)> attribute = Fields((byte[])value);
            object Only(int wanted) => attribute.Single(f => f.Field == wanted).Value;
            node.Attributes[Text(Only(1))] = (long)Only(20) switch
            {
                1 => Only(2),
                2 => Only(3),
                7 => attribute.Where(f => f.Field == 8).Select(f => (long)f.Value).ToArray(),
                var type => throw new InvalidDataException($"attribute type {type}"),
            };
        }
        return node;
    }

    private void ReadTensor(byte[] bytes)
    {
        List<(int Field, object Value)> fields = Fields(bytes);
        object Only(int field) => fields.Single(f => f.Field == field).Value;
        _tensors[Text(Only(8))] = ((int)(long)Only(2), [.. fields.Where(f => f.Field == 1).Select(f => (long)f.Value)], (byte[])Only(9));
    }

    /// <summary>Computes the outputs; run it inside of a dispose scope.</summary>
    public Dictionary<string, Tensor> Run(Dictionary<string, Tensor> inputs)
    {
        CollectionAssert.AreEquivalent(Inputs, inputs.Keys.ToArray());
        var values = new Dictionary<string, Tensor>(inputs);
        foreach ((string name, (int type, long[] shape, byte[] bytes)) in _tensors)
        {
            values[name] = type == 1
                ? tensor(MemoryMarshal.Cast<byte, float>(bytes).ToArray()).reshape(shape)
                : tensor(MemoryMarshal.Cast<byte, long>(bytes).ToArray()).reshape(shape);
        }
        foreach (Node node in _nodes)
        {
            Assert.IsFalse(values.ContainsKey(node.Output), $"{node.Output} is made twice");
            values[node.Output] = Compute(node, [.. node.Inputs.Select(n => values[n])]);
        }
        return Outputs.ToDictionary(n => n, n => values[n]);
    }

    private static Tensor Compute(Node node, Tensor[] x)
    {
        long Int(string name, long missing) => node.Attributes.TryGetValue(name, out object? v) ? (long)v : missing;
        long[] Ints(string name) => (long[])node.Attributes[name];
        long[] Numbers(Tensor t) => t.data<long>().ToArray();
        switch (node.Operator)
        {
            case "Identity": return x[0];
            case "Add": return x[0] + x[1];
            case "Sub": return x[0] - x[1];
            case "Mul": return x[0] * x[1];
            case "Div": return x[0] / x[1];
            case "MatMul": return x[0].matmul(x[1]);
            case "Erf": return x[0].erf();
            case "Tanh": return x[0].tanh();
            case "Relu": return x[0].relu();
            case "Sigmoid": return x[0].sigmoid();
            case "Not": return x[0].logical_not();
            case "Equal": return x[0].eq(x[1]);
            case "CumSum": return x[0].cumsum(x[1].item<long>());
            case "Softmax": return x[0].softmax(Int("axis", -1));
            case "Transpose": return x[0].permute(Ints("perm"));
            case "Shape": return tensor(x[0].shape);
            case "Concat": return cat(x, Int("axis", 0));
            case "Expand": return x[0].expand(Numbers(x[1]));
            case "Cast": return x[0].to_type(Int("to", 0) == 1 ? ScalarType.Float32 : ScalarType.Int64);
            case "Range": return arange(x[0].item<long>(), x[1].item<long>(), x[2].item<long>(), ScalarType.Int64);
            case "Reshape": return x[0].reshape([.. Numbers(x[1]).Select((n, i) => n == 0 ? x[0].shape[i] : n)]);
            case "Unsqueeze": return Numbers(x[1]).Order().Aggregate(x[0], (t, axis) => t.unsqueeze(axis));
            case "ReduceSum": return x[0].sum(Numbers(x[1]), Int("keepdims", 1) != 0);
            case "ReduceMean": return x[0].mean(Ints("axes"), Int("keepdims", 1) != 0);
            case "LayerNormalization": return nn.functional.layer_norm(x[0], [x[1].shape[0]], x[1], x.Length > 2 ? x[2] : null, (float)node.Attributes["epsilon"]);
            case "Conv": return nn.functional.conv2d(x[0], x[1], x.Length > 2 ? x[2] : null, Ints("strides"));
            case "Gather":
                long axis = Int("axis", 0);
                Tensor rows = x[0].index_select(axis, x[1].reshape(-1));
                return rows.reshape([.. x[0].shape[..(int)axis], .. x[1].shape, .. x[0].shape[((int)axis + 1)..]]);
            case "Slice":
                long[] starts = Numbers(x[1]), ends = Numbers(x[2]), axes = x.Length > 3 ? Numbers(x[3]) : [0];
                return axes.Select((a, i) => (a, i)).Aggregate(x[0], (t, at) => t.slice(at.a, starts[at.i], ends[at.i], 1));
            default: throw new NotSupportedException(node.Operator);
        }
    }
}
