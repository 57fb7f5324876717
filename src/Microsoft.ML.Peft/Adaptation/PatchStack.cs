// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Patches of one site nested into one: the inner one acts first on weights, the outer one sees the inner's function.</summary>
public static class PatchStack
{
    /// <summary>Nests two patches of the same kind.</summary>
    /// <param name="site">The site of both.</param>
    /// <param name="inner">The patch that is there already.</param>
    /// <param name="outer">The patch around it.</param>
    /// <exception cref="ArgumentException">The kinds differ.</exception>
    public static Patch Of(Site site, Patch inner, Patch outer) => (inner, outer) switch
    {
        (WeightPatch a, WeightPatch b) => new WeightStack((WeightSite)site, a, b),
        (BlockPatch a, BlockPatch b) => new BlockStack(a, b),
        (ResidualPatch a, ResidualPatch b) => new ResidualStack(a, b),
        (AttentionPatch a, AttentionPatch b) => new AttentionStack(a, b),
        (SequencePatch a, SequencePatch b) => new SequenceStack(a, b),
        _ => throw new ArgumentException($"A {outer.GetType().Name} cannot stand on a {inner.GetType().Name}: they fit different sites."),
    };

    // Leaves, the innermost first. Weight chains and low-rank terms that no function encloses become one effective site;
    // each function wraps what lies below it; what lies above a function adds its change of the frozen product.
    private sealed class WeightStack : WeightPatch
    {
        private readonly WeightSite _site;
        private readonly WeightPatch[] _leaves;

        public WeightStack(WeightSite site, WeightPatch inner, WeightPatch outer)
        {
            _site = site;
            _leaves = [.. Leaves(inner), .. Leaves(outer)];
        }

        private static WeightPatch[] Leaves(WeightPatch patch) => patch is WeightStack stack ? stack._leaves : [patch];

        public override bool Trainable => _leaves.Any(leaf => leaf.Trainable);

        // Low-rank terms add up; one rewritten weight makes all of it a weight chain; a function makes all of it a function.
        public override PatchForm Form => _leaves.Max(leaf => leaf.Form);

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) => [.. _leaves.SelectMany(leaf => leaf.Terms(pass))];

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass)
        {
            foreach (WeightPatch leaf in _leaves) bias = leaf.RewriteBias(bias, pass);
            return bias;
        }

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
        {
            foreach (WeightPatch leaf in _leaves) (weight, bias) = leaf.Rewrite(weight, bias, pass);
            return (weight, bias);
        }

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            WeightPatch? below = null;
            bool enclosed = false;
            Func<Tensor, Tensor> run = next;
            foreach (WeightPatch leaf in _leaves)
            {
                Func<Tensor, Tensor> inner = run;
                if (leaf.Form == PatchForm.Around)
                {
                    run = input => leaf.Around(input, inner, pass);
                    enclosed = true;
                }
                else if (enclosed) run = input => inner(input) + (_site.Forward(input, leaf, pass) - _site.Forward(input, null, pass));
                else
                {
                    WeightPatch chain = below = below is null ? leaf : new WeightStack(_site, below, leaf);
                    run = input => _site.Forward(input, chain, pass);
                }
            }
            return run(x);
        }
    }

    private sealed class BlockStack(BlockPatch inner, BlockPatch outer) : BlockPatch
    {
        public override bool CanRunAgain => inner.CanRunAgain && outer.CanRunAgain;

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

        public override int PositionShift => inner.PositionShift + outer.PositionShift;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass) =>
            outer.Around(input, i => inner.Around(i, next, pass), pass);
    }

    private sealed class SequenceStack(SequencePatch inner, SequencePatch outer) : SequencePatch
    {
        public override bool Trainable => inner.Trainable || outer.Trainable;

        public override Tensor Change(Tensor hidden, Pass pass) => outer.Change(inner.Change(hidden, pass), pass);
    }
}
