// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>A patch whose change of its site counts as often as a weight says: <c>f + w (patched f − f)</c>.</summary>
internal static class WeightedPatch
{
    /// <summary>The weighted form of a patch.</summary>
    /// <param name="site">Its site.</param>
    /// <param name="patch">The patch.</param>
    /// <param name="weight">The weight; 1 leaves the patch as it is.</param>
    /// <exception cref="ArgumentException">The patch changes the number of tokens, so that there is nothing to weigh.</exception>
    public static Patch Of(Site site, Patch patch, double weight) => patch switch
    {
        WeightPatch weights => new Weights(weights, weight),
        BlockPatch block => new Blocks(block, weight),
        ResidualPatch residual => new Residuals(residual, weight),
        AttentionPatch attention => new Attention(attention, weight),
        _ => throw new ArgumentException($"The patch at {site.Name} changes which tokens there are and has no weighted form; give its adapter the weight 1."),
    };

    private static Tensor Mix(Tensor bare, Tensor patched, double weight) => bare + (patched - bare) * weight;

    private sealed class Weights(WeightPatch inner, double weight) : WeightPatch
    {
        public override PatchForm Form => inner.Form;

        public override bool Trainable => inner.Trainable;

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) => [.. inner.Terms(pass).Select(term => term with { Scale = term.Scale * weight })];

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass)
        {
            Tensor? made = inner.RewriteBias(bias, pass);
            return made is null || ReferenceEquals(made, bias) ? bias : bias is null ? made * weight : Mix(bias, made, weight);
        }

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor matrix, Tensor? bias, Pass? pass)
        {
            (Tensor made, Tensor? shift) = inner.Rewrite(matrix, bias, pass);
            return (Mix(matrix, made, weight), shift is null || ReferenceEquals(shift, bias) ? bias : bias is null ? shift * weight : Mix(bias, shift, weight));
        }

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => Mix(next(x), inner.Around(x, next, pass), weight);
    }

    private sealed class Blocks(BlockPatch inner, double weight) : BlockPatch
    {
        public override bool Trainable => inner.Trainable;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => Mix(next(x), inner.Around(x, next, pass), weight);
    }

    private sealed class Residuals(ResidualPatch inner, double weight) : ResidualPatch
    {
        public override bool Trainable => inner.Trainable;

        public override Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass) =>
            Mix(next(stream, output), inner.Around(stream, output, next, pass), weight);
    }

    private sealed class Attention(AttentionPatch inner, double weight) : AttentionPatch
    {
        public override bool Trainable => inner.Trainable;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass) =>
            Mix(next(input), inner.Around(input, next, pass), weight);
    }
}
