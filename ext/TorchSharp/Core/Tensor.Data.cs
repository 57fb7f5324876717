// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Numerics;
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    public partial class Tensor
    {
        public Utils.TensorAccessor<T> data<T>() where T : unmanaged
        {
            CheckType(typeof(T));
            return new Utils.TensorAccessor<T>(device_type == DeviceType.CPU ? this : cpu());
        }

        public T item<T>() where T : unmanaged
        {
            if (NumberOfElements != 1)
                throw new ArgumentException("Number of elements in the tensor must be 1");
            if (device_type == DeviceType.CPU)
                return data<T>()[0];
            using var copy = cpu();
            return copy.data<T>()[0];
        }

        public unsafe Span<byte> bytes
        {
            get
            {
                long total = NumberOfElements * ElementSize;
                CheckBytes(total);
                return total == 0 ? [] : new Span<byte>((void*)DataPointer, (int)total);
            }
            set
            {
                CheckBytes(value.Length);
                if (NumberOfElements * ElementSize != value.Length)
                    throw new ArgumentException("Mismatched data sizes in SetBytes().");
                if (value.Length > 0)
                    value.CopyTo(new Span<byte>((void*)DataPointer, value.Length));
            }
        }

        internal nint DataPointer
        {
            get
            {
                nint pointer = Native.pt_data(Handle);
                return pointer != 0 || NumberOfElements == 0 ? pointer : throw Native.Error();
            }
        }

        private void CheckBytes(long total)
        {
            if (!is_contiguous())
                throw new InvalidOperationException("Bytes() called on non-contiguous tensor.");
            if (total > int.MaxValue)
                throw new ArgumentException("Span only supports up to int.MaxValue elements.");
            if (device_type != DeviceType.CPU)
                throw new InvalidOperationException("Reading data from non-CPU memory is not supported. Move or copy the tensor to the cpu before reading.");
        }

        /// <summary>Writes the elements' bytes as they lie in memory.</summary>
        public unsafe void WriteBytesToStream(Stream stream, int bufferSize = 1024)
        {
            CheckBytes(0);
            long total = NumberOfElements * ElementSize, chunk = Math.Max(bufferSize, 1 << 16);
            for (long at = 0; at < total; at += chunk)
                stream.Write(new ReadOnlySpan<byte>((byte*)DataPointer + at, (int)Math.Min(chunk, total - at)));
        }

        public unsafe void ReadBytesFromStream(Stream stream, int bufferSize = 1024)
        {
            CheckBytes(0);
            long total = NumberOfElements * ElementSize, chunk = Math.Max(bufferSize, 1 << 16);
            for (long at = 0; at < total; at += chunk)
                stream.ReadExactly(new Span<byte>((byte*)DataPointer + at, (int)Math.Min(chunk, total - at)));
        }

        internal void CheckType(Type type)
        {
            if (dtype == ScalarType.BFloat16)
                throw new ArgumentException($"No support for {dtype} in TorchSharp");
            if (ClrType(dtype) != type)
                throw new ArgumentException($"{type.Name} is not compatible with {dtype}");
        }

        public Scalar ToScalar()
        {
            if (dtype is ScalarType.ComplexFloat32 or ScalarType.ComplexFloat64)
            {
                using var wide = to_type(ScalarType.ComplexFloat64).reshape(1);
                return wide.item<Complex>();
            }
            var value = Ops._local_scalar_dense.Raw(One());
            return value.Tag switch
            {
                Tag.Double => Scalar.Of(BitConverter.Int64BitsToDouble(value.Bits), ScalarType.Float64),
                Tag.Bool => value.Bits != 0,
                _ => value.Bits,
            };
        }

        private Tensor One() => numel() == 1
            ? this
            : throw new System.Runtime.InteropServices.ExternalException($"a Tensor with {numel()} elements cannot be converted to Scalar");

        public double ReadCpuDouble(long i) => ReadCpuValue<double>(i);
        public float ReadCpuSingle(long i) => ReadCpuValue<float>(i);
        public int ReadCpuInt32(long i) => ReadCpuValue<int>(i);
        public long ReadCpuInt64(long i) => ReadCpuValue<long>(i);
        public byte ReadCpuByte(long i) => ReadCpuValue<byte>(i);
        public sbyte ReadCpuSByte(long i) => ReadCpuValue<sbyte>(i);
        public short ReadCpuInt16(long i) => ReadCpuValue<short>(i);
        public bool ReadCpuBool(long i) => ReadCpuValue<bool>(i);
        public float ReadCpuFloat16(long i) => (float)ReadCpuValue<Half>(i);

        public T ReadCpuValue<T>(long i) where T : unmanaged
        {
            if (device_type != DeviceType.CPU)
                throw new InvalidOperationException("Reading data from non-CPU memory is not supported. Move or copy the tensor to the cpu before reading.");
            CheckType(typeof(T));
            return new Utils.TensorAccessor<T>(this).At(i);
        }

        public object tolist()
        {
            if (ndim == 0)
                return ToScalar();
            var items = new List<object>();
            foreach (var row in unbind(0))
                using (row)
                    items.Add(row.tolist());
            return items;
        }

        public static explicit operator float(Tensor value) => value.ToSingle();
        public static explicit operator double(Tensor value) => value.ToDouble();
        public static explicit operator sbyte(Tensor value) => value.ToSByte();
        public static explicit operator byte(Tensor value) => value.ToByte();
        public static explicit operator short(Tensor value) => value.ToInt16();
        public static explicit operator int(Tensor value) => value.ToInt32();
        public static explicit operator long(Tensor value) => value.ToInt64();
        public static explicit operator bool(Tensor value) => value.ToBoolean();
    }

    internal static Type? ClrType(ScalarType type) => type switch
    {
        ScalarType.Byte => typeof(byte),
        ScalarType.Int8 => typeof(sbyte),
        ScalarType.Int16 => typeof(short),
        ScalarType.Int32 => typeof(int),
        ScalarType.Int64 => typeof(long),
        ScalarType.Float16 => typeof(Half),
        ScalarType.Float32 => typeof(float),
        ScalarType.Float64 => typeof(double),
        ScalarType.Bool => typeof(bool),
        ScalarType.ComplexFloat32 => typeof((float, float)),
        ScalarType.ComplexFloat64 => typeof(Complex),
        _ => null,
    };

    internal static ScalarType TypeOf(Type type)
    {
        foreach (var candidate in Enum.GetValues<ScalarType>())
            if (ClrType(candidate) == type)
                return candidate;
        throw new NotSupportedException($"torch has no element type for {type}: use byte, sbyte, short, int, long, Half, float, double, bool or Complex.");
    }
}

public static class TensorExtensionMethods
{
    public static float ToSingle(this torch.Tensor value) => value.ToScalar().ToSingle();
    public static double ToDouble(this torch.Tensor value) => value.ToScalar().ToDouble();
    public static sbyte ToSByte(this torch.Tensor value) => value.ToScalar().ToSByte();
    public static byte ToByte(this torch.Tensor value) => value.ToScalar().ToByte();
    public static short ToInt16(this torch.Tensor value) => value.ToScalar().ToInt16();
    public static int ToInt32(this torch.Tensor value) => value.ToScalar().ToInt32();
    public static long ToInt64(this torch.Tensor value) => value.ToScalar().ToInt64();
    public static bool ToBoolean(this torch.Tensor value) => value.ToScalar().ToBoolean();
    public static Half ToHalf(this torch.Tensor value) => value.ToScalar().ToHalf();

    public static int ElementSize(this torch.ScalarType type) => type switch
    {
        torch.ScalarType.Byte or torch.ScalarType.Int8 or torch.ScalarType.Bool => 1,
        torch.ScalarType.Int16 or torch.ScalarType.Float16 or torch.ScalarType.BFloat16 => 2,
        torch.ScalarType.Int32 or torch.ScalarType.Float32 => 4,
        torch.ScalarType.ComplexFloat64 => 16,
        _ => 8,
    };

    public static long TotalSize(this IEnumerable<long> shape) => shape.Aggregate(1L, (product, size) => product * size);
    public static string metastr(this torch.Tensor tensor) => tensor.ToString();
}
