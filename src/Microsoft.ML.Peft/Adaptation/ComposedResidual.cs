// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A composition at one residual connection. Step by step as AdapterHub has it: names in a stack read what the one before made;
/// the other kinds read once, by the switches of their first (Fuse: last) adapter; the connection is closed once, by those of the
/// last. Adapters without a patch here are left out of stacks; elsewhere their part of the batch goes through as it is.
/// </summary>
internal sealed class ComposedResidual : ResidualPatch
{
    private readonly Composition _tree;
    private readonly IReadOnlyDictionary<string, IComposableResidual> _patches;
    private readonly IReadOnlyDictionary<string, IFusion> _fusions;
    private readonly bool _trainable;

    public ComposedResidual(Composition tree, IReadOnlyDictionary<string, Patch> patches, IReadOnlyDictionary<string, IFusion> fusions)
    {
        _tree = tree;
        _patches = patches.ToDictionary(p => p.Key, p => p.Value as IComposableResidual
            ?? throw new ArgumentException($"The patch of adapter '{p.Key}' at residual connections works in one step and has no place in {tree}; wear it with AdapterSet.Together."));
        _fusions = fusions;
        _trainable = patches.Values.Any(p => p.Trainable) || fusions.Count > 0;
    }

    public override bool Trainable => _trainable;

    private sealed record State(Tensor Stream, Tensor Given, Func<Tensor, Tensor, Tensor> Next, Pass Pass)
    {
        public State Cut(Func<Tensor, Tensor> cut) => this with { Stream = cut(Stream), Given = cut(Given) };
    }

    private readonly record struct Made(Tensor Output, Tensor? Contribution);

    public override Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass)
    {
        var state = new State(stream, output, next, pass);
        Tensor made = _tree.Kind == CompositionKind.Single ? One(_tree.Name!, output, state).Output : Block(_tree, output, state).Output;
        return Lead(_tree.Names.Reverse()) is { } last ? last.After(made, stream, output, next) : next(stream, made);
    }

    private IComposableResidual? Lead(IEnumerable<string> names) =>
        names.Select(name => _patches.GetValueOrDefault(name)).FirstOrDefault(p => p is not null);

    private Made One(string name, Tensor output, State state)
    {
        if (!_patches.TryGetValue(name, out IComposableResidual? patch)) return new Made(output, null);
        (Tensor hidden, Tensor residual) = patch.Before(state.Stream, output, state.Next);
        (Tensor made, Tensor contribution) = patch.Inside(hidden, residual, state.Pass);
        return new Made(made, contribution);
    }

    private Made Block(Composition node, Tensor output, State state)
    {
        if (node.Kind == CompositionKind.Stack)
        {
            var made = new Made(output, null);
            foreach (Composition child in node.Children)
            {
                Made next = child.Kind == CompositionKind.Single ? One(child.Name!, made.Output, state) : Block(child, made.Output, state);
                made = next.Contribution is null && child.Kind == CompositionKind.Single ? made : next;
            }
            return made;
        }
        bool fuses = node.Kind == CompositionKind.Fuse;
        if (Lead(fuses ? node.Names.Reverse() : node.Names) is not { } lead) return new Made(output, null);
        (Tensor hidden, Tensor residual) = lead.Before(state.Stream, output, state.Next);
        return node.Kind switch
        {
            CompositionKind.Fuse => Fused(node, output, hidden, residual, state),
            CompositionKind.Average => Averaged(node, output, hidden, residual, state),
            _ => new Made(Slices.Run(node, hidden, state.Pass, (child, cut) => Child(child, cut(output), cut(hidden), cut(residual), state.Cut(cut)).Output), null),
        };
    }

    // A name reads what was read for all; a block reads that as the output of a part.
    private Made Child(Composition child, Tensor output, Tensor hidden, Tensor residual, State state)
    {
        if (child.Kind != CompositionKind.Single) return Block(child, hidden, state);
        if (!_patches.TryGetValue(child.Name!, out IComposableResidual? patch)) return new Made(output, null);
        (Tensor made, Tensor contribution) = patch.Inside(hidden, residual, state.Pass);
        return new Made(made, contribution);
    }

    private Made Averaged(Composition node, Tensor output, Tensor hidden, Tensor residual, State state)
    {
        Tensor? sum = null;
        foreach ((Composition child, double weight) in Shares.Of(node, _patches.ContainsKey))
        {
            Tensor made = Child(child, output, hidden, residual, state).Output * weight;
            sum = sum is null ? made : sum + made;
        }
        return new Made(sum!, null);
    }

    private Made Fused(Composition node, Tensor output, Tensor hidden, Tensor residual, State state)
    {
        IFusion fusion = _fusions[node.FusionName];
        Tensor[] contributions = [.. node.Children.Select(child => Child(child, output, hidden, residual, state).Contribution).OfType<Tensor>()];
        return new Made(fusion.Mix(fusion.AsksBeforeNorm ? output : hidden, contributions, residual, state.Pass), null);
    }
}
