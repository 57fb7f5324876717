// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    public partial class Tensor
    {
        public Tensor all() => Ops.all.Call(this);
        public Tensor all(long dim, bool keepdim = false) => Ops.all_dim.Call(this, dim, keepdim);
        public Tensor amax(long[] dims, bool keepdim = false, Tensor? @out = null) => NoOut(@out) ?? Ops.amax.Call(this, dims, keepdim);
        public Tensor amax(ReadOnlySpan<long> dims, bool keepdim = false, Tensor? @out = null) => NoOut(@out) ?? Ops.amax.Call(this, dims.ToArray(), keepdim);
        public Tensor amax(params long[] dims) => Ops.amax.Call(this, dims);
        public Tensor amin(long[] dims, bool keepdim = false, Tensor? @out = null) => NoOut(@out) ?? Ops.amin.Call(this, dims, keepdim);
        public Tensor amin(ReadOnlySpan<long> dims, bool keepdim = false, Tensor? @out = null) => NoOut(@out) ?? Ops.amin.Call(this, dims.ToArray(), keepdim);
        public Tensor amin(params long[] dims) => Ops.amin.Call(this, dims);
        public (Tensor min, Tensor max) aminmax(long? dim = null, bool keepdim = false) => Ops.aminmax.Call2(this, dim, keepdim);
        public Tensor any() => Ops.any.Call(this);
        public Tensor any(long dim, bool keepdim = false) => Ops.any_dim.Call(this, dim, keepdim);
        public Tensor argmax() => Ops.argmax.Call(this);
        public Tensor argmax(long dim, bool keepdim = false) => Ops.argmax.Call(this, dim, keepdim);
        public Tensor argmin() => Ops.argmin.Call(this);
        public Tensor argmin(long dim, bool keepdim = false) => Ops.argmin.Call(this, dim, keepdim);
        public Tensor argsort(long dim = -1, bool descending = false) => Ops.argsort.Call(this, dim, descending);
        public Tensor bincount(Tensor weights, long minlength = 0) => Ops.bincount.Call(this, weights, minlength);
        public Tensor bucketize(Tensor boundaries, bool outInt32 = false, bool right = false) => Ops.bucketize_Tensor.Call(this, boundaries, outInt32, right);
        public Tensor corrcoef() => Ops.corrcoef.Call(this);
        public Tensor count_nonzero(long[]? dims = null) => dims is null ? Ops.count_nonzero.Call(this) : Ops.count_nonzero_dim_IntList.Call(this, dims);
        public Tensor cov(long correction = 1, Tensor? fweights = null, Tensor? aweights = null) => Ops.cov.Call(this, correction, fweights, aweights);
        public (Tensor values, Tensor indexes) cummax(long dim) => Ops.cummax.Call2(this, dim);
        public (Tensor values, Tensor indexes) cummin(long dim) => Ops.cummin.Call2(this, dim);
        public Tensor cumprod(long dim, ScalarType? type = null) => Ops.cumprod.Call(this, dim, type);
        public Tensor cumsum(long dim, ScalarType? type = null) => Ops.cumsum.Call(this, dim, type);
        public Tensor dist(Tensor other, float p = 2) => Ops.dist.Call(this, other, p);
        public Tensor histc(long bins = 100, long min = 0, long max = 0) => Ops.histc.Call(this, bins, (Scalar)min, (Scalar)max);
        public (Tensor values, Tensor indices) kthvalue(long k, long? dim, bool keepdim = false) => Ops.kthvalue.Call2(this, k, dim ?? -1, keepdim);
        public Tensor log_softmax(long dim, ScalarType? dtype = null) => Ops.log_softmax_int.Call(this, dim, dtype);
        public Tensor logcumsumexp(long dim) => Ops.logcumsumexp.Call(this, dim);
        public Tensor logsumexp(long dim, bool keepdim = false) => Ops.logsumexp.Call(this, Arg.Ints(dim), keepdim);
        public Tensor max() => Ops.max.Call(this);
        public (Tensor values, Tensor indexes) max(long dim, bool keepdim = false) => Ops.max_dim.Call2(this, dim, keepdim);
        public Tensor max(Tensor other) => Ops.max_other.Call(this, other);
        public Tensor mean() => Ops.mean.Call(this);
        public Tensor mean(long[] dimensions, bool keepdim = false, ScalarType? type = null) => Ops.mean_dim.Call(this, dimensions, keepdim, type);
        public Tensor median() => Ops.median.Call(this);
        public Tensor min() => Ops.min.Call(this);
        public (Tensor values, Tensor indexes) min(long dim, bool keepdim = false) => Ops.min_dim.Call2(this, dim, keepdim);
        public Tensor min(Tensor other) => Ops.min_other.Call(this, other);
        public (Tensor values, Tensor indices) mode(long dim = -1, bool keepdim = false) => Ops.mode.Call2(this, dim, keepdim);
        public Tensor msort() => Ops.msort.Call(this);
        public Tensor nanmedian() => Ops.nanmedian.Call(this);
        public Tensor nanquantile(Tensor q, long dim = -1, bool keepdim = false) => Ops.nanquantile.Call(this, q, dim, keepdim);
        public Tensor nansum() => Ops.nansum.Call(this);
        public Tensor norm(int dim, bool keepdim = false, float p = 2) => Ops.norm_ScalarOpt_dim.Call(this, p, Arg.Ints(dim), keepdim);
        public Tensor norm(float p = 2) => Ops.norm_Scalar.Call(this, p);
        public Tensor prod(long dim, bool keepdim = false, ScalarType? type = null) => Ops.prod_dim_int.Call(this, dim, keepdim, type);
        public Tensor prod(ScalarType? type = null) => Ops.prod.Call(this, type);
        public Tensor quantile(Tensor q, long dim = -1, bool keepdim = false) => Ops.quantile.Call(this, q, dim, keepdim);
        public Tensor softmax(long dim, ScalarType? dtype = null) => Ops.softmax_int.Call(this, dim, dtype);
        public (Tensor Sorted, Tensor Indices) sort(long dim = -1, bool descending = false, bool stable = false) => Ops.sort_stable.Call2(this, stable, dim, descending);
        public Tensor std(bool unbiased = true) => Ops.std.Call(this, unbiased);
        public Tensor std(long dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_dim.Call(As(type), Arg.Ints(dim), unbiased, keepdim);
        public Tensor std(long[] dimensions, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_dim.Call(As(type), dimensions, unbiased, keepdim);
        public Tensor std(ReadOnlySpan<long> dimensions, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_dim.Call(As(type), dimensions.ToArray(), unbiased, keepdim);
        public Tensor std((long, long, long) dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_dim.Call(As(type), new[] { dim.Item1, dim.Item2, dim.Item3 }, unbiased, keepdim);
        public Tensor std((long, long) dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_dim.Call(As(type), new[] { dim.Item1, dim.Item2 }, unbiased, keepdim);
        public (Tensor std, Tensor mean) std_mean(bool unbiased = true) => Ops.std_mean.Call2(this, unbiased);
        public (Tensor std, Tensor mean) std_mean(long dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_mean_dim.Call2(As(type), Arg.Ints(dim), unbiased, keepdim);
        public (Tensor std, Tensor mean) std_mean(long[] dimensions, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_mean_dim.Call2(As(type), dimensions, unbiased, keepdim);
        public (Tensor std, Tensor mean) std_mean(ReadOnlySpan<long> dimensions, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_mean_dim.Call2(As(type), dimensions.ToArray(), unbiased, keepdim);
        public (Tensor std, Tensor mean) std_mean((long, long, long) dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_mean_dim.Call2(As(type), new[] { dim.Item1, dim.Item2, dim.Item3 }, unbiased, keepdim);
        public (Tensor std, Tensor mean) std_mean((long, long) dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.std_mean_dim.Call2(As(type), new[] { dim.Item1, dim.Item2 }, unbiased, keepdim);
        public Tensor sum(long dim, bool keepdim = false, ScalarType? type = null) => Ops.sum_dim_IntList.Call(this, Arg.Ints(dim), keepdim, type);
        public Tensor sum(long dim0, long dim1, bool keepdim = false, ScalarType? type = null) => Ops.sum_dim_IntList.Call(this, new[] { dim0, dim1 }, keepdim, type);
        public Tensor sum(long dim0, long dim1, long dim2, bool keepdim = false, ScalarType? type = null) => Ops.sum_dim_IntList.Call(this, new[] { dim0, dim1, dim2 }, keepdim, type);
        public Tensor sum(long[] dim, bool keepdim = false, ScalarType? type = null) => Ops.sum_dim_IntList.Call(this, dim, keepdim, type);
        public Tensor sum(ScalarType? type = null) => Ops.sum.Call(this, type);
        public Tensor sum(ReadOnlySpan<long> dim, bool keepdim = false, ScalarType? type = null) => Ops.sum_dim_IntList.Call(this, dim.ToArray(), keepdim, type);
        public (Tensor values, Tensor indexes) topk(int k, int dim = -1, bool largest = true, bool sorted = true) => Ops.topk.Call2(this, k, dim, largest, sorted);
        public Tensor trace() => Ops.trace.Call(this);
        public (Tensor output, Tensor inverse_indices, Tensor counts) unique(bool sorted = true, bool return_inverse = false, bool return_counts = false, int? dim = null) => dim is { } d ? Ops.unique_dim.Call3(this, d, sorted, return_inverse, return_counts) : Ops._unique2.Call3(this, sorted, return_inverse, return_counts);
        public (Tensor output, Tensor inverse_indices, Tensor counts) unique_consecutive(bool return_inverse = false, bool return_counts = false, int? dim = null) => Ops.unique_consecutive.Call3(this, return_inverse, return_counts, dim);
        public Tensor var(bool unbiased = true) => Ops.var.Call(this, unbiased);
        public Tensor var(long dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_dim.Call(As(type), Arg.Ints(dim), unbiased, keepdim);
        public Tensor var(long[] dimensions, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_dim.Call(As(type), dimensions, unbiased, keepdim);
        public Tensor var(ReadOnlySpan<long> dimensions, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_dim.Call(As(type), dimensions.ToArray(), unbiased, keepdim);
        public Tensor var((long, long, long) dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_dim.Call(As(type), new[] { dim.Item1, dim.Item2, dim.Item3 }, unbiased, keepdim);
        public Tensor var((long, long) dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_dim.Call(As(type), new[] { dim.Item1, dim.Item2 }, unbiased, keepdim);
        public (Tensor @var, Tensor mean) var_mean(bool unbiased = true) => Ops.var_mean.Call2(this, unbiased);
        public (Tensor @var, Tensor mean) var_mean(long dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_mean_dim.Call2(As(type), Arg.Ints(dim), unbiased, keepdim);
        public (Tensor @var, Tensor mean) var_mean(long[] dimensions, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_mean_dim.Call2(As(type), dimensions, unbiased, keepdim);
        public (Tensor @var, Tensor mean) var_mean(ReadOnlySpan<long> dimensions, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_mean_dim.Call2(As(type), dimensions.ToArray(), unbiased, keepdim);
        public (Tensor @var, Tensor mean) var_mean((long, long, long) dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_mean_dim.Call2(As(type), new[] { dim.Item1, dim.Item2, dim.Item3 }, unbiased, keepdim);
        public (Tensor @var, Tensor mean) var_mean((long, long) dim, bool unbiased = true, bool keepdim = false, ScalarType? type = null) => Ops.var_mean_dim.Call2(As(type), new[] { dim.Item1, dim.Item2 }, unbiased, keepdim);

        private Tensor As(ScalarType? type) => type is { } wanted && wanted != dtype ? to_type(wanted) : this;

        private static Tensor? NoOut(Tensor? tensor) =>
            tensor is null ? null : throw new NotSupportedException("Results into a given tensor are not supported here: the TorchSharp package has them.");
    }
}
