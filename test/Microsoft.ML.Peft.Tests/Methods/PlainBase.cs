// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// The bases of hf-peft that are plain tensors with a forward written in base.json: a network of convolutions, and a toy of
/// an embedding, a convolution over tokens, fused attention and experts. They show that a backbone of a user's own needs
/// nothing but sites.
/// </summary>
internal abstract partial class PlainBase : Backbone
{
    private readonly Dictionary<string, Tensor> _frozen = new(StringComparer.Ordinal);
    private readonly JsonObject _modules;

    protected PlainBase(JsonObject modules, string kind) : base(new BackboneConfig
    {
        ModelType = kind,
        HiddenSize = 0,
        LayerCount = 1,
        HeadCount = 0,
        IntermediateSize = 0,
        VocabularySize = 0,
        MaxTokens = int.MaxValue,
        Raw = [],
    }) => _modules = modules;

    public override string Prefix => "";

    protected Projection Output { get; set; } = null!;

    /// <summary>True for the folder of such a base.</summary>
    public static bool Describes(string folder) =>
        File.Exists(Path.Combine(folder, "base.json")) && !File.Exists(Path.Combine(folder, "config.json")) && Modules(folder) is { } modules
        && (modules.ContainsKey("conv1") || modules.ContainsKey("mha.out_proj"));

    public static PlainBase Load(string folder)
    {
        using SafetensorsFile file = SafetensorsFile.Open(Path.Combine(folder, "model.safetensors"));
        using var scope = NewDisposeScope();
        Dictionary<string, Tensor> tensors = file.Names.ToDictionary(name => name, name => Fixture.Read(file, name));
        var root = JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "base.json")))!;
        return (PlainBase)Built(() => Make(root["modules"]!.AsObject(), (int?)root["sizes"]?["heads"] ?? 1, new MemoryWeights(tensors)));
    }

    public static TokenBatch Batch(Fixture fixture) => fixture.Has("in/x")
        ? new(fixture["in/x"], ones([fixture["in/x"].shape[0], 1], dtype: ScalarType.Int64), Padded: false)
        : new(fixture["in/ids"], fixture["in/mask"]);

    private static JsonObject? Modules(string folder) => JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "base.json")))!["modules"] as JsonObject;

    private static PlainBase Make(JsonObject modules, int heads, IWeightSource weights) =>
        modules.ContainsKey("conv1") ? new ConvolutionBase(modules, weights) : new ToyBase(modules, heads, weights);

    /// <summary>A tensor by its name in the file, kept so that a backbone over other weights at some sites finds the rest.</summary>
    protected Tensor Take(IWeightSource weights, string name) => _frozen[name] = Own(weights.Load(name).detach());

    protected Projection Linear(IWeightSource weights, string name, SiteRole role, int layer) =>
        Add(new Projection(name, role, layer, Take(weights, name + ".weight"), Take(weights, name + ".bias")));

    // As printed by the framework: Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2)
    protected Convolution Convolve(IWeightSource weights, string name)
    {
        string text = (string)_modules[name]!;
        long[]? Numbers(string field) => Tuple(field).Match(text) is { Success: true } match
            ? [.. match.Groups[1].Value.Split(',', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries).Select(long.Parse)] : null;
        int groups = Groups().Match(text) is { Success: true } m ? int.Parse(m.Groups[1].Value) : 1;
        return Add(new Convolution(name, SiteRole.OtherProjection, 0, Take(weights, name + ".weight"), Take(weights, name + ".bias"), Numbers("stride"), Numbers("padding"), groups));
    }

    private static Regex Tuple(string field) => new($@"\b{field}=\(([^)]*)\)");

    [GeneratedRegex(@"\bgroups=(\d+)")]
    private static partial Regex Groups();

    protected override Backbone Rebuild(IWeightSource weights) => Make(_modules, Heads, new Layered(weights, _frozen));

    protected virtual int Heads => 1;

    private sealed class Layered(IWeightSource above, Dictionary<string, Tensor> below) : IWeightSource
    {
        public bool Has(string name) => above.Has(name) || below.ContainsKey(name);

        public Tensor Load(string name, params long[] shape) => above.Has(name) ? above.Load(name, shape) : below[name].detach();
    }

    /// <summary>The last map belongs to the network here: it has a site, and nothing of its own is trained.</summary>
    public sealed class LastSite : Head
    {
        public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) => ((PlainBase)backbone).Last(output, pass);

        public override Tensor FromFeatures(Tensor features, Pass pass) => features;
    }

    protected abstract Tensor Last(BackboneOutput output, Pass pass);

    private sealed class ConvolutionBase : PlainBase
    {
        private readonly Convolution _first, _second, _grouped;

        public ConvolutionBase(JsonObject modules, IWeightSource weights) : base(modules, "conv")
        {
            _first = Convolve(weights, "conv1");
            _second = Convolve(weights, "conv2");
            _grouped = Convolve(weights, "dw");
            Output = Linear(weights, "fc", SiteRole.OtherProjection, 1);
            Add(new Taps(1));
        }

        protected override Tensor Embed(TokenBatch batch, Pass pass) => batch.Ids;

        protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
        {
            foreach (Convolution site in (Convolution[])[_first, _second, _grouped]) hidden = nn.functional.relu(site.Forward(hidden, pass));
            return hidden.flatten(1);
        }

        protected override Tensor Last(BackboneOutput output, Pass pass) => Output.Forward(output.Last, pass);
    }

    private sealed class ToyBase : PlainBase
    {
        private readonly Embedding _table;
        private readonly Convolution _convolution;
        private readonly Projection _in, _out;
        private readonly Constant _up, _down, _scale;
        private readonly Tensor _gate;

        public ToyBase(JsonObject modules, int heads, IWeightSource weights) : base(modules, "toy")
        {
            Heads = heads;
            _table = Add(new Embedding("emb", SiteRole.WordEmbedding, -1, Take(weights, "emb.weight")));
            _convolution = Convolve(weights, "conv");
            // Targets name the fused module; its output map is wrapped with it.
            string Part(string site, string file) => weights.Has(site) ? site : file;
            _in = Add(new Projection("mha", SiteRole.QueryKeyValue, 0, Take(weights, Part("mha.weight", "mha.in_proj_weight")), Take(weights, Part("mha.bias", "mha.in_proj_bias"))));
            Tensor weight = Take(weights, Part("mha.base_layer.out_proj.weight", "mha.out_proj.weight")), bias = Take(weights, Part("mha.base_layer.out_proj.bias", "mha.out_proj.bias"));
            _out = Add(new Projection("mha.base_layer.out_proj", SiteRole.AttentionOutput, 0, weight, bias) { PartOf = "mha" });
            Constant Bare(string name) => Add(new Constant(name, SiteRole.ModuleParameter, 0, Take(weights, name)));
            (_up, _down, _scale, _gate) = (Bare("experts.weight"), Bare("experts.back"), Bare("experts.scale"), Take(weights, "experts.gate"));
            Output = Linear(weights, "fc", SiteRole.OtherProjection, 1);
            Add(new Taps(1));
        }

        protected override int Heads { get; }

        protected override Tensor Embed(TokenBatch batch, Pass pass) => _table.Forward(batch.Ids, pass);

        protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
        {
            hidden = hidden + _convolution.Forward(hidden.transpose(1, 2), pass).transpose(1, 2);
            hidden = hidden + Attention(hidden, pass);
            Tensor x = hidden.matmul(_scale.Value(pass).t());
            Tensor gate = _gate.softmax(0), up = _up.Value(pass), down = _down.Value(pass);
            for (int e = 0; e < gate.shape[0]; e++)
                hidden = hidden + nn.functional.relu(x.matmul(up.select(0, e))).matmul(down.select(0, e)) * gate.select(0, e);
            return hidden;
        }

        private Tensor Attention(Tensor hidden, Pass pass)
        {
            long batch = hidden.shape[0], tokens = hidden.shape[1], width = hidden.shape[2];
            Tensor[] parts = _in.Forward(hidden, pass).chunk(3, -1);
            Tensor Split(Tensor x) => x.reshape(batch, tokens, Heads, width / Heads).transpose(1, 2);         // [batch, heads, tokens, head]
            Tensor scores = Split(parts[0]).matmul(Split(parts[1]).transpose(2, 3)) / Math.Sqrt((double)width / Heads);
            if (pass.Layout.KeyBias(scores.dtype) is { } bias) scores = scores + bias;
            Tensor context = scores.softmax(-1).matmul(Split(parts[2])).transpose(1, 2).reshape(batch, tokens, width);
            return _out.Forward(context, pass);
        }

        protected override Tensor Last(BackboneOutput output, Pass pass)
        {
            Tensor mask = output.Layout.Mask.to_type(ScalarType.Float32).unsqueeze(-1);
            return Output.Forward((output.Last * mask).sum(1) / mask.sum(1), pass);
        }
    }
}
