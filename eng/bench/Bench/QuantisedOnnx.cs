// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using Google.Protobuf;

namespace Microsoft.ML.Peft.Bench;

/// <summary>
/// Dynamic int8 quantisation of an ONNX file, as ONNX Runtime's Python tool makes it: each product with a weight becomes
/// DynamicQuantizeLinear of the input (once an input), MatMulInteger with int8 weights, a scale a column, and the
/// multiplication with both scales. Everything else is handed through as it is.
/// </summary>
internal static class QuantisedOnnx
{
    // Numbers of the format's fields and element types.
    private const int ModelGraph = 7, GraphNode = 1, GraphTensor = 5, NodeInput = 1, NodeOutput = 2, NodeName = 3, NodeOperator = 4, NodeAttribute = 5;
    private const int TensorShape = 1, TensorType = 2, TensorName = 8, TensorBytes = 9, Single = 1, Int8 = 3;

    private sealed record Tensor(string Name, int Type, long[] Shape, ByteString Bytes);

    private sealed record Node(string Operator, string[] Inputs, string Output);

    public static void Write(string source, string target)
    {
        using FileStream file = File.Create(target);
        using var output = new CodedOutputStream(file);
        foreach ((uint tag, object value) in Fields(File.ReadAllBytes(source)))
        {
            if (WireFormat.GetTagFieldNumber(tag) != ModelGraph) Copy(output, tag, value);
            else Message(output, ModelGraph, Graph(((ByteString)value).ToByteArray()));
        }
    }

    private static byte[] Graph(byte[] bytes)
    {
        (uint Tag, object Value)[] fields = [.. Fields(bytes)];
        Dictionary<string, Tensor> weights = fields.Where(f => WireFormat.GetTagFieldNumber(f.Tag) == GraphTensor).Select(f => ReadTensor((ByteString)f.Value))
            .Where(t => t.Type == Single && t.Shape.Length == 2).ToDictionary(t => t.Name);
        HashSet<string> quantisedInputs = [], quantisedWeights = [];
        using var memory = new MemoryStream();
        using (var output = new CodedOutputStream(memory, leaveOpen: true))
        {
            foreach ((uint tag, object value) in fields.Where(f => WireFormat.GetTagFieldNumber(f.Tag) != GraphTensor))
            {
                if (WireFormat.GetTagFieldNumber(tag) == GraphNode && ReadNode((ByteString)value) is { Operator: "MatMul" } node && weights.TryGetValue(node.Inputs[1], out Tensor? weight))
                    Product(output, node, quantisedInputs.Add(node.Inputs[0]), quantisedWeights.Add(weight.Name) ? weight : null);
                else Copy(output, tag, value);
            }
            foreach ((uint tag, object value) in fields.Where(f => WireFormat.GetTagFieldNumber(f.Tag) == GraphTensor))
                if (!quantisedWeights.Contains(ReadTensor((ByteString)value).Name)) Copy(output, tag, value);
        }
        return memory.ToArray();
    }

    private static void Product(CodedOutputStream output, Node node, bool newInput, Tensor? newWeight)
    {
        string x = node.Inputs[0], w = node.Inputs[1], y = node.Output;
        if (newWeight is not null) Quantise(output, newWeight);
        if (newInput) Add(output, "DynamicQuantizeLinear", [x], [x + "_q", x + "_scale", x + "_zero"]);
        Add(output, "MatMulInteger", [x + "_q", w + "_q", x + "_zero", w + "_zero"], [y + "_sum"]);
        Add(output, "Cast", [y + "_sum"], [y + "_cast"], Part(o =>
        {
            Text(o, 1, "to");
            Number(o, 3, Single);
            Number(o, 20, 2);
        }));
        Add(output, "Mul", [x + "_scale", w + "_scale"], [y + "_scale"]);
        Add(output, "Mul", [y + "_cast", y + "_scale"], [y]);
    }

    // Symmetric: the largest magnitude of a column is 127.
    private static void Quantise(CodedOutputStream output, Tensor weight)
    {
        int rows = (int)weight.Shape[0], columns = (int)weight.Shape[1];
        ReadOnlySpan<float> values = MemoryMarshal.Cast<byte, float>(weight.Bytes.Span);
        float[] scales = new float[columns];
        for (int i = 0; i < values.Length; i++) scales[i % columns] = Math.Max(scales[i % columns], Math.Abs(values[i]) / 127);
        byte[] numbers = new byte[values.Length];
        for (int i = 0; i < values.Length; i++)
            numbers[i] = scales[i % columns] == 0 ? (byte)0 : (byte)(sbyte)MathF.Round(values[i] / scales[i % columns]);
        Add(output, new Tensor(weight.Name + "_q", Int8, [rows, columns], UnsafeByteOperations.UnsafeWrap(numbers)));
        Add(output, new Tensor(weight.Name + "_zero", Int8, [columns], ByteString.CopyFrom(new byte[columns])));
        Add(output, new Tensor(weight.Name + "_scale", Single, [columns], ByteString.CopyFrom(MemoryMarshal.AsBytes<float>(scales))));
    }

    private static IEnumerable<(uint Tag, object Value)> Fields(byte[] bytes)
    {
        using var input = new CodedInputStream(bytes);
        for (uint tag; (tag = input.ReadTag()) != 0;)
        {
            yield return (tag, WireFormat.GetTagWireType(tag) switch
            {
                WireFormat.WireType.Varint => input.ReadInt64(),
                WireFormat.WireType.Fixed32 => input.ReadFixed32(),
                WireFormat.WireType.Fixed64 => input.ReadFixed64(),
                WireFormat.WireType.LengthDelimited => input.ReadBytes(),
                var other => throw new InvalidDataException($"The file has a field of wire type {other}."),
            });
        }
    }

    private static Tensor ReadTensor(ByteString bytes)
    {
        string name = "";
        int type = 0;
        List<long> shape = [];
        ByteString data = ByteString.Empty;
        foreach ((uint tag, object value) in Fields(bytes.ToByteArray()))
        {
            switch (WireFormat.GetTagFieldNumber(tag))
            {
                case TensorShape: shape.Add((long)value); break;
                case TensorType: type = (int)(long)value; break;
                case TensorName: name = ((ByteString)value).ToStringUtf8(); break;
                case TensorBytes: data = (ByteString)value; break;
            }
        }
        return new Tensor(name, type, [.. shape], data);
    }

    private static Node ReadNode(ByteString bytes)
    {
        string name = "", output = "";
        List<string> inputs = [];
        foreach ((uint tag, object value) in Fields(bytes.ToByteArray()))
        {
            switch (WireFormat.GetTagFieldNumber(tag))
            {
                case NodeInput: inputs.Add(((ByteString)value).ToStringUtf8()); break;
                case NodeOutput: output = ((ByteString)value).ToStringUtf8(); break;
                case NodeOperator: name = ((ByteString)value).ToStringUtf8(); break;
            }
        }
        return new Node(name, [.. inputs], output);
    }

    private static void Add(CodedOutputStream output, string name, string[] inputs, string[] outputs, byte[]? attribute = null) => Message(output, GraphNode, Part(o =>
    {
        foreach (string input in inputs) Text(o, NodeInput, input);
        foreach (string made in outputs) Text(o, NodeOutput, made);
        Text(o, NodeName, outputs[0] + "_node");
        Text(o, NodeOperator, name);
        if (attribute is not null) Message(o, NodeAttribute, attribute);
    }));

    private static void Add(CodedOutputStream output, Tensor tensor) => Message(output, GraphTensor, Part(o =>
    {
        foreach (long axis in tensor.Shape) Number(o, TensorShape, axis);
        Number(o, TensorType, tensor.Type);
        Text(o, TensorName, tensor.Name);
        o.WriteTag(TensorBytes, WireFormat.WireType.LengthDelimited);
        o.WriteBytes(tensor.Bytes);
    }));

    private static void Copy(CodedOutputStream output, uint tag, object value)
    {
        output.WriteTag(tag);
        switch (value)
        {
            case long number: output.WriteInt64(number); break;
            case uint number: output.WriteFixed32(number); break;
            case ulong number: output.WriteFixed64(number); break;
            case ByteString bytes: output.WriteBytes(bytes); break;
        }
    }

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
