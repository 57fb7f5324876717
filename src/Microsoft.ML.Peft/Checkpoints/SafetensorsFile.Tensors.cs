// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;

namespace Microsoft.ML.Peft.Checkpoints;

public sealed partial class SafetensorsFile
{
    /// <summary>
    /// Makes a tensor: one copy from the file into it, in parts where it is converted or goes to a device. It belongs
    /// to the caller (and to its dispose scope) and stays valid when the file is closed.
    /// </summary>
    /// <param name="name">The tensor's name in the file.</param>
    /// <param name="dtype">Element type to convert to; null keeps the file's.</param>
    /// <param name="device">Where it shall lie; null: CPU.</param>
    /// <returns>A new contiguous tensor of the shape in the file.</returns>
    /// <exception cref="CheckpointFormatException">There is no such tensor, or no tensor type for its elements.</exception>
    public torch.Tensor Load(string name, torch.ScalarType? dtype = null, torch.Device? device = null)
    {
        SafetensorsInfo info = Info(name);
        torch.ScalarType stored = TensorBytes.TypeOf(info.Dtype) ?? throw new CheckpointFormatException(
            $"{Description}: {NearNames.Quote(name)} is {info.Dtype}, which no tensor can hold; only its bytes can be read.");
        int width = info.Dtype.Bits() / 8;
        return TensorBytes.Read([.. info.Shape], stored, dtype ?? stored, device, (first, destination) =>
        {
            Bytes(info, first * width, destination.Length).CopyTo(destination);
            if (info.Dtype == SafetensorsDtype.BOOL)
                MakeTruthValues(destination);
        });
    }

    // libtorch takes the byte of a truth value for 0 or 1 and nothing else.
    private static void MakeTruthValues(Span<byte> bytes)
    {
        foreach (ref byte value in bytes)
            value = value == 0 ? (byte)0 : (byte)1;
    }
}
