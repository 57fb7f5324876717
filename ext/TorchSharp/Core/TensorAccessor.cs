// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Collections;

namespace TorchSharp.Utils;

/// <summary>Reads and writes the elements of a CPU tensor in its logical order, whatever its strides.</summary>
public sealed class TensorAccessor<T> : IDisposable, IEnumerable<T> where T : unmanaged
{
    private readonly torch.Tensor _tensor;
    private readonly nint _data;

    internal TensorAccessor(torch.Tensor tensor)
    {
        if (tensor.device_type != DeviceType.CPU)
            throw new InvalidOperationException("Reading data from non-CPU memory is not supported. Move or copy the tensor to the cpu before reading.");
        _tensor = tensor;
        _data = tensor.DataPointer;
    }

    public long Count => _tensor.numel();
    public bool IsReadOnly => false;

    public T[] ToArray()
    {
        var result = new T[Count];
        CopyTo(result);
        return result;
    }

    public Array ToNDArray()
    {
        long[] shape = _tensor.shape;
        if (shape.Length < 2)
            return ToArray();
        var result = Array.CreateInstance(typeof(T), shape);
        ToArray().AsSpan().CopyTo(Flat(result));
        return result;
    }

    public unsafe T this[params long[] indices]
    {
        get => ((T*)_data)[Offset(indices)];
        set => ((T*)_data)[Offset(indices)] = value;
    }

    public void CopyTo(T[] array, int arrayIndex = 0, long tensorIndex = 0) => CopyTo(array.AsSpan(), arrayIndex, tensorIndex);
    public void CopyFrom(T[] array, int arrayIndex = 0, long tensorIndex = 0) => CopyFrom((ReadOnlySpan<T>)array, arrayIndex, tensorIndex);

    public unsafe void CopyTo(Span<T> array, int arrayIndex = 0, long tensorIndex = 0)
    {
        int count = Fitting(array.Length, arrayIndex, tensorIndex);
        if (_tensor.is_contiguous())
        {
            if (count > 0)
                new ReadOnlySpan<T>((T*)_data + tensorIndex, count).CopyTo(array[arrayIndex..]);
            return;
        }
        foreach (long offset in Offsets(tensorIndex, count))
            array[arrayIndex++] = ((T*)_data)[offset];
    }

    public unsafe void CopyFrom(ReadOnlySpan<T> array, int arrayIndex = 0, long tensorIndex = 0)
    {
        int count = Fitting(array.Length, arrayIndex, tensorIndex);
        if (_tensor.is_contiguous())
        {
            if (count > 0)
                array.Slice(arrayIndex, count).CopyTo(new Span<T>((T*)_data + tensorIndex, count));
            return;
        }
        foreach (long offset in Offsets(tensorIndex, count))
            ((T*)_data)[offset] = array[arrayIndex++];
    }

    public IEnumerator<T> GetEnumerator() => ((IEnumerable<T>)ToArray()).GetEnumerator();
    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    public static bool operator ==(TensorAccessor<T> left, TensorAccessor<T> right) => left.Count == right.Count && left.SequenceEqual(right);
    public static bool operator !=(TensorAccessor<T> left, TensorAccessor<T> right) => !(left == right);
    public override bool Equals(object? obj) => obj is TensorAccessor<T> other && this == other;
    public override int GetHashCode() => _tensor.GetHashCode();

    // The tensor belongs to whoever asked for its data.
    public void Dispose() { }

    internal unsafe T At(long index) => ((T*)_data)[Offset([index])];

    private int Fitting(int length, int arrayIndex, long tensorIndex) => (int)Math.Max(0, Math.Min(length - arrayIndex, Count - tensorIndex));

    private static unsafe Span<T> Flat(Array array) =>
        System.Runtime.InteropServices.MemoryMarshal.CreateSpan(
            ref System.Runtime.CompilerServices.Unsafe.As<byte, T>(ref System.Runtime.InteropServices.MemoryMarshal.GetArrayDataReference(array)), array.Length);

    // One index counts elements in logical order; several address dimensions.
    private long Offset(long[] indices)
    {
        long[] shape = _tensor.shape, strides = _tensor.stride();
        if (indices.Length == 1)
        {
            if (indices[0] < 0 || indices[0] >= Count)
                throw new IndexOutOfRangeException();
            return Linear(indices[0], shape, strides);
        }
        long offset = 0;
        for (int i = 0; i < shape.Length; i++)
        {
            if (indices[i] < 0 || indices[i] >= shape[i])
                throw new IndexOutOfRangeException($"{indices[i]} >= {shape[i]} in dimension {i}.");
            offset += indices[i] * strides[i];
        }
        return offset;
    }

    private IEnumerable<long> Offsets(long from, int count)
    {
        long[] shape = _tensor.shape, strides = _tensor.stride();
        for (int i = 0; i < count; i++)
            yield return Linear(from + i, shape, strides);
    }

    private static long Linear(long index, long[] shape, long[] strides)
    {
        long offset = 0;
        for (int i = shape.Length - 1; i >= 0; i--)
        {
            index = Math.DivRem(index, shape[i], out long at);
            offset += at * strides[i];
        }
        return offset;
    }
}
