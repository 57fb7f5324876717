// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Tensors of adapter files: any floating type is read as float32, float32 is written.</summary>
internal static class AdapterTensors
{
    /// <summary>Reads a tensor on the CPU, floating ones as float32, whole numbers as they are; the caller disposes it.</summary>
    /// <param name="file">An open file.</param>
    /// <param name="name">Name of the tensor.</param>
    /// <exception cref="CheckpointFormatException">The element type is no floating type.</exception>
    public static Tensor Read(SafetensorsFile file, string name)
    {
        SafetensorsInfo info = file.Info(name);
        ReadOnlySpan<byte> bytes = file.Bytes(name);
        switch (info.Dtype)
        {
            case SafetensorsDtype.I64: return tensor(MemoryMarshal.Cast<byte, long>(bytes).ToArray(), info.Shape.AsSpan());
            case SafetensorsDtype.I32: return tensor(MemoryMarshal.Cast<byte, int>(bytes).ToArray(), info.Shape.AsSpan());
            case SafetensorsDtype.U8: return tensor(bytes.ToArray(), info.Shape.AsSpan());
        }
        var values = new float[info.Elements];
        switch (info.Dtype)
        {
            case SafetensorsDtype.F32:
                MemoryMarshal.Cast<byte, float>(bytes).CopyTo(values);
                break;
            case SafetensorsDtype.F16:
                ReadOnlySpan<Half> halves = MemoryMarshal.Cast<byte, Half>(bytes);
                for (int i = 0; i < values.Length; i++) values[i] = (float)halves[i];
                break;
            case SafetensorsDtype.BF16:
                ReadOnlySpan<ushort> words = MemoryMarshal.Cast<byte, ushort>(bytes);
                for (int i = 0; i < values.Length; i++) values[i] = BitConverter.Int32BitsToSingle(words[i] << 16);
                break;
            case SafetensorsDtype.F64:
                ReadOnlySpan<double> doubles = MemoryMarshal.Cast<byte, double>(bytes);
                for (int i = 0; i < values.Length; i++) values[i] = (float)doubles[i];
                break;
            default:
                throw new CheckpointFormatException(
                    $"{file.Description}: tensor {NearNames.Quote(name)} has the element type {info.Dtype}; adapters are read from F32, F16, BF16, F64, I64, I32 or U8.");
        }
        return tensor(values, info.Shape.AsSpan());
    }

    /// <summary>Adds a tensor: floating ones as float32, whole numbers as they are.</summary>
    /// <param name="writer">The file that is made.</param>
    /// <param name="name">Name in the file.</param>
    /// <param name="value">A floating tensor, or one of int64, int32 or bytes.</param>
    public static void Add(SafetensorsWriter writer, string name, Tensor value)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        (SafetensorsDtype kind, ScalarType type) = value.dtype switch
        {
            ScalarType.Int64 => (SafetensorsDtype.I64, ScalarType.Int64),
            ScalarType.Int32 => (SafetensorsDtype.I32, ScalarType.Int32),
            ScalarType.Byte => (SafetensorsDtype.U8, ScalarType.Byte),
            _ => (SafetensorsDtype.F32, ScalarType.Float32),
        };
        Tensor plain = value.detach().to_type(type).cpu().contiguous();
        writer.Add(name, kind, plain.shape, plain.bytes.ToArray());
    }
}
