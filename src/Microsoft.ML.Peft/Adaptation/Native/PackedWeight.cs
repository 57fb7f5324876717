// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>A frozen weight laid out for products in one direction.</summary>
internal sealed class PackedWeight : SafeHandle
{
    private PackedWeight(nint handle) : base(0, ownsHandle: true) => SetHandle(handle);

    public override bool IsInvalid => handle == 0;

    /// <summary>Memory that it takes.</summary>
    public unsafe long Bytes => NativeKernels.Calls.Bytes(handle);

    /// <summary>Packs a weight <c>[out, in]</c> for <c>x Wᵀ</c>, or for <c>dy W</c> where transposed.</summary>
    public static unsafe PackedWeight Of(Tensor weight, bool transposed)
    {
        using Tensor dense = weight.detach().contiguous();
        (long outWidth, long inWidth) = (dense.shape[0], dense.shape[1]);
        float* data = NativeKernels.Pointer(dense);
        nint made = transposed
            ? NativeKernels.Calls.Pack(data, inWidth, outWidth, 1, inWidth)
            : NativeKernels.Calls.Pack(data, outWidth, inWidth, inWidth, 1);
        GC.KeepAlive(dense);
        return made != 0 ? new PackedWeight(made) : throw new OutOfMemoryException($"No memory to pack a weight of {outWidth} x {inWidth}.");
    }

    protected override unsafe bool ReleaseHandle()
    {
        NativeKernels.Calls.Free(handle);
        return true;
    }
}

/// <summary>The packed forms of one frozen projection: made at first use, shared by all adaptations, freed with the backbone.</summary>
internal sealed class PackedPair : IDisposable
{
    private readonly Lock _gate = new();
    private PackedWeight? _forward, _backward;

    public PackedWeight Forward(Tensor weight) => Volatile.Read(ref _forward) ?? Made(ref _forward, weight, transposed: false);

    public PackedWeight Backward(Tensor weight) => Volatile.Read(ref _backward) ?? Made(ref _backward, weight, transposed: true);

    private PackedWeight Made(ref PackedWeight? place, Tensor weight, bool transposed)
    {
        using Lock.Scope alone = _gate.EnterScope();
        if (place is null) Volatile.Write(ref place, PackedWeight.Of(weight, transposed));
        return place!;
    }

    public void Dispose()
    {
        _forward?.Dispose();
        _backward?.Dispose();
        (_forward, _backward) = (null, null);
    }
}
