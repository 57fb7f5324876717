// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    /// <summary>A tensor of libtorch: owns one native reference, until disposed by hand, by its scope or, at last, by the finalizer.</summary>
    public partial class Tensor : IDisposable
    {
        private static long s_total;
        private static long s_peak;
        private nint _handle;

        internal Tensor(nint handle, bool register = true)
        {
            _handle = handle;
            long total = Interlocked.Increment(ref s_total);
            if (total > s_peak)
                s_peak = total;
            if (register)
                OwningDisposeScope = DisposeScopeManager.ThreadSingleton.Register(this);
        }

        ~Tensor() => Dispose(false);

        public static Tensor UnsafeCreateTensor(IntPtr handle) => new(handle);

        internal DisposeScope? OwningDisposeScope { get; set; }

        public string? name { get; set; }

        public static long TotalCount => s_total;
        public static long PeakCount => s_peak;

        public IntPtr Handle => _handle != 0 ? _handle : throw new InvalidOperationException("Tensor invalid -- empty handle.");
        public bool IsInvalid => _handle == 0;

        public void Dispose()
        {
            Dispose(true);
            GC.SuppressFinalize(this);
        }

        protected virtual void Dispose(bool disposing)
        {
            if (_handle == 0)
                return;
            DisposeScopeManager.ThreadSingleton.Disposing(this);
            OwningDisposeScope?.MarkAsDisposed(this);
            Interlocked.Decrement(ref s_total);
            Native.pt_free(_handle);
            _handle = 0;
        }

        public IntPtr DecoupleFromNativeHandle()
        {
            nint handle = Handle;
            GC.SuppressFinalize(this);
            Interlocked.Decrement(ref s_total);
            _handle = 0;
            return handle;
        }

        public Tensor MoveToOuterDisposeScope()
        {
            OwningDisposeScope?.MoveToOuter(this);
            return this;
        }

        public Tensor DetachFromDisposeScope()
        {
            OwningDisposeScope?.Detach(this);
            return this;
        }

        public Tensor MoveToOtherDisposeScope(Tensor other) => MoveToOtherDisposeScope(other.OwningDisposeScope);

        public Tensor MoveToOtherDisposeScope(DisposeScope? other)
        {
            if (OwningDisposeScope is { } scope)
                scope.MoveToOther(other, this);
            else
                other?.Attach(this);
            return this;
        }

        public override bool Equals(object? obj) => obj is Tensor other && Equals(other);
        public bool Equals(Tensor target) => Ops.equal.Bool(this, target);
        public override int GetHashCode() => System.Runtime.CompilerServices.RuntimeHelpers.GetHashCode(this);

        public long Dimensions => Native.pt_ndim(Handle);
        public long ndim => Native.pt_ndim(Handle);
        public long dim() => Native.pt_ndim(Handle);
        public long NumberOfElements => Native.pt_numel(Handle);
        public long numel() => Native.pt_numel(Handle);
        public long ElementSize => Native.pt_element_size(Handle);
        public long element_size() => Native.pt_element_size(Handle);
        public ScalarType dtype => (ScalarType)Native.pt_dtype(Handle);
        public DeviceType device_type => (DeviceType)Native.pt_device_type(Handle);
        public int device_index => Native.pt_device_index(Handle);
        public Device device => device_type == DeviceType.CPU ? CPU : new Device(device_type, device_index);

        public long[] shape => size();

        public unsafe long[] size()
        {
            long[] sizes = new long[Native.pt_ndim(Handle)];
            fixed (long* p = sizes)
                Native.pt_sizes(Handle, p);
            return sizes;
        }

        public long size(int dim)
        {
            long[] sizes = size();
            int at = dim < 0 ? dim + sizes.Length : dim;
            if (at < 0 || at >= sizes.Length)
                throw new System.Runtime.InteropServices.ExternalException($"Dimension out of range (expected to be in range of [{-sizes.Length}, {sizes.Length - 1}], but got {dim})");
            return sizes[at];
        }

        public unsafe long[] stride()
        {
            long[] strides = new long[Native.pt_ndim(Handle)];
            fixed (long* p = strides)
                Native.Check(Native.pt_strides(Handle, p));
            return strides;
        }

        public long stride(int dim)
        {
            long[] strides = stride();
            return strides[dim < 0 ? dim + strides.Length : dim];
        }

        public long storage_offset() => Native.pt_storage_offset(Handle) is var offset and >= 0 ? offset : throw Native.Error();
        public bool is_contiguous() => Native.Check(Native.pt_is_contiguous(Handle)) != 0;
        public bool is_cpu() => device_type == DeviceType.CPU;
        public bool is_cuda => device_type == DeviceType.CUDA;
        public bool is_meta => device_type == DeviceType.META;
        public bool is_sparse => Native.pt_layout(Handle) == 1;
        public bool is_integral() => torch.is_integral(dtype);
        public bool is_floating_point() => torch.is_floating_point(dtype);
        public bool is_complex() => torch.is_complex(dtype);
        public bool is_nonzero() => numel() == 1 ? ToScalar().ToBoolean() : throw new InvalidOperationException("is_nonzero() called on non-singleton tensor");

        public override string ToString() =>
            IsInvalid ? "disposed tensor" : $"[{string.Join('x', shape)}], type = {dtype}, device = {device}";
    }

    public static DisposeScope NewDisposeScope() => DisposeScopeManager.ThreadSingleton.NewDisposeScope();

    /// <summary>Runs the expression in a scope of its own and keeps nothing but its result.</summary>
    public static Tensor WrappedTensorDisposeScope(Func<Tensor> expr)
    {
        using var scope = NewDisposeScope();
        var result = expr();
        return result.MoveToOuterDisposeScope();
    }
}
