// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// ShadowPEFT: a small trained network of the backbone's own family, over the backbone's embeddings, gives a state s beside the
/// hidden states. Before layer l: <c>h += α · up(down(h − s))</c>; behind it <c>g = σ(gate(h))</c>,
/// <c>s = (1 − g) s + g · transform(h)</c>; gate and transform are linear, GELU, linear. The up maps start at zero. Language tasks
/// also learn from what the backbone's head makes of the first s. Trained numbers a layer: 2 r d + 2 (2 u d + u + d), and the
/// small network.
/// </summary>
public sealed class ShadowOptions : PeftMethod
{
    /// <summary>r: width of the way down and up.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>α.</summary>
    public double Alpha { get; set; } = 0.1;

    /// <summary>Share of entries of h − s, in [0, 1), that is dropped while training.</summary>
    public double Dropout { get; set; } = 0.2;

    /// <summary>u: hidden width of gate and transform; 0 for r.</summary>
    public int UpdateHiddenSize { get; set; }

    /// <summary>Layers of the small network.</summary>
    public int ShadowLayers { get; set; } = 1;

    /// <summary>Width of its feed-forward parts; 0 for the backbone's.</summary>
    public int ShadowIntermediateSize { get; set; }

    /// <summary>Weight of the loss of the small network alone, in language tasks.</summary>
    public double AuxiliaryLossWeight { get; set; } = 0.05;

    /// <summary>Layers that read and write the state, numbered from 0; empty for all.</summary>
    public int[] Layers { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "shadow";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "2 r d + 4 u d + 2 u + 2 d a layer, and a small network";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "side networks";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "SHADOW";

    /// <inheritdoc/>
    public override bool FitsHuggingFace(Backbone backbone) => backbone.Causal && !backbone.Sites.OfType<Projection>().Any(p => p.StoredTransposed);

    private int Update => UpdateHiddenSize == 0 ? Rank : UpdateHiddenSize;

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Rank < 1) throw Invalid(nameof(Rank), Rank, "1 or more");
        if (!double.IsFinite(Alpha)) throw Invalid(nameof(Alpha), Alpha, "a finite number");
        CheckShare(nameof(Dropout), Dropout);
        if (UpdateHiddenSize < 0) throw Invalid(nameof(UpdateHiddenSize), UpdateHiddenSize, "0 for Rank, or more");
        if (ShadowLayers < 1) throw Invalid(nameof(ShadowLayers), ShadowLayers, "1 or more");
        if (ShadowIntermediateSize < 0) throw Invalid(nameof(ShadowIntermediateSize), ShadowIntermediateSize, "0 for the backbone's, or more");
        if (!(AuxiliaryLossWeight >= 0)) throw Invalid(nameof(AuxiliaryLossWeight), AuxiliaryLossWeight, "0 or more");
        foreach (int layer in Layers)
            if (layer < 0) throw Invalid(nameof(Layers), layer, "0 or more");
    }

    private IReadOnlyList<Block> Blocks(Backbone backbone)
    {
        NeedsOneWidth(backbone);
        Block[] all = [.. backbone.Sites.OfType<Block>().Where(b => b.Role == SiteRole.LayerBlock)];
        if (all.Length != backbone.Config.LayerCount || backbone.Config.DecoderStart is not null)
            throw new ArgumentException($"A shadow runs beside one stack of layers; a {backbone.Config.ModelType} backbone has two, or shares its layers.");
        foreach (int layer in Layers)
            if (layer >= all.Length) throw Invalid(nameof(Layers), layer, $"below {all.Length}, the layers of this {backbone.Config.ModelType} backbone");
        return [.. all.Where(b => Layers.Length == 0 || Layers.Contains(b.Layer))];
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        long d = backbone.Config.HiddenSize, r = Rank, u = Update;
        return Blocks(backbone).Count * (2 * r * d + 2 * (2 * u * d + u + d)) + ShadowNetwork.Count(backbone, ShadowLayers, ShadowIntermediateSize);
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        IReadOnlyList<Block> blocks = Blocks(backbone);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new ShadowAdaptation(this, backbone, ShadowNetwork.Build(backbone, ShadowLayers, ShadowIntermediateSize));
        try
        {
            foreach (Block block in blocks) AddLayer(adaptation, block, block.Layer == blocks[^1].Layer, seed);
            adaptation.AddNetwork(seed);
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    private void AddLayer(ShadowAdaptation adaptation, Block block, bool last, long seed)
    {
        long d = adaptation.Backbone.Config.HiddenSize;
        string path = adaptation.Backbone.PathOf(block);
        NamedParameter Add(string module, string part, Tensor value) => adaptation.Add(
            new NamedParameter($"{path}.{module}.{part}", value.to(adaptation.Backbone.Device)) { Decay = false, FileKey = $"base_model.model.{path}.{module}.default.{part}" });
        Tensor Uniform(string name, long inputs, params long[] shape) => new Draws(seed, $"{path}.{name}").Uniform(1 / Math.Sqrt(inputs), shape);
        Func<Tensor, Tensor> Two(string module)
        {
            NamedParameter w = Add(module, "0.weight", Uniform(module + ".0.weight", d, Update, d)), b = Add(module, "0.bias", Uniform(module + ".0.bias", d, Update));
            NamedParameter v = Add(module, "2.weight", Uniform(module + ".2.weight", Update, d, Update)), c = Add(module, "2.bias", Uniform(module + ".2.bias", Update, d));
            return x => nn.functional.linear(nn.functional.gelu(nn.functional.linear(x, w.Value, b.Value)), v.Value, c.Value);
        }
        NamedParameter down = Add("shadow_down", "weight", Uniform("shadow_down.weight", d, Rank, d)), up = Add("shadow_up", "weight", zeros([d, Rank]));
        Func<Tensor, Tensor> transform = Two("shadow_update_transform"), gate = Two("shadow_update_gate");
        adaptation.Attach(block, new LayerPatch(this, adaptation, down, up, transform, gate, last));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        foreach ((string field, string supported) in ((string, string)[])[("shadow_hidden_size", "null"), ("shadow_num_attention_heads", "null"), ("exclude_modules", "null")])
            if (!AdapterConfig.IsEmpty(config, field)) throw new ArgumentException($"adapter_config.json: the field '{field}' is {config[field]!.ToJsonString()}; supported is {supported}.", field);
        if (AdapterConfig.Get(config, "shadow_model", "mirror") is var model && model != "mirror") throw new ArgumentException($"adapter_config.json: the field 'shadow_model' is '{model}'; supported is mirror.", "shadow_model");
        if (!AdapterConfig.Get(config, "share_embeddings", true)) throw new ArgumentException("adapter_config.json: the field 'share_embeddings' is false; supported is true.", "share_embeddings");
        Rank = AdapterConfig.Get(config, "r", 8);
        Alpha = AdapterConfig.Get(config, "shadow_alpha", 0.1);
        Dropout = AdapterConfig.Get(config, "shadow_dropout", 0.2);
        UpdateHiddenSize = AdapterConfig.Get(config, "update_hidden_size", 0);
        ShadowLayers = AdapterConfig.Get(config, "shadow_num_hidden_layers", 1);
        ShadowIntermediateSize = AdapterConfig.Get(config, "shadow_intermediate_size", 0);
        AuxiliaryLossWeight = AdapterConfig.Get(config, "auxiliary_loss_weight", 0.05);
        Layers = [.. AdapterConfig.List<int>(config, "layers_to_transform")];
        if (Layers.Length == 0) Layers = [.. AdapterConfig.List<string>(config, "target_modules").Select(Number).Order()];
        Validate();
    }

    private static int Number(string module) => int.TryParse(module[(module.LastIndexOf('.') + 1)..], NumberStyles.None, CultureInfo.InvariantCulture, out int layer)
        ? layer
        : throw new ArgumentException($"adapter_config.json: the field 'target_modules' has '{module}'; expected are layers, such as model.layers.0.", "target_modules");

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        foreach (string field in (string[])["exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "shadow_hidden_size", "shadow_num_attention_heads"]) config[field] = null;
        config["auxiliary_loss_weight"] = AuxiliaryLossWeight;
        config["init_weights"] = true;
        config["r"] = Rank;
        config["shadow_alpha"] = Alpha;
        config["shadow_dropout"] = Dropout;
        config["shadow_intermediate_size"] = ShadowIntermediateSize == 0 ? null : ShadowIntermediateSize;
        config["shadow_model"] = "mirror";
        config["shadow_num_hidden_layers"] = ShadowLayers == 1 ? null : ShadowLayers;
        config["share_embeddings"] = true;
        config["target_modules"] = AdapterConfig.Array(Blocks(backbone).Select(backbone.PathOf));
        config["update_hidden_size"] = UpdateHiddenSize == 0 ? null : UpdateHiddenSize;
    }

    private sealed class LayerPatch(
        ShadowOptions options, ShadowAdaptation adaptation, NamedParameter down, NamedParameter up, Func<Tensor, Tensor> transform, Func<Tensor, Tensor> gate, bool last) : BlockPatch
    {
        // A second run would find a state that has moved on.
        public override bool CanRunAgain => false;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            ShadowState state = adaptation.StateOf(pass);
            Tensor apart = pass.Dropout(x.to_type(down.Value.dtype) - state.Now, options.Dropout);
            Tensor added = nn.functional.linear(nn.functional.linear(apart, down.Value), up.Value) * options.Alpha;
            Tensor y = next(x + added.to_type(x.dtype)), h = y.to_type(down.Value.dtype), g = gate(h).sigmoid();
            Tensor moved = state.Now + g * (transform(h) - state.Now);
            // Nothing reads the last state; its maps are part of the file, and keep a gradient of zero.
            if (last) return y + (moved * 0).to_type(y.dtype);
            state.Now = moved;
            return y;
        }
    }
}
