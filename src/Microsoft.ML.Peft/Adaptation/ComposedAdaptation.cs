// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Several adapters of a set as one adaptation, put together as a <see cref="Composition"/> says. It borrows their parameters.</summary>
internal sealed class ComposedAdaptation : JoinedAdaptation
{
    private readonly AdapterSet _set;
    private readonly Composition _tree;
    private readonly IReadOnlyDictionary<string, FusedParts> _fusions;
    private readonly IReadOnlyCollection<string> _trained;
    private readonly IReadOnlyCollection<int> _skip;

    protected override IReadOnlyList<PeftAdaptation> Parts { get; }

    // What is frozen neither learns nor changes itself by step.
    protected override IEnumerable<PeftAdaptation> Learning => Parts.Where(part => part.Parameters.Any(p => p.Trainable));

    /// <param name="set">Where the adapters are.</param>
    /// <param name="tree">How they work together.</param>
    /// <param name="fusions">Fusions by name and site.</param>
    /// <param name="trained">What is trained; the rest is frozen.</param>
    /// <param name="skip">Layers that run bare.</param>
    public ComposedAdaptation(AdapterSet set, Composition tree, IReadOnlyDictionary<string, FusedParts> fusions, IReadOnlyCollection<string> trained, IReadOnlyCollection<int> skip)
        : base(set[tree.First].Method, set.Backbone, owns: false)
    {
        (_set, _tree, _fusions, _trained, _skip) = (set, tree, fusions, trained, skip);
        Parts = [.. tree.Names.Distinct().Select(name => set[name]), .. fusions.Values.Select(f => f.Adaptation)];
        foreach (string name in trained.Where(tree.Names.Contains))
            if (set[name].CalibrationBatches > 0)
                throw new NotSupportedException($"Adapter '{name}' makes its start from the first training batches, of the bare network; in {tree} it would not be bare. Train it alone first, or give it a start that needs no data.");
        Join();
    }

    protected override void Join()
    {
        string[] names = [.. _tree.Names.Distinct()];
        foreach (string name in names) Borrow(_set[name], _trained.Contains(name));
        foreach ((string name, FusedParts fusion) in _fusions) Borrow(fusion.Adaptation, _trained.Contains(name));
        var leaves = names.ToDictionary(name => name, name => _set[name].Patches);
        foreach (Site site in leaves.Values.SelectMany(p => p.Keys).Distinct().Where(s => !_skip.Contains(s.Layer)).OrderBy(s => s.Index).ToList())
        {
            Dictionary<string, Patch> here = leaves.Where(l => l.Value.ContainsKey(site)).ToDictionary(l => l.Key, l => l.Value[site]);
            if (Composed(_tree, site, here, _fusions) is { } patch) Attach(site, patch);
        }
        if (_tree.Copies > 1)
            foreach (Sequence start in _set.Backbone.Sites.OfType<Sequence>().Where(s => s.Role == SiteRole.EmbeddingSequence)) Attach(start, new RepeatedBatch(_tree.Copies));
    }

    private void Borrow(PeftAdaptation part, bool trains)
    {
        foreach (NamedParameter parameter in part.Parameters)
        {
            // What is frozen is its owner's matter, and may have the name that another adapter's parameter has.
            if (trains) Add(parameter);
            else if (parameter.Trainable) parameter.SetTrainable(false);
        }
    }

    private static Patch? Composed(Composition tree, Site site, Dictionary<string, Patch> here, IReadOnlyDictionary<string, FusedParts> fusions) => site switch
    {
        WeightSite weight => new ComposedWeight(tree, weight, here),
        Block => new ComposedBlock(tree, here),
        Residual => new ComposedResidual(tree, here, fusions.Where(f => f.Value.Places.ContainsKey(site)).ToDictionary(f => f.Key, f => f.Value.Places[site])),
        AttentionCore => new ComposedAttention(tree, here),
        Sequence => Sequences(tree, site, here),
        _ => tree.Kind == CompositionKind.Single ? here.Values.Single() : throw new NotSupportedException($"The patch of {here.Keys.First()} at {site.Name} has no place in {tree}."),
    };

    // Maps of the embeddings run for the first adapter alone (as AdapterHub's invertible blocks do); inserted tokens stack.
    private static Patch? Sequences(Composition tree, Site site, Dictionary<string, Patch> here)
    {
        Patch? all = null;
        foreach (string name in tree.Names.Distinct())
        {
            if (!here.TryGetValue(name, out Patch? patch) || (((SequencePatch)patch).KeepsTokens && name != tree.First)) continue;
            if (!((SequencePatch)patch).KeepsTokens && tree.Kind is not (CompositionKind.Single or CompositionKind.Stack))
                throw new NotSupportedException($"{tree}: adapter '{name}' inserts tokens, which all rows would have; prompts take part in Stack alone.");
            all = all is null ? patch : PatchStack.Of(site, all, patch);
        }
        return all;
    }
}

/// <summary>A fusion's parameters and what it does at each place.</summary>
/// <param name="Adaptation">Owns the parameters.</param>
/// <param name="Places">The fusion at each residual connection.</param>
public sealed record FusedParts(PeftAdaptation Adaptation, IReadOnlyDictionary<Site, IFusion> Places);
