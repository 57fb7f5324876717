// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A composition at a projection, norm or table. Low-rank updates in a stack are chained, as AdapterHub has it: the second reads
/// the first one's update (to add them up, wear them with <see cref="AdapterSet.Together"/>). Functions of the output nest.
/// </summary>
internal sealed class ComposedWeight(Composition tree, WeightSite site, IReadOnlyDictionary<string, Patch> patches) : WeightPatch
{
    public override PatchForm Form => PatchForm.Around;

    public override bool Trainable => patches.Values.Any(p => p.Trainable);

    // The output so far without, and the update of, chained low-rank terms.
    private readonly record struct State(Tensor Input, Tensor Output, Tensor? Update)
    {
        public Tensor Sum => Update is null ? Output : Output + Update;
    }

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => Run(tree, new State(x, next(x), null), pass).Sum;

    private State Run(Composition node, State state, Pass pass)
    {
        switch (node.Kind)
        {
            case CompositionKind.Single: return patches.TryGetValue(node.Name!, out Patch? patch) ? One((WeightPatch)patch, state, pass) : state;
            case CompositionKind.Stack: return node.Children.Aggregate(state, (s, child) => Run(child, s, pass));
            case CompositionKind.Average: return Averaged(node, state, pass);
            case CompositionKind.Fuse: throw new NotSupportedException($"{node}: the patches at {site.Name} have no contributions to mix; Fuse takes bottleneck adapters.");
            default:
                Tensor made = Slices.Run(node, state.Input, pass, (child, cut) =>
                    Run(child, new State(cut(state.Input), cut(state.Output), state.Update is null ? null : cut(state.Update)), pass).Sum);
                return new State(state.Input, made, null);
        }
    }

    private State One(WeightPatch patch, State state, Pass pass)
    {
        if (patch.Form == PatchForm.LowRank && site is Projection)
        {
            Tensor input = state.Update ?? state.Input;
            Tensor? update = null;
            foreach (LowRankTerm term in patch.Terms(pass))
            {
                if (term.A.shape[1] != input.shape[^1])
                    throw new NotSupportedException($"{tree}: stacked low-rank updates are chained, and that at {site.Name} has {input.shape[^1]} outputs for {term.A.shape[1]} inputs. Wear them with AdapterSet.Together to add them up.");
                Tensor part = term.Apply(input, pass);
                update = update is null ? part : update + part;
            }
            return state with { Update = update };
        }
        if (patch.Form == PatchForm.Around) return state with { Output = patch.Around(state.Input, _ => state.Sum, pass), Update = null };
        Tensor change = site.Forward(state.Input, patch, pass) - site.Forward(state.Input, null, pass);
        return state with { Output = state.Sum + change, Update = null };
    }

    // Updates are averaged as updates, outputs as outputs: weights that do not sum to 1 scale what adapters did, no more.
    private State Averaged(Composition node, State state, Pass pass)
    {
        (Composition Child, double Weight)[] shares = Shares.Of(node, patches.ContainsKey);
        if (shares.Length == 0) return state;
        State[] made = [.. shares.Select(share => Run(share.Child, state, pass))];
        Tensor? Sum(Func<State, Tensor?> part) => made.Select((s, i) => part(s) is { } x ? x * shares[i].Weight : null).OfType<Tensor>().Aggregate((Tensor?)null, (a, b) => a is null ? b : a + b);
        bool sameOutput = made.All(s => ReferenceEquals(s.Output, state.Output));
        return new State(state.Input, sameOutput ? state.Output : Sum(s => s.Output)!, Sum(s => s.Update));
    }
}

/// <summary>A composition around a block.</summary>
internal sealed class ComposedBlock(Composition tree, IReadOnlyDictionary<string, Patch> patches) : BlockPatch
{
    public override bool Trainable => patches.Values.Any(p => p.Trainable);

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => Run(tree, x, next, pass);

    private Tensor Run(Composition node, Tensor x, Func<Tensor, Tensor> next, Pass pass) => node.Kind switch
    {
        CompositionKind.Single => patches.TryGetValue(node.Name!, out Patch? patch) ? ((BlockPatch)patch).Around(x, next, pass) : next(x),
        CompositionKind.Stack => node.Children.Aggregate(next, (inner, child) => input => Run(child, input, inner, pass))(x),
        CompositionKind.Average => node.Names.Any(patches.ContainsKey)
            ? Shares.Of(node, patches.ContainsKey).Select(share => Run(share.Child, x, next, pass) * share.Weight).Aggregate((a, b) => a + b)
            : next(x),
        CompositionKind.Parallel or CompositionKind.BatchSplit => Slices.Run(node, x, pass, (child, cut) => Run(child, cut(x), next, pass)),
        _ => throw new NotSupportedException($"{node} has no meaning for patches around a whole block, where tokens see each other."),
    };
}

/// <summary>A composition at attention proper: stacks nest (the later prefix in front), rows may go apart.</summary>
internal sealed class ComposedAttention(Composition tree, IReadOnlyDictionary<string, Patch> patches) : AttentionPatch
{
    public override bool Trainable => patches.Values.Any(p => p.Trainable);

    public override int PositionShift => patches.Values.Cast<AttentionPatch>().Max(p => p.PositionShift);

    public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass) => Run(tree, input, next, pass);

    private Tensor Run(Composition node, AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass) => node.Kind switch
    {
        CompositionKind.Single => patches.TryGetValue(node.Name!, out Patch? patch) ? ((AttentionPatch)patch).Around(input, next, pass) : next(input),
        // The first of a stack is nearest to the tokens: it changes the keys first.
        CompositionKind.Stack => node.Children.Reverse().Aggregate(next, (inner, child) => given => Run(child, given, inner, pass))(input),
        CompositionKind.Parallel or CompositionKind.BatchSplit => Slices.Run(node, input.Query, pass, (child, cut) => Run(child, input with
        {
            Query = cut(input.Query),
            Key = cut(input.Key),
            Value = cut(input.Value),
            Bias = input.Bias is { } bias && bias.shape[0] > 1 ? cut(bias) : input.Bias,
        }, next, pass)),
        _ => throw new NotSupportedException($"{node} has no meaning for prefixes and other patches at attention; take Stack, Parallel or BatchSplit."),
    };
}

/// <summary>Copies of the batch for Parallel, made where the sequence begins: child by child.</summary>
internal sealed class RepeatedBatch(int copies) : SequencePatch
{
    public override bool Trainable => false;

    public override Tensor Change(Tensor hidden, Pass pass)
    {
        Tensor rows = arange(hidden.shape[0], ScalarType.Int64, hidden.device).repeat(copies);
        pass.Repeat(rows);
        return hidden.index_select(0, rows);
    }
}
