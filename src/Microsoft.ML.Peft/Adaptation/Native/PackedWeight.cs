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
    public static unsafe PackedWeight Of(Tensor weight, bool transposed, Precision precision)
    {
        using Tensor dense = weight.detach().contiguous();
        (long outWidth, long inWidth) = (dense.shape[0], dense.shape[1]);
        float* data = NativeKernels.Pointer(dense);
        var pack = precision switch
        {
            Precision.BFloat16 => NativeKernels.Calls.PackBFloat16,
            Precision.Int8Frozen => NativeKernels.Calls.PackInt8,
            _ => NativeKernels.Calls.Pack,
        };
        nint made = transposed ? pack(data, inWidth, outWidth, 1, inWidth) : pack(data, outWidth, inWidth, inWidth, 1);
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
    private readonly PackedWeight?[] _packed = new PackedWeight?[6];

    public PackedWeight Forward(Tensor weight, Precision precision) => Get(weight, transposed: false, precision);

    public PackedWeight Backward(Tensor weight, Precision precision) => Get(weight, transposed: true, precision);

    public bool Has(Precision precision) => _packed[(int)precision * 2] is not null || _packed[((int)precision * 2) + 1] is not null;

    private PackedWeight Get(Tensor weight, bool transposed, Precision precision)
    {
        ref PackedWeight? place = ref _packed[((int)precision * 2) + (transposed ? 1 : 0)];
        if (Volatile.Read(ref place) is { } packed) return packed;
        using Lock.Scope alone = _gate.EnterScope();
        if (place is null) Volatile.Write(ref place, PackedWeight.Of(weight, transposed, precision));
        return place!;
    }

    public void Dispose()
    {
        foreach (PackedWeight? packed in _packed) packed?.Dispose();
        Array.Clear(_packed);
    }
}
