// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    public static partial class fft
    {
        public static Tensor fft2(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_fft2.Call(input, s, dim ?? [-2, -1], Norm(norm));
        public static Tensor fft_(Tensor input, long n = -1, long dim = -1, FFTNormType norm = 0) => Ops.fft_fft.Call(input, n < 0 ? Arg.None : n, dim, Norm(norm));
        public static Tensor fftn(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_fftn.Call(input, s, dim, Norm(norm));
        public static Tensor fftshift(Tensor input, long[]? dim = null) => Ops.fft_fftshift.Call(input, dim);
        public static Tensor hfft(Tensor input, long n = -1, long dim = -1, FFTNormType norm = 0) => Ops.fft_hfft.Call(input, n < 0 ? Arg.None : n, dim, Norm(norm));
        public static Tensor hfft2(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_hfft2.Call(input, s, dim ?? [-2, -1], Norm(norm));
        public static Tensor hfftn(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_hfftn.Call(input, s, dim, Norm(norm));
        public static Tensor ifft(Tensor input, long n = -1, long dim = -1, FFTNormType norm = 0) => Ops.fft_ifft.Call(input, n < 0 ? Arg.None : n, dim, Norm(norm));
        public static Tensor ifft2(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_ifft2.Call(input, s, dim ?? [-2, -1], Norm(norm));
        public static Tensor ifftn(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_ifftn.Call(input, s, dim, Norm(norm));
        public static Tensor ifftshift(Tensor input, long[]? dim = null) => Ops.fft_ifftshift.Call(input, dim);
        public static Tensor ihfft(Tensor input, long n = -1, long dim = -1, FFTNormType norm = 0) => Ops.fft_ihfft.Call(input, n < 0 ? Arg.None : n, dim, Norm(norm));
        public static Tensor ihfft2(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_ihfft2.Call(input, s, dim ?? [-2, -1], Norm(norm));
        public static Tensor ihfftn(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_ihfftn.Call(input, s, dim, Norm(norm));
        public static Tensor irfft(Tensor input, long n = -1, long dim = -1, FFTNormType norm = 0) => Ops.fft_irfft.Call(input, n < 0 ? Arg.None : n, dim, Norm(norm));
        public static Tensor irfft2(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_irfft2.Call(input, s, dim ?? [-2, -1], Norm(norm));
        public static Tensor irfftn(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_irfftn.Call(input, s, dim, Norm(norm));
        public static Tensor rfft(Tensor input, long n = -1, long dim = -1, FFTNormType norm = 0) => Ops.fft_rfft.Call(input, n < 0 ? Arg.None : n, dim, Norm(norm));
        public static Tensor rfft2(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_rfft2.Call(input, s, dim ?? [-2, -1], Norm(norm));
        public static Tensor rfftn(Tensor input, long[]? s = null, long[]? dim = null, FFTNormType norm = 0) => Ops.fft_rfftn.Call(input, s, dim, Norm(norm));

        // "backward", the default, goes without a name.
        private static Arg Norm(FFTNormType norm) => norm == FFTNormType.Backward ? Arg.None : norm.ToString().ToLowerInvariant();
    }
}
