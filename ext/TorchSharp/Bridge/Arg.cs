// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Runtime.InteropServices;

namespace TorchSharp.Bridge;

internal enum Tag
{
    None, Tensor, Int, Double, Bool, IntList, DoubleList, TensorList, OptionalTensorList, String, BoolList, Device, Default, Complex, Generator,
}

/// <summary>A tagged value as the bridge reads and writes it; the layout is the native one.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct Value
{
    internal long Bits;
    internal Tag Tag;
    internal int Length;
}

/// <summary>One argument of an operator: a tagged value, and the managed object behind it, which it keeps alive.</summary>
internal readonly struct Arg
{
    internal readonly object? Ref;
    internal readonly long Bits;
    internal readonly Tag Tag;
    internal readonly int Length;

    private Arg(Tag tag, long bits, object? reference = null, int length = 0) => (Tag, Bits, Ref, Length) = (tag, bits, reference, length);

    /// <summary>Takes the schema's default.</summary>
    internal static Arg Default => new(Tag.Default, 0);
    internal static Arg None => default;

    public static implicit operator Arg(torch.Tensor? tensor) => tensor is null ? default : new(Tag.Tensor, tensor.Handle, tensor);
    public static implicit operator Arg(Scalar? scalar) => scalar is null ? default : scalar.ToArg();
    public static implicit operator Arg(long value) => new(Tag.Int, value);
    public static implicit operator Arg(int value) => new(Tag.Int, value);
    public static implicit operator Arg(bool value) => new(Tag.Bool, value ? 1 : 0);
    public static implicit operator Arg(double value) => new(Tag.Double, BitConverter.DoubleToInt64Bits(value));
    public static implicit operator Arg(torch.ScalarType value) => new(Tag.Int, (long)value);
    public static implicit operator Arg(long? value) => value is { } v ? v : default(Arg);
    public static implicit operator Arg(int? value) => value is { } v ? v : default(Arg);
    public static implicit operator Arg(bool? value) => value is { } v ? v : default(Arg);
    public static implicit operator Arg(double? value) => value is { } v ? v : default(Arg);
    public static implicit operator Arg(torch.ScalarType? value) => value is { } v ? v : default(Arg);
    public static implicit operator Arg(string? value) => value is null ? default : new(Tag.String, 0, value, System.Text.Encoding.UTF8.GetByteCount(value));
    public static implicit operator Arg(long[]? values) => values is null ? default : new(Tag.IntList, 0, values, values.Length);
    public static implicit operator Arg(double[]? values) => values is null ? default : new(Tag.DoubleList, 0, values, values.Length);
    public static implicit operator Arg(bool[]? values) => values is null ? default : new(Tag.BoolList, 0, values, values.Length);
    public static implicit operator Arg(torch.Tensor[]? tensors) => tensors is null ? default : List(tensors);
    public static implicit operator Arg(torch.Device? device) => device is null ? default : new(Tag.Device, (long)device.type, device, device.index);
    public static implicit operator Arg(torch.Generator? generator) => generator is null ? default : new(Tag.Generator, generator.Handle, generator);

    /// <summary>A handle that the caller keeps alive.</summary>
    internal static Arg Raw(nint handle) => new(Tag.Tensor, handle);

    /// <summary>A list of one int, without an array.</summary>
    internal static Arg Ints(long only) => new(Tag.IntList, only, null, 1);
    internal static Arg List(IList<torch.Tensor> tensors) => new(Tag.TensorList, 0, tensors, tensors.Count);
    internal static Arg OptionalList(IList<torch.Tensor?> tensors) => new(Tag.OptionalTensorList, 0, tensors, tensors.Count);
    internal static Arg ComplexScalar(double[] parts) => new(Tag.Complex, 0, parts, 2);

    /// <summary>How many 8-byte cells the value needs beside its tag.</summary>
    internal int Cells => Tag switch
    {
        Tag.IntList or Tag.DoubleList or Tag.BoolList or Tag.TensorList or Tag.OptionalTensorList or Tag.Complex => Length,
        Tag.String => (Length + 7) / 8,
        _ => 0,
    };

    /// <summary>Writes the value, lists into the cells given, and returns the cells left.</summary>
    internal unsafe long* Write(Value* value, long* cells)
    {
        value->Tag = Tag;
        value->Length = Length;
        value->Bits = Bits;
        if (Cells == 0)
            return cells;
        value->Bits = (long)cells;
        switch (Ref)
        {
            case null: cells[0] = Bits; break;
            case long[] ints: ints.CopyTo(new Span<long>(cells, Length)); break;
            case double[] doubles: doubles.CopyTo(new Span<double>(cells, Length)); break;
            case bool[] flags: for (int i = 0; i < Length; i++) cells[i] = flags[i] ? 1 : 0; break;
            case string text: System.Text.Encoding.UTF8.GetBytes(text, new Span<byte>(cells, Length)); break;
            case IList<torch.Tensor?> tensors: for (int i = 0; i < Length; i++) cells[i] = tensors[i]?.Handle ?? 0; break;
        }
        return cells + Cells;
    }
}
