// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// QA-LoRA (Xu et al. 2023, arXiv 2309.14717): A reads the mean of each group of inputs, so that the update is constant over a
/// group and joins the zero points of a group-wise quantised weight. A is <c>[r, in / group]</c>; the means are multiplied by
/// the number of groups, as Hugging Face PEFT does. Trained numbers a site: r (in / group + out).
/// </summary>
public sealed class QaLoraVariant : LoraVariant
{
    /// <summary>Inputs of a group, 1 or more; the site's inputs must be its multiple.</summary>
    public int GroupSize { get; set; } = 16;

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        if (GroupSize < 1) throw invalid(nameof(GroupSize), GroupSize, "1 or more");
    }

    internal override void Write(JsonObject config) => (config["use_qalora"], config["qalora_group_size"]) = (true, GroupSize);

    internal override (long ColumnsOfA, long ColumnsOfB) Stored(string path, long narrow, long rank) => (narrow / GroupSize, rank);

    internal override (Tensor A, Tensor B)? Draw(Tensor weight, string path, int rank, Draws draws)
    {
        if (weight.shape[1] % GroupSize != 0)
            throw new ArgumentException($"QA-LoRA's groups of {GroupSize} do not divide the {weight.shape[1]} inputs of {path}.", "Variant");
        return (draws.Kaiming(rank, weight.shape[1] / GroupSize), zeros([weight.shape[0], rank]));
    }

    internal override WeightPatch Patch(LoraFactors factors) => new GroupedPatch(this, factors);

    /// <summary>A over the inputs themselves, <c>[r, in]</c>: mean and factor are part of it.</summary>
    internal Tensor Spread(Tensor a) => a.repeat_interleave(GroupSize, 1) * ((double)a.shape[1] / GroupSize);

    private sealed class GroupedPatch(QaLoraVariant options, LoraFactors factors) : WeightPatch
    {
        public override PatchForm Form => PatchForm.LowRank;

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) => [factors.Term with { A = options.Spread(factors.A.Value) }];

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass) => Bias(factors, bias);
    }
}
