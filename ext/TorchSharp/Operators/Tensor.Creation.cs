// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    public partial class Tensor
    {
        public Tensor bernoulli(Generator? generator = null) => Ops.bernoulli.Call(this, generator);
        public Tensor bernoulli_(double p = 0.5, Generator? generator = null) => Ops.bernoulli__float.Self(this, p, generator);
        public Tensor bernoulli_(Tensor p, Generator? generator = null) => Ops.bernoulli__Tensor.Self(this, p, generator);
        public Tensor binomial(Tensor prob, Generator? generator = null) => Ops.binomial.Call(this, prob, generator);
        public Tensor cauchy_(double median = 0, double sigma = 1, Generator? generator = null) => Ops.cauchy_.Self(this, median, sigma, generator);
        public Tensor empty_like(ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => Factory.Like(Ops.empty_like, this, dtype, device, requires_grad);
        public Tensor exponential_(double lambda = 1, Generator? generator = null) => Ops.exponential_.Self(this, lambda, generator);
        public Tensor full_like(Scalar value, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => Factory.Finish(Ops.full_like.Call(this, value, dtype ?? this.dtype, Arg.None, device), requires_grad);
        public Tensor geometric_(double p, Generator? generator = null) => Ops.geometric_.Self(this, p, generator);
        public Tensor log_normal_(double mean = 0, double std = 1, Generator? generator = null) => Ops.log_normal_.Self(this, mean, std, generator);
        public Tensor multinomial(long num_samples, bool replacement = false, Generator? generator = null) => Ops.multinomial.Call(this, num_samples, replacement, generator);
        public Tensor new_empty(long dim0, long dim1, long dim2, long dim3, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_empty, [dim0, dim1, dim2, dim3], dtype, device, requires_grad);
        public Tensor new_empty(long dim0, long dim1, long dim2, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_empty, [dim0, dim1, dim2], dtype, device, requires_grad);
        public Tensor new_empty(long rows, long columns, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_empty, [rows, columns], dtype, device, requires_grad);
        public Tensor new_empty(long size, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_empty, [size], dtype, device, requires_grad);
        public Tensor new_empty(long[] size, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_empty, size, dtype, device, requires_grad);
        public Tensor new_empty(ReadOnlySpan<long> size, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_empty, size.ToArray(), dtype, device, requires_grad);
        public Tensor new_full(long dim0, long dim1, long dim2, long dim3, Scalar value, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => NewFull([dim0, dim1, dim2, dim3], value, dtype, device, requires_grad);
        public Tensor new_full(long dim0, long dim1, long dim2, Scalar value, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => NewFull([dim0, dim1, dim2], value, dtype, device, requires_grad);
        public Tensor new_full(long rows, long columns, Scalar value, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => NewFull([rows, columns], value, dtype, device, requires_grad);
        public Tensor new_full(long size, Scalar value, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => NewFull([size], value, dtype, device, requires_grad);
        public Tensor new_full(long[] size, Scalar value, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => NewFull(size, value, dtype, device, requires_grad);
        public Tensor new_full(ReadOnlySpan<long> size, Scalar value, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => NewFull(size.ToArray(), value, dtype, device, requires_grad);
        public Tensor new_ones(long dim0, long dim1, long dim2, long dim3, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_ones, [dim0, dim1, dim2, dim3], dtype, device, requires_grad);
        public Tensor new_ones(long dim0, long dim1, long dim2, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_ones, [dim0, dim1, dim2], dtype, device, requires_grad);
        public Tensor new_ones(long rows, long columns, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_ones, [rows, columns], dtype, device, requires_grad);
        public Tensor new_ones(long size, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_ones, [size], dtype, device, requires_grad);
        public Tensor new_zeros(long dim0, long dim1, long dim2, long dim3, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_zeros, [dim0, dim1, dim2, dim3], dtype, device, requires_grad);
        public Tensor new_zeros(long dim0, long dim1, long dim2, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_zeros, [dim0, dim1, dim2], dtype, device, requires_grad);
        public Tensor new_zeros(long rows, long columns, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_zeros, [rows, columns], dtype, device, requires_grad);
        public Tensor new_zeros(long size, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_zeros, [size], dtype, device, requires_grad);
        public Tensor new_zeros(long[] size, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_zeros, size, dtype, device, requires_grad);
        public Tensor new_zeros(ReadOnlySpan<long> size, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => New(Ops.new_zeros, size.ToArray(), dtype, device, requires_grad);
        public Tensor normal_(double mean = 0, double std = 1, Generator? generator = null) => Ops.normal_.Self(this, mean, std, generator);
        public Tensor ones_like(ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => Factory.Like(Ops.ones_like, this, dtype, device, requires_grad);
        public Tensor poisson(Generator? generator = null) => Ops.poisson.Call(this, generator);
        public Tensor rand_like(ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => Factory.Like(Ops.rand_like, this, dtype, device, requires_grad);
        public Tensor randint_like(long low, long high, ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => Factory.Finish(Ops.randint_like_low_dtype.Call(this, low, high, dtype ?? this.dtype, Arg.None, device), requires_grad);
        public Tensor randn_like(ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => Factory.Like(Ops.randn_like, this, dtype, device, requires_grad);
        public Tensor uniform_(double from, double to, Generator? generator = null) => Ops.uniform_.Self(this, from, to, generator);
        public Tensor zeros_like(ScalarType? dtype = null, Device? device = null, bool requires_grad = false) => Factory.Like(Ops.zeros_like, this, dtype, device, requires_grad);

        private Tensor New(Op op, long[] size, ScalarType? dtype, Device? device, bool requiresGrad) =>
            Factory.Finish(op.Call(this, size, dtype ?? this.dtype, Arg.None, device), requiresGrad);

        private Tensor NewFull(long[] size, Scalar value, ScalarType? dtype, Device? device, bool requiresGrad) =>
            Factory.Finish(Ops.new_full.Call(this, size, value, dtype ?? this.dtype, Arg.None, device), requiresGrad);
    }
}
