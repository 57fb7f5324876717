// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using Google.Protobuf;
using Microsoft.ML.Peft.Export;
using static Microsoft.ML.Peft.Export.OnnxWire;

namespace Microsoft.ML.Peft.Bench;

/// <summary>
/// Dynamic int8 quantisation of an ONNX file, as ONNX Runtime's Python tool makes it: each product with a weight becomes
/// DynamicQuantizeLinear of the input (once an input), MatMulInteger with int8 weights, a scale a column, and the
/// multiplication with both scales. Everything else is handed through as it is.
/// </summary>
internal static class QuantisedOnnx
{
    public static void Write(string source, string target)
    {
        using FileStream file = File.Create(target);
        using var output = new CodedOutputStream(file);
        foreach ((uint tag, object value) in Fields(File.ReadAllBytes(source)))
        {
            if (WireFormat.GetTagFieldNumber(tag) != OnnxField.ModelGraph) Copy(output, tag, value);
            else Message(output, OnnxField.ModelGraph, Graph(((ByteString)value).ToByteArray()));
        }
    }

    private static byte[] Graph(byte[] bytes)
    {
        (uint Tag, object Value)[] fields = [.. Fields(bytes)];
        Dictionary<string, OnnxTensor> weights = fields.Where(f => WireFormat.GetTagFieldNumber(f.Tag) == OnnxField.GraphTensor).Select(f => ReadTensor((ByteString)f.Value))
            .Where(t => t.Type == OnnxType.Single && t.Shape.Length == 2).ToDictionary(t => t.Name);
        HashSet<string> quantisedInputs = [], quantisedWeights = [];
        using var memory = new MemoryStream();
        using (var output = new CodedOutputStream(memory, leaveOpen: true))
        {
            foreach ((uint tag, object value) in fields.Where(f => WireFormat.GetTagFieldNumber(f.Tag) != OnnxField.GraphTensor))
            {
                if (WireFormat.GetTagFieldNumber(tag) == OnnxField.GraphNode && ReadNode((ByteString)value) is { Operator: "MatMul" } node && weights.TryGetValue(node.Inputs[1], out OnnxTensor? weight))
                    Product(output, node, quantisedInputs.Add(node.Inputs[0]), quantisedWeights.Add(weight.Name) ? weight : null);
                else Copy(output, tag, value);
            }
            foreach ((uint tag, object value) in fields.Where(f => WireFormat.GetTagFieldNumber(f.Tag) == OnnxField.GraphTensor))
                if (!quantisedWeights.Contains(ReadTensor((ByteString)value).Name)) Copy(output, tag, value);
        }
        return memory.ToArray();
    }

    private static void Product(CodedOutputStream output, OnnxNode node, bool newInput, OnnxTensor? newWeight)
    {
        string x = node.Inputs[0], w = node.Inputs[1], y = node.Output;
        if (newWeight is not null) Quantise(output, newWeight);
        if (newInput) Add(output, "DynamicQuantizeLinear", [x], [x + "_q", x + "_scale", x + "_zero"]);
        Add(output, "MatMulInteger", [x + "_q", w + "_q", x + "_zero", w + "_zero"], [y + "_sum"]);
        Add(output, "Cast", [y + "_sum"], [y + "_cast"], ("to", (long)OnnxType.Single));
        Add(output, "Mul", [x + "_scale", w + "_scale"], [y + "_scale"]);
        Add(output, "Mul", [y + "_cast", y + "_scale"], [y]);
    }

    // Symmetric: the largest magnitude of a column is 127.
    private static void Quantise(CodedOutputStream output, OnnxTensor weight)
    {
        int rows = (int)weight.Shape[0], columns = (int)weight.Shape[1];
        ReadOnlySpan<float> values = MemoryMarshal.Cast<byte, float>(weight.Bytes.Span);
        float[] scales = new float[columns];
        for (int i = 0; i < values.Length; i++) scales[i % columns] = Math.Max(scales[i % columns], Math.Abs(values[i]) / 127);
        byte[] numbers = new byte[values.Length];
        for (int i = 0; i < values.Length; i++)
            numbers[i] = scales[i % columns] == 0 ? (byte)0 : (byte)(sbyte)MathF.Round(values[i] / scales[i % columns]);
        Add(output, new OnnxTensor(weight.Name + "_q", OnnxType.Int8, [rows, columns], numbers));
        Add(output, new OnnxTensor(weight.Name + "_zero", OnnxType.Int8, [columns], new byte[columns]));
        Add(output, new OnnxTensor(weight.Name + "_scale", OnnxType.Single, [columns], MemoryMarshal.AsBytes<float>(scales).ToArray()));
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

    private static OnnxTensor ReadTensor(ByteString bytes)
    {
        string name = "";
        OnnxType type = default;
        List<long> shape = [];
        ReadOnlyMemory<byte> data = default;
        foreach ((uint tag, object value) in Fields(bytes.ToByteArray()))
        {
            switch (WireFormat.GetTagFieldNumber(tag))
            {
                case OnnxField.TensorShape: shape.Add((long)value); break;
                case OnnxField.TensorType: type = (OnnxType)(long)value; break;
                case OnnxField.TensorName: name = ((ByteString)value).ToStringUtf8(); break;
                case OnnxField.TensorBytes: data = ((ByteString)value).Memory; break;
            }
        }
        return new OnnxTensor(name, type, [.. shape], data);
    }

    private static OnnxNode ReadNode(ByteString bytes)
    {
        string name = "", output = "";
        List<string> inputs = [];
        foreach ((uint tag, object value) in Fields(bytes.ToByteArray()))
        {
            switch (WireFormat.GetTagFieldNumber(tag))
            {
                case OnnxField.NodeInput: inputs.Add(((ByteString)value).ToStringUtf8()); break;
                case OnnxField.NodeOutput: output = ((ByteString)value).ToStringUtf8(); break;
                case OnnxField.NodeOperator: name = ((ByteString)value).ToStringUtf8(); break;
            }
        }
        return new OnnxNode(name, inputs, output, []);
    }

    private static void Add(CodedOutputStream output, string name, string[] inputs, string[] outputs, params (string Name, object Value)[] attributes) =>
        Message(output, OnnxField.GraphNode, Node(name, inputs, outputs, outputs[0] + "_node", attributes));

    private static void Add(CodedOutputStream output, OnnxTensor tensor) => Message(output, OnnxField.GraphTensor, Part(o =>
    {
        TensorHead(o, tensor);
        Message(o, OnnxField.TensorBytes, tensor.Bytes);
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
}
