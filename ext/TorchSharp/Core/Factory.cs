// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Runtime.InteropServices;
using TorchSharp.Bridge;

namespace TorchSharp;

/// <summary>Makes tensors: of arrays, copied or shared, and of fill rules.</summary>
internal static unsafe class Factory
{
    private static torch.ScalarType s_default = torch.ScalarType.Float32;

    internal static torch.ScalarType DefaultType
    {
        get => s_default;
        set
        {
            Native.Check(Native.pt_set_default_dtype((int)value));
            s_default = value;
        }
    }

    internal static void NoNames(string[]? names)
    {
        if (names is { Length: > 0 })
            throw new NotSupportedException("Named dimensions are not supported here: the TorchSharp package has them.");
    }

    /// <summary>The tail that all factories share; dtype null is the default type.</summary>
    internal static torch.Tensor Finish(torch.Tensor tensor, bool requiresGrad, string[]? names = null)
    {
        NoNames(names);
        if (requiresGrad)
            tensor.requires_grad = true;
        return tensor;
    }

    internal static torch.Tensor Fill(Op op, long[] size, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad, string[]? names) =>
        Finish(op.Call(size, dtype ?? DefaultType, Arg.None, torch.InitializeDevice(device)), requiresGrad, names);

    internal static torch.Tensor Full(long[] size, Scalar value, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad, string[]? names) =>
        Finish(Ops.full.Call(size, value, dtype ?? (value.IsIntegral ? value.Type : value.IsComplex ? value.Type : DefaultType), Arg.None, torch.InitializeDevice(device)), requiresGrad, names);

    internal static torch.Tensor Random(Op op, Op seeded, long[] size, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad, torch.Generator? generator, string[]? names)
    {
        var on = torch.InitializeDevice(device);
        var made = generator is null
            ? op.Call(size, dtype ?? DefaultType, Arg.None, on)
            : seeded.Call(size, generator, dtype ?? DefaultType, Arg.None, on);
        return Finish(made, requiresGrad, names);
    }

    internal static torch.Tensor Like(Op op, torch.Tensor input, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad, string[]? names = null) =>
        Finish(op.Call(input, dtype ?? input.dtype, Arg.None, device is null ? Arg.None : torch.InitializeDevice(device)), requiresGrad, names);

    internal static torch.Tensor Scalar<T>(T value, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad) where T : unmanaged =>
        OfSpan([value], [], dtype, device, requiresGrad, null);

    /// <summary>A copy of the elements; the shape may ask for fewer than there are.</summary>
    internal static torch.Tensor OfSpan<T>(ReadOnlySpan<T> values, ReadOnlySpan<long> shape, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad, string[]? names) where T : unmanaged
    {
        NoNames(names);
        long count = 1;
        foreach (long size in shape)
            count *= size;
        if (count > values.Length)
            throw new ArgumentException($"mismatched total size creating a tensor from an array: {count} vs. {values.Length}");
        var origin = torch.TypeOf(typeof(T));
        var on = torch.InitializeDevice(device);
        nint raw = Ops.empty_memory_format.Bare(shape.ToArray(), origin, Arg.None, torch.CPU);
        if (count > 0)
            values[..(int)count].CopyTo(new Span<T>((void*)Native.pt_data(raw), (int)count));
        var wanted = dtype ?? origin;
        if (wanted != origin || on.type != DeviceType.CPU)
        {
            nint moved = Ops.to_dtype_layout.Bare(Arg.Raw(raw), wanted, Arg.None, on, Arg.None, false, false);
            Native.pt_free(raw);
            raw = moved;
        }
        return Finish(new torch.Tensor(raw), requiresGrad);
    }

    /// <summary>An array of any rank, copied.</summary>
    internal static torch.Tensor OfArray<T>(Array array, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad, string[]? names) where T : unmanaged =>
        OfSpan<T>(Elements<T>(array), Shape(array), dtype, device, requiresGrad, names);

    internal static torch.Tensor OfList<T>(IList<T> list, ReadOnlySpan<long> shape, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad, string[]? names) where T : unmanaged =>
        OfSpan<T>(list as T[] ?? [.. list], shape, dtype, device, requiresGrad, names);

    internal static long[] Shape(Array array)
    {
        long[] shape = new long[array.Rank];
        for (int i = 0; i < shape.Length; i++)
            shape[i] = array.GetLength(i);
        return shape;
    }

    /// <summary>A tensor over the array's own memory, which stays pinned while the tensor lives.</summary>
    internal static torch.Tensor Share(Array array, long offset, ReadOnlySpan<long> shape, torch.ScalarType? dtype, torch.Device? device, bool requiresGrad, string[]? names = null)
    {
        var origin = torch.TypeOf(array.GetType().GetElementType()!);
        var on = torch.InitializeDevice(device);
        var pin = GCHandle.Alloc(array, GCHandleType.Pinned);
        byte* data = (byte*)pin.AddrOfPinnedObject() + offset * origin.ElementSize();
        nint raw;
        fixed (long* sizes = shape)
            raw = Native.pt_from_blob(data, sizes, shape.Length, (int)origin, &Unpin, GCHandle.ToIntPtr(pin));
        if (raw == 0)
        {
            pin.Free();
            throw Native.Error();
        }
        if ((dtype ?? origin) != origin || on.type != DeviceType.CPU)
        {
            nint moved = Ops.to_dtype_layout.Bare(Arg.Raw(raw), dtype ?? origin, Arg.None, on, Arg.None, false, false);
            Native.pt_free(raw);
            raw = moved;
        }
        return Finish(new torch.Tensor(raw), requiresGrad, names);
    }

    internal static torch.Tensor FromBuffer(Array array, torch.ScalarType dtype, long count, long offset, bool requiresGrad)
    {
        if (offset < 0 || offset >= array.LongLength)
            throw new ArgumentException($"invalid value for 'offset': {offset}");
        if (count > array.LongLength - offset)
            throw new IndexOutOfRangeException($"element count is too large: {count}");
        return Share(array, offset, [count < 0 ? array.LongLength - offset : count], dtype, torch.CPU, requiresGrad);
    }

    [UnmanagedCallersOnly]
    private static void Unpin(nint key) => GCHandle.FromIntPtr(key).Free();

    private static ReadOnlySpan<T> Elements<T>(Array array) where T : unmanaged =>
        MemoryMarshal.CreateReadOnlySpan(ref System.Runtime.CompilerServices.Unsafe.As<byte, T>(ref MemoryMarshal.GetArrayDataReference(array)), array.Length);
}
