// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How fresh factors of a linear map are filled.</summary>
internal sealed record LoraInit
{
    public const string Allowed = "default, gaussian, orthogonal, mica, pissa, pissa_niter_<rounds>, olora, false";

    private const string Pissa = "pissa", PissaRounds = "pissa_niter_";

    public required string Name { get; init; }

    /// <summary>Rounds of the randomised decomposition; 0 for the exact one.</summary>
    public int Rounds { get; init; }

    /// <summary>True where the factors take a part of the weight over, which the frozen weight must then lack.</summary>
    public bool ChangesBase => Name is Pissa or "olora";

    /// <summary>True where a fresh update is exactly 0.</summary>
    public bool Exact => Name != "false";

    /// <summary>True where the numbers depend on the shapes alone.</summary>
    public bool FitsConvolutions => Name is "default" or "gaussian" or "false";

    /// <summary>True where B starts at 0.</summary>
    public bool Plain => Name is "default" or "gaussian";

    /// <summary>True where B holds directions of the weight and is not trained.</summary>
    public bool FreezesB => Name == "mica";

    public bool NeedsEvenRank => Name == "orthogonal";

    public static bool IsKnown(string name) => Find(name) is not null;

    public static LoraInit Parse(string name) => Find(name)
        ?? throw new ArgumentException($"LoraOptions.Init is '{name}'; allowed is one of {Allowed}.", "Init");

    private static LoraInit? Find(string name)
    {
        if (name is "default" or "gaussian" or "orthogonal" or "mica" or Pissa or "olora" or "false") return new LoraInit { Name = name };
        if (name is not null && name.StartsWith(PissaRounds, StringComparison.Ordinal)
            && int.TryParse(name.AsSpan(PissaRounds.Length), NumberStyles.None, CultureInfo.InvariantCulture, out int rounds) && rounds is >= 1 and <= 100)
            return new LoraInit { Name = Pissa, Rounds = rounds };
        return null;
    }

    /// <summary>Fresh factors A <c>[rank, in]</c> and B <c>[out, rank]</c>, in float32 on the CPU or the weight's device.</summary>
    /// <param name="weight">The frozen weight <c>[out, in]</c>.</param>
    /// <param name="rank">Rank of the site.</param>
    /// <param name="scale">Scaling s of the site.</param>
    /// <param name="drawA">Random numbers for A.</param>
    /// <param name="drawB">Random numbers for B.</param>
    /// <param name="path">Module path, for messages.</param>
    public (Tensor A, Tensor B) Draw(Tensor weight, int rank, double scale, Draws drawA, Draws drawB, string path)
    {
        long outWidth = weight.shape[0], inWidth = weight.shape[1];
        if ((ChangesBase || FreezesB || Name == "orthogonal") && rank > Math.Min(outWidth, inWidth))
            throw new ArgumentException(
                $"LoraOptions.Rank is {rank} at {path}, whose weight is [{outWidth}, {inWidth}]; with Init = '{Name}' at most {Math.Min(outWidth, inWidth)} is allowed.", "Rank");
        if ((ChangesBase || FreezesB) && !weight.is_floating_point())
            throw new ArgumentException($"Init = '{Name}' needs a dense weight, but that of {path} is quantised; use the default.", "Init");
        return Name switch
        {
            "default" => (drawA.Kaiming(rank, inWidth), zeros([outWidth, rank])),
            "gaussian" => (drawA.Normal(1.0 / rank, rank, inWidth), zeros([outWidth, rank])),
            "false" => (drawA.Kaiming(rank, inWidth), drawB.Kaiming(outWidth, rank)),
            "orthogonal" => Orthogonal(outWidth, inWidth, rank, drawA, drawB),
            "olora" => Olora(weight, rank),
            "mica" => (zeros([rank, inWidth]), Least(weight, rank)),
            _ => Rounds == 0 ? Factors.Even(weight, rank, scale) : FromRandomised(weight, rank, scale, drawA),
        };
    }

    // Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), with subspace iterations and no extra columns.
    private (Tensor A, Tensor B) FromRandomised(Tensor weight, int rank, double scale, Draws draw)
    {
        Tensor w = weight.to_type(ScalarType.Float64);
        Tensor q = linalg.qr(w.matmul(draw.Normal(1, w.shape[1], rank).to(w.device).to_type(ScalarType.Float64))).Item1;
        for (int i = 0; i < Rounds; i++)
        {
            Tensor p = linalg.qr(w.t().matmul(q)).Item1;
            q = linalg.qr(w.matmul(p)).Item1;
        }
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(q.t().matmul(w), fullMatrices: false);
        return Split(q.matmul(u), s, vt, scale);
    }

    private static (Tensor A, Tensor B) Split(Tensor u, Tensor s, Tensor vt, double scale)
    {
        Tensor root = (s / scale).sqrt();
        return (Float(root.unsqueeze(1) * vt), Float(u * root));
    }

    // W = Q R: B = Q[:, :r], A = R[:r].
    private static (Tensor A, Tensor B) Olora(Tensor weight, int rank)
    {
        (Tensor q, Tensor r) = linalg.qr(weight.to_type(ScalarType.Float32));
        return (Float(r.narrow(0, 0, rank)), Float(q.narrow(1, 0, rank)));
    }

    // The directions that the weight uses least: B = the last r columns of U.
    private static Tensor Least(Tensor weight, int rank)
    {
        Tensor u = linalg.svd(weight.to_type(ScalarType.Float64), fullMatrices: false).Item1;
        return Float(u.narrow(1, u.shape[1] - rank, rank));
    }

    // Rows of one orthogonal matrix dealt alternately to both factors: B A = 0, though neither is 0.
    private static (Tensor A, Tensor B) Orthogonal(long outWidth, long inWidth, int rank, Draws drawA, Draws drawB)
    {
        Tensor q = linalg.qr(drawA.Normal(1, rank, rank)).Item1.reshape(rank / 2, 2, rank);
        Tensor a = drawA.Normal(0.1, inWidth, rank / 2).matmul(q.select(1, 0)).t();
        Tensor b = drawB.Normal(0.1, outWidth, rank / 2).matmul(q.select(1, 1));
        return (Float(a), Float(b));
    }

    private static Tensor Float(Tensor value) => value.to_type(ScalarType.Float32).contiguous();
}
