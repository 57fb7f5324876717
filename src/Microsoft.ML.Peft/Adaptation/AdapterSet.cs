// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Several adaptations of one backbone, by name: worn one at a time, together, weighted, or a different one by each row of a
/// batch. The frozen weights are there once. The set owns its adaptations and heads; the backbone it only borrows.
/// </summary>
public sealed class AdapterSet : IDisposable
{
    /// <summary>The name that stands for the bare backbone in <see cref="Forward(TokenBatch, IReadOnlyList{string})"/>.</summary>
    public const string Bare = "__base__";

    private sealed record Member(PeftAdaptation Adaptation, Head? Head);

    private readonly OrderedDictionary<string, Member> _members = [];
    private readonly Dictionary<string, FusedParts> _fusions = [];
    private readonly Dictionary<string, Composition> _compositions = [];
    private readonly Head? _bareHead;

    /// <summary>Makes an empty set.</summary>
    /// <param name="backbone">The frozen network that all adaptations fit.</param>
    /// <param name="bareHead">Head of rows that wear nothing, and of adaptations that bring none; borrowed; null for none.</param>
    public AdapterSet(Backbone backbone, Head? bareHead = null) => (Backbone, _bareHead) = (backbone, bareHead);

    /// <summary>The frozen network.</summary>
    public Backbone Backbone { get; }

    /// <summary>Names in the order of their coming.</summary>
    public IReadOnlyList<string> Names => [.. _members.Keys];

    /// <summary>Takes an adaptation, and the head that was trained with it.</summary>
    /// <param name="name">A name of its own.</param>
    /// <param name="adaptation">An adaptation of this backbone; the set owns it from now on.</param>
    /// <param name="head">Its head; null for the bare one.</param>
    /// <exception cref="ArgumentException">The name is taken or reserved, or the adaptation belongs to another backbone.</exception>
    public void Add(string name, PeftAdaptation adaptation, Head? head = null)
    {
        if (string.IsNullOrEmpty(name) || name == Bare) throw new ArgumentException($"An adapter cannot be called '{name}'; '{Bare}' stands for the bare backbone.", nameof(name));
        if (!ReferenceEquals(adaptation.Backbone, Backbone))
            throw new ArgumentException($"Adapter '{name}' was attached to another backbone object; attach it to the backbone of this set.", nameof(adaptation));
        if (!_members.TryAdd(name, new Member(adaptation, head)))
            throw new ArgumentException($"There is an adapter '{name}' already; remove it first, or give another name. Known: {NearNames.List(_members.Keys)}.", nameof(name));
    }

    // What may differ between two adapters that take each other's place.
    private static readonly string[] _swappable = ["rank", "alpha", "rankPattern", "targets", "targetPattern", "layers", "layersPattern", "modulesToSave", "name"];

    /// <summary>Puts another adapter in the place of one, under its name: a newer version of it, say. The old one is disposed.</summary>
    /// <param name="name">Name in the set.</param>
    /// <param name="adaptation">Of the same method; its sites are among the old one's; rank and scaling are its own. The set owns it from now on.</param>
    /// <param name="head">Its head; null to keep the old one's.</param>
    /// <exception cref="ArgumentException">Another method, other switches, or sites that the old one has not; the message names them, and nothing is changed.</exception>
    public void Swap(string name, PeftAdaptation adaptation, Head? head = null)
    {
        Member old = Find(name);
        if (_compositions.ContainsKey(name)) throw new ArgumentException($"'{name}' is a composition; define it anew instead.", nameof(name));
        if (!ReferenceEquals(adaptation.Backbone, Backbone)) throw new ArgumentException("The adapter was attached to another backbone object; attach it to the backbone of this set.", nameof(adaptation));
        JsonObject was = JsonNode.Parse(PeftMethods.ToJson(old.Adaptation.Method))!.AsObject(), now = JsonNode.Parse(PeftMethods.ToJson(adaptation.Method))!.AsObject();
        string[] changed = [.. was.Select(p => p.Key).Union(now.Select(p => p.Key)).Where(k => !_swappable.Contains(k) && was[k]?.ToJsonString() != now[k]?.ToJsonString())];
        if (changed.Length > 0)
            throw new ArgumentException($"The adapters differ in {string.Join(", ", changed.Select(k => $"{k} ({was[k]?.ToJsonString() ?? "none"}, now {now[k]?.ToJsonString() ?? "none"})"))}; add the new one under a name of its own.", nameof(adaptation));
        string[] more = [.. adaptation.Patches.Keys.Where(site => !old.Adaptation.Patches.ContainsKey(site)).Select(Backbone.PathOf)];
        if (more.Length > 0) throw new ArgumentException($"The new adapter has sites that '{name}' has not: {NearNames.List(more)}; add it under a name of its own.", nameof(adaptation));
        _members[name] = new Member(adaptation, head ?? old.Head);
        old.Adaptation.Dispose();
        if (head is not null) old.Head?.Dispose();
        foreach ((string user, Composition tree) in _compositions.Where(c => c.Value.Names.Contains(name)).ToList())
            _members[user] = new Member(Compose(tree, []), Find(tree.Last).Head);
    }

    /// <summary>Gives a composition a name of its own, by which rows may wear it like an adapter; it is scored by the head of its last adapter.</summary>
    /// <param name="name">A name of its own.</param>
    /// <param name="composition">Adapters of this set.</param>
    /// <exception cref="ArgumentException">The name is taken, a name in the composition is unknown, or it repeats the batch.</exception>
    public void Define(string name, Composition composition)
    {
        if (composition.Copies > 1) throw new ArgumentException($"{composition} repeats the batch, so no row can wear it; compose it by itself.", nameof(composition));
        PeftAdaptation made = Compose(composition, []);
        Add(name, made);
        _members[name] = new Member(made, Find(composition.Last).Head);
        _compositions[name] = composition;
    }

    /// <summary>The compositions that have a name.</summary>
    public IReadOnlyDictionary<string, Composition> Compositions => _compositions;

    /// <summary>Takes an adapter out of the set and disposes it.</summary>
    /// <param name="name">Its name.</param>
    /// <exception cref="ArgumentException">No such adapter; the message lists the known ones.</exception>
    public void Remove(string name)
    {
        Member member = Find(name);
        if (_compositions.FirstOrDefault(c => c.Value.Names.Contains(name)) is { Key: { } user })
            throw new ArgumentException($"The composition '{user}' needs the adapter '{name}'; remove the composition first.", nameof(name));
        _members.Remove(name);
        member.Adaptation.Dispose();
        if (!_compositions.Remove(name)) member.Head?.Dispose();
    }

    /// <summary>The adaptation of a name.</summary>
    /// <param name="name">Its name.</param>
    /// <exception cref="ArgumentException">No such adapter; the message lists the known ones.</exception>
    public PeftAdaptation this[string name] => Find(name).Adaptation;

    private Precision _precision;

    /// <summary>In what numbers products with frozen weights are made.</summary>
    /// <exception cref="ArgumentException">It is <see cref="Precision.Auto"/>, which transformers turn into one of the others.</exception>
    public Precision Precision
    {
        get => _precision;
        set => _precision = PrecisionCheck.Definite(value);
    }

    /// <summary>Parameters of an adapter and its head.</summary>
    /// <param name="name">Its name.</param>
    /// <exception cref="ArgumentException">No such adapter.</exception>
    public IReadOnlyList<NamedParameter> ParametersOf(string name) => [.. Find(name).Adaptation.Parameters, .. Find(name).Head?.Parameters ?? []];

    /// <summary>What a pass wears to run with some adapters at once: updates of weights add up, functions nest, the later around the earlier.</summary>
    /// <param name="names">Names, the innermost first; none for the bare backbone.</param>
    /// <exception cref="ArgumentException">No such adapter.</exception>
    public PatchTable Together(params string[] names) => Weighted([.. names.Select(name => (name, 1.0))]);

    /// <summary>What a pass wears to run with weighted adapters: each one's change of its site counts as often as its weight says.</summary>
    /// <param name="weights">Names and weights, the innermost first; a weight may be negative.</param>
    /// <exception cref="ArgumentException">No such adapter, a weight that is no finite number, or a patch that has no weighted form.</exception>
    public PatchTable Weighted(params (string Name, double Weight)[] weights)
    {
        var patches = new Dictionary<Site, Patch>();
        foreach ((string name, double weight) in weights)
        {
            if (!double.IsFinite(weight)) throw new ArgumentException($"The weight of adapter '{name}' is {weight}; expected is a finite number.", nameof(weights));
            foreach ((Site site, Patch patch) in Find(name).Adaptation.Patches)
            {
                Patch scaled = weight == 1 ? patch : WeightedPatch.Of(site, patch, weight);
                patches[site] = patches.TryGetValue(site, out Patch? inner) ? PatchStack.Of(site, inner, scaled) : scaled;
            }
        }
        return new PatchTable(patches, Backbone.Device.type);
    }

    /// <summary>Takes a fusion of adapters of this set, fresh or trained.</summary>
    /// <param name="fusion">The method with its options.</param>
    /// <param name="names">The adapters that are mixed, in order; they have patches at the same places.</param>
    /// <param name="seed">Seed of the initial values.</param>
    /// <returns>The fusion's parameters; the set owns them.</returns>
    /// <exception cref="ArgumentException">Fewer than two names, an unknown one, or adapters at different places.</exception>
    public PeftAdaptation AddFusion(IFusionMethod fusion, IReadOnlyList<string> names, long seed = 0)
    {
        if (names.Count < 2) throw new ArgumentException($"A fusion of {names.Count} adapters has nothing to mix; give two names or more.", nameof(names));
        HashSet<Site>[] places = [.. names.Select(name => this[name].Patches.Keys.OfType<Residual>().ToHashSet<Site>())];
        for (int i = 1; i < places.Length; i++)
            if (!places[i].SetEquals(places[0]))
                throw new ArgumentException($"The adapters '{names[0]}' and '{names[i]}' have patches at different residual connections; a fusion mixes adapters at the same places.", nameof(names));
        if (places[0].Count == 0) throw new ArgumentException($"The adapter '{names[0]}' has no patch at a residual connection; a fusion mixes bottleneck adapters.", nameof(names));
        string key = string.Join(',', names);
        FusedParts made = fusion.Attach(Backbone, key, [.. places[0].OrderBy(s => s.Index).Cast<Residual>()], seed);
        if (_fusions.Remove(key, out FusedParts? old)) old.Adaptation.Dispose();
        _fusions[key] = made;
        return made.Adaptation;
    }

    /// <summary>Several adapters as one adaptation, to wear or to train.</summary>
    /// <param name="composition">How they work together.</param>
    /// <param name="trained">
    /// Names of the adapters, and of fusions (<c>a,b</c>), that are trained; everything else in the composition is frozen.
    /// Null for the fusions alone.
    /// </param>
    /// <param name="skipLayers">Layers that run bare (AdapterDrop, Rücklé et al. 2021, arXiv 2010.11918); null for none.</param>
    /// <returns>An adaptation that borrows the parameters of this set.</returns>
    /// <exception cref="ArgumentException">An unknown name or layer, a missing fusion, or adapters that do not compose this way.</exception>
    public PeftAdaptation Compose(Composition composition, IReadOnlyCollection<string>? trained = null, IReadOnlyCollection<int>? skipLayers = null)
    {
        foreach (int layer in skipLayers ?? [])
            if (layer < 0 || layer >= Backbone.Config.LayerCount)
                throw new ArgumentException($"skipLayers names layer {layer}; this {Backbone.Config.ModelType} backbone has the layers 0 to {Backbone.Config.LayerCount - 1}.", nameof(skipLayers));
        foreach (string name in composition.Names) Find(name);
        foreach (string name in composition.Fusions)
            if (!_fusions.ContainsKey(name))
                throw new ArgumentException($"{composition} needs a fusion of '{name}', which this set has not: AddFusion first. Known: {(_fusions.Count == 0 ? "none" : NearNames.List(_fusions.Keys))}.", nameof(composition));
        Dictionary<string, FusedParts> fusions = composition.Fusions.ToDictionary(name => name, name => _fusions[name]);
        foreach (string name in trained ?? [])
            if (!composition.Names.Contains(name) && !fusions.ContainsKey(name))
                throw new ArgumentException($"'{name}' shall be trained and is no part of {composition}.", nameof(trained));
        return new ComposedAdaptation(this, composition, fusions, trained ?? [.. fusions.Keys], skipLayers ?? []);
    }

    /// <summary>
    /// Scores of a composition's output: where it is a Parallel or a BatchSplit, the head of each child on the child's rows, else
    /// the head of the last adapter on all.
    /// </summary>
    /// <param name="composition">What the pass wore.</param>
    /// <param name="output">What the backbone gave.</param>
    /// <param name="pass">The same pass.</param>
    /// <returns>The name whose head scored, and its scores <c>[rows, classes]</c>; child by child.</returns>
    public IReadOnlyList<(string Name, Tensor Scores)> Heads(Composition composition, BackboneOutput output, Pass pass)
    {
        if (composition.Kind is not (CompositionKind.Parallel or CompositionKind.BatchSplit))
            return [(composition.Last, Scores(Find(composition.Last), output, pass))];
        var scores = new List<(string, Tensor)>();
        (long Start, long Count)[] spans = Slices.Of(composition, output.Last.shape[0]);
        for (int i = 0; i < spans.Length; i++)
        {
            using Pass.GroupScope _ = pass.Narrow(pass.Group, arange(spans[i].Start, spans[i].Start + spans[i].Count, ScalarType.Int64, output.Last.device));
            var own = new BackboneOutput(output.Last.narrow(0, spans[i].Start, spans[i].Count), pass.Layout, null);
            string name = composition.Children[i].Last;
            scores.Add((name, Scores(Find(name), own, pass)));
        }
        return scores;
    }

    /// <summary>
    /// Scores a batch in which each row wears its own adapter, its head included. The frozen products run once over all rows where
    /// every adapter allows it; adapters that insert tokens or look at the batch run row group by row group.
    /// </summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="rows">One name a row; <see cref="Bare"/> for none.</param>
    /// <returns>Scores <c>[batch, classes]</c>, or hidden states <c>[batch, tokens, hidden]</c> without heads.</returns>
    /// <exception cref="ArgumentException">A name is not known, or there are not as many names as rows.</exception>
    /// <exception cref="InvalidOperationException">Heads give different numbers of scores.</exception>
    public Tensor Forward(TokenBatch batch, IReadOnlyList<string> rows) => Forward(batch, rows, Precision);

    internal Tensor Forward(TokenBatch batch, IReadOnlyList<string> rows, Precision precision)
    {
        long count = batch.Ids.shape[0];
        if (rows.Count != count) throw new ArgumentException($"There are {rows.Count} adapter names for {count} rows; expected is one a row.", nameof(rows));
        using var off = no_grad();
        using var scope = NewDisposeScope();
        RowGroup[] groups = [.. rows.Select((name, row) => (name, row)).GroupBy(p => p.name, p => (long)p.row)
            .Select(g => new RowGroup(g.Key, [.. g], Backbone.Device))];
        Member[] members = [.. groups.Select(g => g.Name == Bare ? new Member(new PeftAdaptation(BareMethod.Instance, Backbone), null) : Find(g.Name))];
        bool shared = groups.Length > 1 && members.All(m => RowPatches.CanShare(m.Adaptation));
        Tensor[] parts = shared ? Shared(batch, groups, members, precision) : [.. groups.Select((g, i) => Alone(batch, g, members[i], precision))];
        if (parts.Any(p => !p.shape.AsSpan()[1..].SequenceEqual(parts[0].shape.AsSpan()[1..])))
            throw new InvalidOperationException($"The adapters {NearNames.List(groups.Select(g => g.Name))} give scores of different shapes; score them apart.");
        Tensor order = tensor(RowGroup.Inverse(groups), device: Backbone.Device);
        return cat(parts).index_select(0, order).MoveToOuterDisposeScope();
    }

    private Tensor[] Shared(TokenBatch batch, RowGroup[] groups, Member[] members, Precision precision)
    {
        var pass = new Pass(RowPatches.Table(Backbone, groups, [.. members.Select(m => m.Adaptation)])) { Precision = precision };
        BackboneOutput output = Backbone.Forward(batch, pass);
        return [.. groups.Select((group, i) =>
        {
            using Pass.GroupScope _ = pass.Narrow(i, group.Index);
            var own = new BackboneOutput(output.Last.index_select(0, group.Index), pass.Layout, null) { Batch = batch.Rows(group.Index) };
            // A pooler that the adapter trains is worn by its rows alone.
            return Scores(members[i], own, new Pass(members[i].Adaptation.Table()) { Layout = pass.Layout, Precision = precision });
        })];
    }

    private Tensor Alone(TokenBatch batch, RowGroup group, Member member, Precision precision)
    {
        TokenBatch own = batch.Rows(group.Index);
        var pass = new Pass(member.Adaptation.Table()) { Precision = precision };
        member.Adaptation.BeforePass(pass, own);
        return Scores(member, Backbone.Forward(own, pass), pass);
    }

    private Tensor Scores(Member member, BackboneOutput output, Pass pass) =>
        (member.Head ?? _bareHead)?.Forward(Backbone, output, pass) ?? output.Last;

    private Member Find(string name) => _members.TryGetValue(name, out Member? member) ? member
        : throw new ArgumentException($"There is no adapter '{name}'. Known: {(_members.Count == 0 ? "none" : NearNames.List(_members.Keys))}.{NearNames.Hint(name, _members.Keys)}");

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach ((string name, Member member) in _members)
        {
            member.Adaptation.Dispose();
            if (!_compositions.ContainsKey(name)) member.Head?.Dispose();
        }
        _members.Clear();
        _compositions.Clear();
        foreach (FusedParts fusion in _fusions.Values) fusion.Adaptation.Dispose();
        _fusions.Clear();
    }

    // What rows wear that wear nothing; never registered, saved or shown.
    private sealed class BareMethod : PeftMethod
    {
        public static BareMethod Instance { get; } = new();

        public override string Id => "bare";

        public override string Family => "none";

        public override bool Mergeable => true;

        public override PeftAdaptation Attach(Backbone backbone, long seed) => new(this, backbone);

        public override long CountTrainable(Backbone backbone) => 0;
    }
}
