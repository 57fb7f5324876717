// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Patches of one site nested into one: the inner one acts first on weights, the outer one sees the inner's function.</summary>
public static class PatchStack
{
    /// <summary>Nests two patches of the same kind.</summary>
    /// <param name="inner">The patch that is there already.</param>
    /// <param name="outer">The patch around it.</param>
    /// <exception cref="ArgumentException">The kinds differ.</exception>
    public static Patch Of(Patch inner, Patch outer) => (inner, outer) switch
    {
        (WeightPatch a, WeightPatch b) => new WeightStack(a, b),
        (BlockPatch a, BlockPatch b) => new BlockStack(a, b),
        (ResidualPatch a, ResidualPatch b) => new ResidualStack(a, b),
        (AttentionPatch a, AttentionPatch b) => new AttentionStack(a, b),
        (SequencePatch a, SequencePatch b) => new SequenceStack(a, b),
        _ => throw new ArgumentException($"A {outer.GetType().Name} cannot stand on a {inner.GetType().Name}: they fit different sites."),
    };

    private sealed class WeightStack(WeightPatch inner, WeightPatch outer) : WeightPatch
    {
        public override bool Trainable => inner.Trainable || outer.Trainable;

        // Low-rank terms add up; one rewritten weight makes all of it a weight chain; a function makes all of it a function.
        public override PatchForm Form =>
            (PatchForm)Math.Max((int)inner.Form, (int)outer.Form);

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) => [.. inner.Terms(pass), .. outer.Terms(pass)];

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass) => outer.RewriteBias(inner.RewriteBias(bias, pass), pass);

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
        {
            (weight, bias) = inner.Rewrite(weight, bias, pass);
            return outer.Rewrite(weight, bias, pass);
        }

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) =>
            Call(outer, x, input => Call(inner, input, next, pass), pass);

        private static Tensor Call(WeightPatch patch, Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            if (patch.Form == PatchForm.Around) return patch.Around(x, next, pass);
            if (patch.Form == PatchForm.Weight)
                throw new NotSupportedException(
                    $"{patch.GetType().Name} rewrites the weight and cannot be nested with a patch that acts on activations.");
            Tensor y = next(x);
            foreach (LowRankTerm term in patch.Terms(pass)) y = y + term.Apply(x, pass);
            return y;
        }
    }

    private sealed class BlockStack(BlockPatch inner, BlockPatch outer) : BlockPatch
    {
        public override bool Trainable => inner.Trainable || outer.Trainable;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) =>
            outer.Around(x, input => inner.Around(input, next, pass), pass);
    }

    private sealed class ResidualStack(ResidualPatch inner, ResidualPatch outer) : ResidualPatch
    {
        public override bool Trainable => inner.Trainable || outer.Trainable;

        public override Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass) =>
            outer.Around(stream, output, (s, o) => inner.Around(s, o, next, pass), pass);
    }

    private sealed class AttentionStack(AttentionPatch inner, AttentionPatch outer) : AttentionPatch
    {
        public override bool Trainable => inner.Trainable || outer.Trainable;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass) =>
            outer.Around(input, i => inner.Around(i, next, pass), pass);
    }

    private sealed class SequenceStack(SequencePatch inner, SequencePatch outer) : SequencePatch
    {
        public override bool Trainable => inner.Trainable || outer.Trainable;

        public override Tensor Change(Tensor hidden, Pass pass) => outer.Change(inner.Change(hidden, pass), pass);
    }
}
