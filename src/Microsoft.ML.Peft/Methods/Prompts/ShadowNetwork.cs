// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The state beside the hidden states in one pass.</summary>
internal sealed class ShadowState(Tensor first) : IEnumerable<Tensor>
{
    /// <summary>What the small network gave.</summary>
    public Tensor First { get; } = first;

    /// <summary>The state as it now is, <c>[batch, tokens, hidden]</c>.</summary>
    public Tensor Now { get; set; } = first;

    // A pass keeps what it shares alive beyond the layer that made it.
    public IEnumerator<Tensor> GetEnumerator() => ((IEnumerable<Tensor>)[First, Now]).GetEnumerator();

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
}

/// <summary>A small network of the backbone's family: its embeddings are the backbone's, the rest is left to be trained.</summary>
internal static class ShadowNetwork
{
    private static readonly string[] _layers = ["num_hidden_layers", "n_layer", "n_layers"], _inner = ["intermediate_size", "n_inner", "hidden_dim"];

    /// <summary>Builds the network; weights that will be trained stand as zeros.</summary>
    public static Backbone Build(Backbone backbone, int layers, int inner)
    {
        JsonObject config = backbone.Config.Raw.DeepClone().AsObject();
        Set(config, _layers, layers);
        if (inner > 0) Set(config, _inner, inner);
        // Through text, as from a file: readers know parsed numbers.
        return BackboneLoader.Build(JsonNode.Parse(config.ToJsonString())!.AsObject(), new Source(backbone));
    }

    private static void Set(JsonObject config, string[] names, int value)
    {
        string[] present = [.. names.Where(config.ContainsKey)];
        foreach (string name in present.Length > 0 ? present : names[..1]) config[name] = value;
    }

    /// <summary>What is trained of the network: all behind the embeddings.</summary>
    public static IEnumerable<WeightSite> Trained(Backbone network) => network.Sites.OfType<WeightSite>().Where(s => s.Layer >= 0 && s.Role != SiteRole.Pooler);

    /// <summary>Number of trained numbers, from the backbone's own first layer.</summary>
    public static long Count(Backbone backbone, int layers, int inner)
    {
        long from = backbone.Config.IntermediateSize, to = inner > 0 ? inner : from;
        long Of(WeightSite site)
        {
            long all = site.Weight.numel() + (site.Bias?.numel() ?? 0);
            return site.Role switch
            {
                SiteRole.FeedForwardUp or SiteRole.FeedForwardGate => all / from * to,
                SiteRole.FeedForwardDown => site.Weight.numel() / from * to + (site.Bias?.numel() ?? 0),
                _ => all,
            };
        }
        return layers * backbone.Sites.OfType<WeightSite>().Where(s => s.Layer == 0).Sum(Of)
            + backbone.Sites.OfType<WeightSite>().Where(s => s.Role == SiteRole.FinalNorm).Sum(Of);
    }

    // Embeddings are other handles on the backbone's numbers.
    private sealed class Source(Backbone backbone) : IWeightSource
    {
        private (WeightSite Site, bool Bias)? Shared(string name)
        {
            int dot = name.LastIndexOf('.');
            return backbone.FindSite(name[..dot]) is WeightSite { Layer: -1 } site ? (site, name.EndsWith(".bias", StringComparison.Ordinal)) : null;
        }

        public bool Has(string name) => !name.StartsWith("pooler", StringComparison.Ordinal);

        public Tensor Load(string name, params long[] shape)
        {
            if (Shared(name) is { } shared) return (shared.Bias ? shared.Site.Bias! : shared.Site.Weight).detach();
            Tensor like = backbone.Sites.OfType<WeightSite>().First().Weight;
            return zeros([1], dtype: like.dtype, device: like.device).expand(shape);
        }
    }
}

/// <summary>The small network with its weights, and the state of each pass.</summary>
internal sealed class ShadowAdaptation(ShadowOptions method, Backbone backbone, Backbone network) : PeftAdaptation(method, backbone)
{
    private PatchTable _worn = PatchTable.Empty;

    /// <summary>Adds the weights of the small network: normal, norms one, biases zero.</summary>
    public void AddNetwork(long seed)
    {
        var patches = new Dictionary<Site, Patch>();
        foreach (WeightSite site in ShadowNetwork.Trained(network))
        {
            NamedParameter Own(string part, Tensor value) => Add(new NamedParameter($"shadow_backbone.{site.Name}.{part}", value.to(Backbone.Device))
            {
                Decay = false,
                FileKey = $"base_model.shadow_backbone.default.{site.Name}.{part}",
            });
            Tensor start = site is Norm ? ones(site.Weight.shape) : new Draws(seed, $"shadow_backbone.{site.Name}").Normal(Backbone.Config.InitializerRange, site.Weight.shape);
            patches[site] = new CopyPatch(Own("weight", start), site.Bias is null ? null : Own("bias", zeros(site.Bias.shape)));
        }
        _worn = new PatchTable(patches, Backbone.Device.type);
    }

    /// <inheritdoc/>
    public override void BeforePass(Pass pass, TokenBatch batch)
    {
        if (pass.Cache is not null) throw new NotSupportedException("A shadow runs over whole texts; generate without a cache.");
        var inner = new Pass(_worn, pass.Training, pass.Seed is { } seed ? Pass.Mix(seed) : null);
        Tensor first = network.Forward(batch, inner).Last.to_type(ScalarType.Float32);
        pass.Once(this, () => new ShadowState(first));
    }

    /// <summary>The state of a pass.</summary>
    public ShadowState StateOf(Pass pass) => pass.Once<ShadowState>(this, () => throw new InvalidOperationException("A shadow was worn without BeforePass of its adaptation."));

    /// <inheritdoc/>
    public override Tensor? TaskLoss(Tensor scores, Tensor labels, Func<Tensor, Tensor> loss, Pass pass)
    {
        if (method.AuxiliaryLossWeight == 0 || scores.dim() != 3 || !Backbone.Sites.Any(s => s.Role == SiteRole.LanguageHead)) return null;
        return loss(scores) + method.AuxiliaryLossWeight * loss(Backbone.VocabularyScores(StateOf(pass).First.to_type(scores.dtype), pass));
    }

    /// <inheritdoc/>
    public override void Dispose()
    {
        base.Dispose();
        network.Dispose();
    }
}
