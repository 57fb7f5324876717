// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Immutable;
using TorchSharp;

namespace Microsoft.ML.Peft.Checkpoints;

public sealed partial class SafetensorsWriter
{
    /// <summary>Adds a tensor; its values are read when the file is written, so keep it alive and unchanged until then.</summary>
    /// <param name="name">The tensor's name; not empty, not yet there.</param>
    /// <param name="tensor">A tensor of any shape and layout, on any device.</param>
    /// <exception cref="ArgumentException">The name is there already.</exception>
    /// <exception cref="NotSupportedException">The format has no such element type.</exception>
    public void Add(string name, torch.Tensor tensor)
    {
        ArgumentNullException.ThrowIfNull(tensor);
        SafetensorsDtype dtype = TensorBytes.DtypeOf(tensor.dtype);
        long length = tensor.numel() * dtype.Bits() / 8;
        Add(name, dtype, tensor.shape.ToImmutableArray(), length, stream => TensorBytes.Write(tensor, stream));
    }
}
