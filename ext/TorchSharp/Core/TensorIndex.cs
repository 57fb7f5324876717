// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    /// <summary>One entry of an index expression: a number, a slice, a tensor, an ellipsis, a new dimension or a flag.</summary>
    public struct TensorIndex
    {
        internal enum Kind { None, Single, Null, Ellipsis, Bool, Tensor, Slice }

        internal Kind kind;
        internal long? start, stop, step;
        internal Tensor? tensor;

        public static TensorIndex Ellipsis = new() { kind = Kind.Ellipsis };
        public static TensorIndex None = new() { kind = Kind.None };
        public static TensorIndex Null = new() { kind = Kind.Null };
        public static TensorIndex Colon = Slice();

        public static TensorIndex Slice(long? start = null, long? stop = null, long? step = null) => new() { kind = Kind.Slice, start = start, stop = stop, step = step };
        public static TensorIndex Slice((int? start, int? end) range) => Slice((long?)range.start, (long?)range.end);
        public static TensorIndex Slice(Range range) => Slice(
            range.Start.IsFromEnd ? -range.Start.Value : range.Start.Value,
            !range.End.IsFromEnd ? range.End.Value : range.End.Value == 0 ? null : -range.End.Value);
        public static TensorIndex Bool(bool value) => new() { kind = Kind.Bool, start = value ? 1 : 0 };
        public static TensorIndex Single(long? index) => new() { kind = Kind.Single, start = index };
        public static TensorIndex Tensor(Tensor tensor) => new() { kind = Kind.Tensor, tensor = tensor };

        public static implicit operator TensorIndex(long value) => Single(value);
        public static implicit operator TensorIndex((int? start, int? end) range) => Slice(range);
        public static implicit operator TensorIndex(Range range) => Slice(range);
        public static implicit operator TensorIndex(Index index) => Single(index.IsFromEnd ? -index.Value : index.Value);
        public static implicit operator Tensor(TensorIndex value) => throw new InvalidOperationException("Should not be called.");
    }

    public partial class Tensor
    {
        [System.Runtime.CompilerServices.IndexerName("TensorItems")]
        public Tensor this[params TensorIndex[] indices]
        {
            get => index(indices);
            set => index_put_(value, indices);
        }

        [System.Runtime.CompilerServices.IndexerName("TensorItems")]
        public Tensor this[params Tensor[] indices]
        {
            get => index(indices);
            set => index_put_(value, indices);
        }

        [System.Runtime.CompilerServices.IndexerName("TensorItems")]
        public Tensor this[params long[] indices]
        {
            get => index(Singles(indices));
            set => index_put_(value, Singles(indices));
        }

        [System.Runtime.CompilerServices.IndexerName("TensorItems")]
        public Tensor this[long i1]
        {
            get => index(i1);
            set => index_put_(value, (TensorIndex)i1);
        }

        [System.Runtime.CompilerServices.IndexerName("TensorItems")]
        public Tensor this[long i1, long i2]
        {
            get => index(i1, i2);
            set => index_put_(value, i1, i2);
        }

        [System.Runtime.CompilerServices.IndexerName("TensorItems")]
        public Tensor this[long i1, long i2, long i3]
        {
            get => index(i1, i2, i3);
            set => index_put_(value, i1, i2, i3);
        }

        [System.Runtime.CompilerServices.IndexerName("TensorItems")]
        public Tensor this[long i1, long i2, long i3, long i4]
        {
            get => index(i1, i2, i3, i4);
            set => index_put_(value, i1, i2, i3, i4);
        }

        public Tensor index(params Tensor[] indices) => index(Tensors(indices));
        public Tensor index_put_(Tensor value, params Tensor[] indices) => index_put_(value, Tensors(indices));
        public Tensor index_put_(Scalar value, params Tensor[] indices) => index_put_(value, Tensors(indices));

        public Tensor index(params TensorIndex[] indices)
        {
            using var view = new View(this, indices);
            return view.Tensors is null ? new Tensor(view.Take()) : Ops.index_Tensor.Call(view.Handle, Arg.OptionalList(view.Tensors));
        }

        public Tensor index_put_(Tensor value, params TensorIndex[] indices)
        {
            using var view = new View(this, indices);
            if (view.Tensors is not null)
                Native.pt_free(Ops.index_put_.Bare(view.Handle, Arg.OptionalList(view.Tensors), value));
            else
                view.Copy(value);
            return this;
        }

        public Tensor index_put_(Scalar value, params TensorIndex[] indices)
        {
            using var view = new View(this, indices);
            if (view.Tensors is null)
            {
                Native.pt_free(Ops.fill__Scalar.Bare(view.Handle, value));
                return this;
            }
            nint filling = Ops.new_full.Bare(this, Array.Empty<long>(), value);
            Native.pt_free(Ops.index_put_.Bare(view.Handle, Arg.OptionalList(view.Tensors), Arg.Raw(filling)));
            Native.pt_free(filling);
            return this;
        }

        private static TensorIndex[] Singles(long[] indices) => Array.ConvertAll(indices, i => TensorIndex.Single(i));
        private static TensorIndex[] Tensors(Tensor[] indices) => Array.ConvertAll(indices, TensorIndex.Tensor);

        /// <summary>The part of a tensor that numbers, slices and new dimensions name; tensors are left for one gather at the end.</summary>
        private sealed class View : IDisposable
        {
            private nint _handle;
            private int _dim;

            internal View(Tensor tensor, TensorIndex[] indices)
            {
                _handle = Native.pt_share(tensor.Handle);
                try
                {
                    foreach (var index in indices)
                        Apply(index, indices);
                }
                catch
                {
                    Dispose();
                    throw;
                }
            }

            internal List<Tensor?>? Tensors { get; private set; }
            internal Arg Handle => Arg.Raw(_handle);

            internal nint Take()
            {
                nint handle = _handle;
                _handle = 0;
                return handle;
            }

            /// <summary>Copies with broadcasting; leading dimensions of 1 in the value do not count.</summary>
            internal void Copy(Tensor value)
            {
                long[] shape = value.shape;
                int extra = (int)Math.Max(0, shape.Length - Native.pt_ndim(_handle));
                if (extra == 0 || !shape.Take(extra).All(size => size == 1))
                {
                    Native.pt_free(Ops.copy_.Bare(Handle, value));
                    return;
                }
                nint narrow = Ops.reshape.Bare(value, shape[extra..]);
                Native.pt_free(Ops.copy_.Bare(Handle, Arg.Raw(narrow)));
                Native.pt_free(narrow);
            }

            private void Replace(nint handle)
            {
                Native.pt_free(_handle);
                _handle = handle;
            }

            private void Apply(TensorIndex index, TensorIndex[] all)
            {
                switch (index.kind)
                {
                    case TensorIndex.Kind.Single:
                        Replace(Ops.select_int.Bare(Handle, _dim, index.start!.Value));
                        break;
                    case TensorIndex.Kind.Slice:
                        if (index.start is not null || index.stop is not null || index.step is not null)
                            Replace(Ops.slice_Tensor.Bare(Handle, _dim, index.start, index.stop, index.step ?? 1));
                        _dim++;
                        break;
                    case TensorIndex.Kind.Ellipsis:
                        _dim += (int)(Native.pt_ndim(_handle) - _dim) - Remaining(all);
                        break;
                    case TensorIndex.Kind.None or TensorIndex.Kind.Null:
                        Replace(Ops.unsqueeze.Bare(Handle, _dim));
                        _dim++;
                        break;
                    case TensorIndex.Kind.Bool:
                        Replace(Ops.unsqueeze.Bare(Handle, _dim));
                        Record(tensor(index.start != 0));
                        _dim++;
                        break;
                    default:
                        ApplyTensor(index.tensor!);
                        break;
                }
            }

            // A number in a tensor selects, a mask takes as many dimensions as it has.
            private void ApplyTensor(Tensor index)
            {
                bool mask = index.dtype is ScalarType.Bool or ScalarType.Byte;
                if (index.ndim == 0 && !mask)
                {
                    Replace(Ops.select_int.Bare(Handle, _dim, index.ToInt64()));
                    return;
                }
                if (index.ndim == 0)
                    Replace(Ops.unsqueeze.Bare(Handle, _dim));
                Record(index);
                _dim += mask ? Math.Max(1, (int)index.ndim) : 1;
            }

            private void Record(Tensor index)
            {
                Tensors ??= [];
                while (Tensors.Count < _dim - MaskDims())
                    Tensors.Add(null);
                Tensors.Add(index);
            }

            // Masks stand for several dimensions with one entry.
            private int MaskDims() => Tensors!.Sum(t => t is { dtype: ScalarType.Bool or ScalarType.Byte, ndim: > 1 } ? (int)t.ndim - 1 : 0);

            // Dimensions that the entries after the ellipsis take.
            private static int Remaining(TensorIndex[] all) =>
                all.SkipWhile(i => i.kind != TensorIndex.Kind.Ellipsis).Skip(1).Sum(i => i.kind switch
                {
                    TensorIndex.Kind.Single or TensorIndex.Kind.Slice => 1,
                    TensorIndex.Kind.Tensor => i.tensor is { dtype: ScalarType.Bool or ScalarType.Byte } mask ? (int)mask.ndim : 1,
                    _ => 0,
                });

            public void Dispose()
            {
                if (_handle != 0)
                    Native.pt_free(_handle);
                _handle = 0;
            }
        }
    }
}
