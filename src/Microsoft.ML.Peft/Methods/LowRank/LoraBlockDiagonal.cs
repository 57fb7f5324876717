// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// BD-LoRA (Block-diagonal LoRA, arXiv 2510.23346): at some modules A, at others B is block-diagonal, so that a network whose
/// maps are split over machines needs no exchange for the adapter. A is stored <c>[r, in / n]</c>, B <c>[out, r / n]</c>: the
/// first axis is cut into n parts, which stand on the diagonal.
/// </summary>
public sealed class BlockDiagonalVariant : LoraVariant
{
    /// <summary>Modules whose A is block-diagonal: parts of their paths.</summary>
    public string[] BlocksInA { get; set; } = [];

    /// <summary>Modules whose B is block-diagonal: parts of their paths.</summary>
    public string[] BlocksInB { get; set; } = [];

    /// <summary>Number of blocks, 1 or more; rank and width must be its multiples.</summary>
    public int Blocks { get; set; } = 1;

    /// <summary>True to refuse modules that neither list names.</summary>
    public bool MatchStrict { get; set; } = true;

    internal static BlockDiagonalVariant From(JsonObject fields) => new()
    {
        BlocksInA = [.. AdapterConfig.List<string>(fields, "target_modules_bd_a")],
        BlocksInB = [.. AdapterConfig.List<string>(fields, "target_modules_bd_b")],
        Blocks = AdapterConfig.Get(fields, "nblocks", 1),
        MatchStrict = AdapterConfig.Get(fields, "match_strict", true),
    };

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        if (Blocks < 1) throw invalid(nameof(Blocks), Blocks, "1 or more");
        if (BlocksInA.Concat(BlocksInB).Any(string.IsNullOrEmpty)) throw invalid(nameof(BlocksInA), "''", "parts of module paths, without empty ones");
    }

    internal override void Write(JsonObject config) => config["use_bdlora"] = new JsonObject
    {
        ["match_strict"] = MatchStrict,
        ["nblocks"] = Blocks,
        ["target_modules_bd_a"] = BlocksInA.Length == 0 ? null : AdapterConfig.Array(BlocksInA),
        ["target_modules_bd_b"] = BlocksInB.Length == 0 ? null : AdapterConfig.Array(BlocksInB),
    };

    private (bool A, bool B) At(string path)
    {
        bool a = BlocksInA.Any(part => path.Contains(part, StringComparison.Ordinal)), b = BlocksInB.Any(part => path.Contains(part, StringComparison.Ordinal));
        if (a && b) throw new ArgumentException($"Module {path} is named in both BlocksInA and BlocksInB; one factor can be block-diagonal.", "Variant");
        if (!a && !b && MatchStrict)
            throw new ArgumentException($"Module {path} is named neither in BlocksInA nor in BlocksInB; name it, or set MatchStrict to false for a plain update there.", "Variant");
        return (a, b);
    }

    internal override (long ColumnsOfA, long ColumnsOfB) Stored(string path, long narrow, long rank) =>
        At(path) is var (a, b) ? (a ? narrow / Blocks : narrow, b ? rank / Blocks : rank) : default;

    internal override (Tensor A, Tensor B)? Draw(Tensor weight, string path, int rank, Draws draws)
    {
        (bool a, bool b) = At(path);
        if (rank % Blocks != 0 || (a && weight.shape[1] % Blocks != 0) || (b && weight.shape[0] % Blocks != 0))
            throw new ArgumentException($"BD-LoRA's {Blocks} blocks do not divide rank {rank} and weight [{string.Join(", ", weight.shape)}] of {path}.", "Variant");
        long columns = a ? weight.shape[1] / Blocks : weight.shape[1];
        // The blocks of A are drawn wider than a plain A: Kaiming-uniform with a = 0.
        Tensor drawn = a ? draws.Uniform(Math.Sqrt(6.0 / columns), rank, columns) : draws.Kaiming(rank, columns);
        return (drawn, zeros([weight.shape[0], b ? rank / Blocks : rank]));
    }

    internal override void Add(LoraAdaptation adaptation, LoraFactors factors, string path, long seed)
    {
        // Decided once: the patch need not match names at each pass.
        factors.Blocks = At(path) is var (a, b) ? (a ? Blocks : 1, b ? Blocks : 1) : default;
    }

    internal override WeightPatch Patch(LoraFactors factors) => new BlocksPatch(factors);

    // [n·p, q] -> [n·p, n·q] with the n parts of the first axis on the diagonal.
    private static Tensor OnDiagonal(Tensor stored, int blocks)
    {
        if (blocks == 1) return stored;
        Tensor diagonal = eye(blocks, dtype: stored.dtype, device: stored.device).view(blocks, 1, blocks, 1);
        return (stored.view(blocks, -1, 1, stored.shape[1]) * diagonal).reshape(stored.shape[0], -1);
    }

    private sealed class BlocksPatch(LoraFactors factors) : WeightPatch
    {
        public override PatchForm Form => PatchForm.LowRank;

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) =>
            [factors.Term with { A = OnDiagonal(factors.A.Value, factors.Blocks.A), B = OnDiagonal(factors.B.Value, factors.Blocks.B) }];

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass) => Bias(factors, bias);
    }
}
