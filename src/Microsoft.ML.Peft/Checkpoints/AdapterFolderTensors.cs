// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Tensors of adapter files: any floating type is read as float32, float32 is written.</summary>
internal static class AdapterTensors
{
    /// <summary>Reads a tensor as float32 on the CPU; the caller disposes it.</summary>
    /// <param name="file">An open file.</param>
    /// <param name="name">Name of the tensor.</param>
    /// <exception cref="CheckpointFormatException">The element type is no floating type.</exception>
    public static Tensor Read(SafetensorsFile file, string name)
    {
        SafetensorsInfo info = file.Info(name);
        ReadOnlySpan<byte> bytes = file.Bytes(name);
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
                    $"{file.Description}: tensor {NearNames.Quote(name)} has the element type {info.Dtype}; adapters are read from F32, F16, BF16 or F64.");
        }
        return tensor(values, info.Shape.AsSpan());
    }

    /// <summary>Adds a tensor as float32.</summary>
    /// <param name="writer">The file that is made.</param>
    /// <param name="name">Name in the file.</param>
    /// <param name="value">Any floating tensor.</param>
    public static void Add(SafetensorsWriter writer, string name, Tensor value)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Tensor plain = value.detach().to_type(ScalarType.Float32).cpu().contiguous();
        writer.Add(name, SafetensorsDtype.F32, plain.shape, plain.bytes.ToArray());
    }
}
