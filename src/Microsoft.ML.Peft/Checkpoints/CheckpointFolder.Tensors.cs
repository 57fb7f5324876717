// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using TorchSharp;

namespace Microsoft.ML.Peft.Checkpoints;

public sealed partial class CheckpointFolder
{
    /// <summary>
    /// Makes a tensor: one copy from the file into it. Int8 rows with scales become floating-point numbers (float32
    /// unless <paramref name="dtype"/> says otherwise).
    /// </summary>
    /// <param name="name">The name with or without <see cref="Prefix"/>.</param>
    /// <param name="expectedShape">The shape it must have; null: any.</param>
    /// <param name="dtype">Element type to convert to; null keeps the file's.</param>
    /// <param name="device">Where it shall lie; null: CPU.</param>
    /// <returns>A new contiguous tensor that belongs to the caller and to its dispose scope.</returns>
    /// <exception cref="CheckpointFormatException">There is no such tensor, or it has another shape.</exception>
    public torch.Tensor Load(
        string name, long[]? expectedShape = null, torch.ScalarType? dtype = null, torch.Device? device = null)
    {
        CheckpointTensor tensor = Get(name);
        if (expectedShape is not null && !tensor.Shape.AsSpan().SequenceEqual(expectedShape))
        {
            throw new CheckpointFormatException(
                $"{tensor.File.Description}: {WrongShape(tensor, expectedShape)}. Does config.json belong to these weights?");
        }

        if (!tensor.IsInt8PerRow)
            return tensor.File.Load(tensor.Stored.Name, dtype, device);
        float[] scales = Scales(name);
        long rowLength = Math.Max(1, tensor.Stored.Elements / Math.Max(1, tensor.Shape[0]));
        return TensorBytes.Read([.. tensor.Shape], torch.ScalarType.Float32, dtype ?? torch.ScalarType.Float32, device,
            (first, destination) =>
            {
                Span<float> values = MemoryMarshal.Cast<byte, float>(destination);
                Int8Rows.Restore(tensor.File.Bytes(tensor.Stored, first, values.Length), scales, rowLength, first, values);
            });
    }

    /// <summary>The scale of each row of a tensor that is stored as int8 rows.</summary>
    /// <param name="name">The name with or without <see cref="Prefix"/>.</param>
    /// <returns>One number a row.</returns>
    /// <exception cref="CheckpointFormatException">There is no such tensor, it is stored otherwise, or a scale is no number.</exception>
    public float[] Scales(string name)
    {
        CheckpointTensor tensor = Get(name);
        if (tensor.Scale is not SafetensorsInfo scale || tensor.ScaleFile is not SafetensorsFile file)
            throw new CheckpointFormatException($"{tensor.File.Description}: {tensor} is not stored as int8 rows.");
        float[] scales = new float[scale.Elements];
        file.Bytes(scale, 0, (int)scale.Length).CopyTo(MemoryMarshal.AsBytes(scales.AsSpan()));
        if (Array.FindIndex(scales, s => !float.IsFinite(s)) is int row and >= 0)
        {
            throw new CheckpointFormatException(
                $"{file.Description}: {NearNames.Quote(scale.Name)} is not a finite number at row {row}.");
        }

        return scales;
    }
}
