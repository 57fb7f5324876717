// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>A matrix as the product of two narrow ones.</summary>
internal static class Factors
{
    /// <summary>The nearest product of a rank: <c>Δ = U S Vᵀ</c>, <c>B = U_r S_r</c>, <c>A = V_rᵀ</c>.</summary>
    /// <param name="delta">A matrix <c>[out, in]</c>.</param>
    /// <param name="rank">The rank, or what it is by the singular values, falling; at most their number counts.</param>
    /// <returns>A <c>[rank, in]</c> and B <c>[out, rank]</c>, in the type of the matrix.</returns>
    public static (Tensor A, Tensor B) Nearest(Tensor delta, Func<Tensor, long> rank)
    {
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(delta, fullMatrices: false);
        long kept = Math.Min(rank(s), s.shape[0]);
        return (vt.narrow(0, 0, kept), u.narrow(1, 0, kept) * s.narrow(0, 0, kept));
    }

    /// <summary>As <see cref="Nearest"/>, with the singular values dealt out evenly: <c>B = U_r √(S_r/s)</c>, <c>A = √(S_r/s) V_rᵀ</c>.</summary>
    /// <param name="matrix">A matrix <c>[out, in]</c>; it is decomposed in float64.</param>
    /// <param name="rank">The rank, at most the narrower side.</param>
    /// <param name="scale">The scaling s that the product gets.</param>
    /// <returns>A and B in float32.</returns>
    public static (Tensor A, Tensor B) Even(Tensor matrix, long rank, double scale = 1)
    {
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(matrix.to_type(ScalarType.Float64), fullMatrices: false);
        Tensor root = (s.narrow(0, 0, rank) / scale).sqrt();
        return ((root.unsqueeze(1) * vt.narrow(0, 0, rank)).to_type(ScalarType.Float32).contiguous(), (u.narrow(1, 0, rank) * root).to_type(ScalarType.Float32).contiguous());
    }
}
