// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Moves elements between raw bytes and tensors, in parts where a tensor is converted or larger than a span.</summary>
internal static class TensorBytes
{
    // Elements a step: what is converted or moved to a device needs no second copy of the whole tensor.
    private const long Part = 1 << 22;

    /// <summary>Writes elements as bytes.</summary>
    /// <param name="first">Index of the first element, row by row.</param>
    /// <param name="destination">Room for whole elements.</param>
    public delegate void Fill(long first, Span<byte> destination);

    /// <summary>The element type of a tensor that holds such numbers; null where TorchSharp has none.</summary>
    public static torch.ScalarType? TypeOf(SafetensorsDtype dtype) => dtype switch
    {
        SafetensorsDtype.BOOL => torch.ScalarType.Bool,
        SafetensorsDtype.U8 => torch.ScalarType.Byte,
        SafetensorsDtype.I8 => torch.ScalarType.Int8,
        SafetensorsDtype.I16 => torch.ScalarType.Int16,
        SafetensorsDtype.I32 => torch.ScalarType.Int32,
        SafetensorsDtype.I64 => torch.ScalarType.Int64,
        SafetensorsDtype.F16 => torch.ScalarType.Float16,
        SafetensorsDtype.BF16 => torch.ScalarType.BFloat16,
        SafetensorsDtype.F32 => torch.ScalarType.Float32,
        SafetensorsDtype.F64 => torch.ScalarType.Float64,
        _ => null,
    };

    /// <summary>The format's element type for a tensor.</summary>
    /// <exception cref="NotSupportedException">The format's common readers have none.</exception>
    public static SafetensorsDtype DtypeOf(torch.ScalarType type)
    {
        foreach (SafetensorsDtype dtype in Enum.GetValues<SafetensorsDtype>())
        {
            if (TypeOf(dtype) == type)
                return dtype;
        }

        throw new NotSupportedException($"Tensors of {type} cannot be stored as safetensors.");
    }

    /// <summary>Makes a tensor from bytes, one copy where nothing is to convert.</summary>
    /// <param name="shape">Sizes of all dimensions.</param>
    /// <param name="stored">Element type of the bytes.</param>
    /// <param name="wanted">Element type of the tensor.</param>
    /// <param name="device">Where it shall lie; null: CPU.</param>
    /// <param name="fill">Gives the bytes.</param>
    public static torch.Tensor Read(
        long[] shape, torch.ScalarType stored, torch.ScalarType wanted, torch.Device? device, Fill fill)
    {
        using DisposeScope scope = torch.NewDisposeScope();
        torch.Tensor tensor = torch.empty(shape, dtype: wanted, device: device ?? torch.CPU);
        long elements = tensor.numel();
        if (elements > 0)
        {
            torch.Tensor flat = tensor.view(elements);
            bool direct = stored == wanted && flat.device_type == DeviceType.CPU;
            using torch.Tensor? staging = direct
                ? null : torch.empty([Math.Min(Part, elements)], dtype: stored, device: torch.CPU);
            for (long at = 0; at < elements; at += Part)
            {
                long count = Math.Min(Part, elements - at);
                using torch.Tensor part = flat.narrow(0, at, count);
                if (staging is null)
                {
                    fill(at, part.bytes);
                    continue;
                }

                using torch.Tensor source = staging.narrow(0, 0, count);
                fill(at, source.bytes);
                part.copy_(source);
            }
        }

        return tensor.MoveToOuterDisposeScope();
    }

    /// <summary>Writes a tensor's elements row by row; a tensor on a device is fetched as a whole.</summary>
    public static void Write(torch.Tensor tensor, Stream stream)
    {
        using DisposeScope scope = torch.NewDisposeScope();
        using (torch.no_grad())
        {
            torch.Tensor here = tensor.detach().cpu().contiguous();
            long elements = here.numel();
            if (elements == 0)
                return;
            torch.Tensor flat = here.view(elements);
            for (long at = 0; at < elements; at += Part)
            {
                using torch.Tensor part = flat.narrow(0, at, Math.Min(Part, elements - at));
                stream.Write(part.bytes);
            }
        }
    }
}
