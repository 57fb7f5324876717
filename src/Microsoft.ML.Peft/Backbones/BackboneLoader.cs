// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>Builds the backbone that a Hugging Face folder describes.</summary>
public static class BackboneLoader
{
    private sealed record Family(string Prefix, Func<JsonObject, BackboneConfig> Read, Func<BackboneConfig, IWeightSource, Backbone> Build, bool Causal = false);

    private static readonly Dictionary<string, Family> _families = new(StringComparer.Ordinal)
    {
        ["bert"] = new("bert", raw => BertBackbone.ReadConfig(raw, "bert"), (c, w) => new BertBackbone(c, w)),
        ["electra"] = new("electra", raw => BertBackbone.ReadConfig(raw, "electra"), (c, w) => new BertBackbone(c, w)),
        ["roberta"] = new("roberta", raw => RobertaBackbone.ReadConfig(raw, "roberta"), (c, w) => new RobertaBackbone(c, w)),
        ["xlm-roberta"] = new("roberta", raw => RobertaBackbone.ReadConfig(raw, "xlm-roberta"), (c, w) => new RobertaBackbone(c, w)),
        ["camembert"] = new("roberta", raw => RobertaBackbone.ReadConfig(raw, "camembert"), (c, w) => new RobertaBackbone(c, w)),
        ["distilbert"] = new("distilbert", DistilBertBackbone.ReadConfig, (c, w) => new DistilBertBackbone(c, w)),
        ["albert"] = new("albert", AlbertBackbone.ReadConfig, (c, w) => new AlbertBackbone(c, w)),
        ["mpnet"] = new("mpnet", MPNetBackbone.ReadConfig, (c, w) => new MPNetBackbone(c, w)),
        ["t5"] = new("", raw => T5Backbone.ReadConfig(raw, "t5"), (c, w) => new T5Backbone(c, w)),
        ["mt5"] = new("", raw => T5Backbone.ReadConfig(raw, "mt5"), (c, w) => new T5Backbone(c, w)),
        ["audio-spectrogram-transformer"] = new("audio_spectrogram_transformer", AstBackbone.ReadConfig, (c, w) => new AstBackbone(c, w)),
        ["wav2vec2"] = new("wav2vec2", Wav2Vec2Backbone.ReadConfig, (c, w) => new Wav2Vec2Backbone(c, w)),
        ["whisper"] = new("model", WhisperBackbone.ReadConfig, (c, w) => new WhisperBackbone(c, w)),
        ["kwt"] = new("", KwtBackbone.ReadConfig, (c, w) => new KwtBackbone(c, w)),
        ["vit"] = new("vit", raw => ViTBackbone.ReadConfig(raw, "vit"), (c, w) => new ViTBackbone(c, w)),
        ["beit"] = new("beit", BeitBackbone.ReadConfig, (c, w) => new BeitBackbone(c, w)),
        ["dinov2"] = new("dinov2", Dinov2Backbone.ReadConfig, (c, w) => new Dinov2Backbone(c, w)),
        ["videomae"] = new("videomae", VideoMaeBackbone.ReadConfig, (c, w) => new VideoMaeBackbone(c, w)),
        ["clip"] = new("vision_model", ClipVisionBackbone.ReadConfig, (c, w) => new ClipVisionBackbone(c, w)),
        ["clip_vision_model"] = new("vision_model", ClipVisionBackbone.ReadConfig, (c, w) => new ClipVisionBackbone(c, w)),
        ["clip_text_model"] = new("text_model", ClipTextBackbone.ReadConfig, (c, w) => new ClipTextBackbone(c, w), Causal: true),
        ["siglip"] = new("vision_model", SiglipVisionBackbone.ReadConfig, (c, w) => new SiglipVisionBackbone(c, w)),
        ["siglip_vision_model"] = new("vision_model", SiglipVisionBackbone.ReadConfig, (c, w) => new SiglipVisionBackbone(c, w)),
        ["siglip_text_model"] = new("text_model", SiglipTextBackbone.ReadConfig, (c, w) => new SiglipTextBackbone(c, w)),
        ["blip-2"] = new("qformer", QFormerBackbone.ReadConfig, (c, w) => new QFormerBackbone(c, w)),
        ["blip_2_qformer"] = new("qformer", QFormerBackbone.ReadConfig, (c, w) => new QFormerBackbone(c, w)),
        ["deit"] = new("deit", raw => ViTBackbone.ReadConfig(raw, "deit"), (c, w) => new ViTBackbone(c, w)),
        ["swin"] = new("swin", raw => WindowedBackbone.ReadConfig(raw, "swin"), (c, w) => new SwinBackbone(c, w)),
        ["swinv2"] = new("swinv2", SwinV2Backbone.ReadConfig, (c, w) => new SwinV2Backbone(c, w)),
        ["convnext"] = new("convnext", ConvNextBackbone.ReadConfig, (c, w) => new ConvNextBackbone(c, w)),
        ["resnet"] = new("resnet", ResNetBackbone.ReadConfig, (c, w) => new ResNetBackbone(c, w)),
        ["segformer"] = new("segformer", SegformerBackbone.ReadConfig, (c, w) => new SegformerBackbone(c, w)),
        ["gpt2"] = new("transformer", Gpt2Backbone.ReadConfig, (c, w) => new Gpt2Backbone(c, w), Causal: true),
        ["llama"] = new("model", LlamaBackbone.ReadConfig, (c, w) => new LlamaBackbone(c, w), Causal: true),
    };

    /// <summary>The <c>model_type</c>s that are known, sorted.</summary>
    public static IReadOnlyList<string> ModelTypes => [.. _families.Keys.Order(StringComparer.Ordinal)];

    /// <summary>Loads a backbone; the folder may be disposed afterwards. Of a pair of towers (clip, siglip) it is the image tower.</summary>
    /// <param name="folder">An opened checkpoint.</param>
    /// <param name="device">Where the weights go; null for the CPU.</param>
    /// <param name="dtype">Type of the weights in memory.</param>
    /// <param name="languageHead">True to load a decoder's language head too, as a site of the backbone; tied where the file says so.</param>
    /// <param name="quantised">How to keep the linear maps in memory, one after another as they are read; null for dense.</param>
    /// <exception cref="CheckpointFormatException">The configuration is not understood, or tensors are missing or of another shape; all of them are named.</exception>
    public static Backbone Load(
        CheckpointFolder folder, Device? device = null, ScalarType dtype = ScalarType.Float32, bool languageHead = false, WeightFormat? quantised = null)
    {
        JsonObject raw = ReadConfig(folder.Files);
        return Load(folder, Read(FamilyOf(raw, folder.Description), raw, languageHead), device, dtype, quantised);
    }

    /// <summary>Loads the network of a configuration that was read before.</summary>
    internal static Backbone Load(CheckpointFolder folder, BackboneConfig config, Device? device, ScalarType dtype, WeightFormat? quantised = null)
    {
        CpuThreads.UseCores();
        Family family = _families[config.ModelType];
        folder.Prefix = family.Prefix.Length == 0 ? "" : family.Prefix + ".";
        IReadOnlyList<string> unused = CheckAll(folder, family, config);
        Backbone backbone = Backbone.Built(() => family.Build(config, new FolderWeights(folder, dtype, device ?? CPU)), quantised);
        backbone.Placed(device ?? CPU, unused);
        return backbone;
    }

    /// <summary>Builds a backbone of a configuration over tensors in memory.</summary>
    /// <param name="config">The fields of config.json.</param>
    /// <param name="weights">Where the tensors come from, by their bare names.</param>
    /// <param name="languageHead">True for a decoder's language head too.</param>
    public static Backbone Build(JsonObject config, IWeightSource weights, bool languageHead = false)
    {
        // Numbers that were put in by code answer to their own type alone; parsed ones to any that they fit.
        config = JsonNode.Parse(config.ToJsonString())!.AsObject();
        Family family = FamilyOf(config, "the given configuration");
        return Backbone.Built(() => family.Build(Read(family, config, languageHead), weights));
    }

    /// <summary>Builds a network of a configuration that was read before.</summary>
    internal static Backbone Rebuild(BackboneConfig config, IWeightSource weights) =>
        Backbone.Built(() => _families[config.ModelType].Build(config, weights));

    /// <summary>Reads config.json.</summary>
    /// <param name="files">The files of a checkpoint.</param>
    internal static JsonObject ReadConfig(IFileSet files)
    {
        try
        {
            using Stream stream = files.Open("config.json");
            return JsonNode.Parse(stream) as JsonObject
                ?? throw new CheckpointFormatException($"{files.Description}: config.json holds no JSON object.");
        }
        catch (JsonException e)
        {
            throw new CheckpointFormatException($"{files.Description}: config.json is not valid JSON: {e.Message}", e);
        }
    }

    // What hears and writes is its encoder alone for those who do not want it to write.
    private static BackboneConfig Read(Family family, JsonObject raw, bool languageHead)
    {
        BackboneConfig config = family.Read(raw) with { LanguageHead = languageHead };
        return config is { Input: BackboneInput.Sound, DecoderStart: { } start } && !languageHead
            ? config with { LayerCount = start, DecoderStart = null }
            : config;
    }

    /// <summary>The family that a config.json is of; null where it does not say.</summary>
    /// <param name="config">The fields of the file.</param>
    public static string? ModelType(JsonObject config) =>
        config["model_type"] is JsonValue value && value.TryGetValue(out string? text) ? text : KwtBackbone.Describes(config) ? "kwt" : null;

    private static Family FamilyOf(JsonObject raw, string where)
    {
        string? type = ModelType(raw);
        if (type is null || !_families.TryGetValue(type, out Family? family))
            throw new CheckpointFormatException(
                $"{where}: config.json has model_type {(type is null ? "missing" : NearNames.Quote(type))}; supported are {string.Join(", ", ModelTypes)}.");
        var read = new ConfigReader(raw);
        if (read.Text("position_embedding_type", "absolute") is var positions && positions != "absolute")
            throw new CheckpointFormatException($"{where}: position_embedding_type '{positions}' is not supported; expected absolute.");
        if (family.Causal && read.Flag("add_cross_attention", false))
            throw new CheckpointFormatException($"{where}: add_cross_attention is set; only decoders without an encoder are supported for model_type {type}.");
        if (!family.Causal && (read.Flag("is_decoder", false) || read.Flag("add_cross_attention", false)))
            throw new CheckpointFormatException($"{where}: is_decoder or add_cross_attention is set; only encoders of model_type {type} are supported.");
        return family;
    }

    // A dry run over the names and shapes first, so that everything that is wrong with the file is told at once.
    private static IReadOnlyList<string> CheckAll(CheckpointFolder folder, Family family, BackboneConfig config)
    {
        var recorder = new Recorder(folder);
        try
        {
            using var scope = NewDisposeScope();
            Backbone.Built(() => family.Build(config, recorder)).Dispose();
        }
        catch (Exception e) when (e is NotSupportedException or ArgumentException)
        {
            throw new CheckpointFormatException($"{folder.Description}: {e.Message}", e);
        }
        return folder.Check(recorder.Wanted, ignored: IsBuffer).Extra;
    }

    // Made anew by the network itself, or further names of one tensor; older files store them.
    private static bool IsBuffer(string name) =>
        ((string[])["position_ids", "relative_position_index", ".relative_coords_table", ".num_batches_tracked", "coder.embed_tokens.weight",
            ".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"]).Any(end => name.EndsWith(end, StringComparison.Ordinal));

    private sealed class Recorder(CheckpointFolder folder) : IWeightSource
    {
        private const int MostMissing = 2000;

        public List<KeyValuePair<string, long[]>> Wanted { get; } = [];

        public bool Has(string name) => folder.Contains(name);

        public Tensor Load(string name, params long[] shape)
        {
            // A false number of layers must end here, not in memory.
            if (Wanted.Count > folder.Tensors.Count + MostMissing)
                throw new CheckpointFormatException(
                    $"{folder.Description}: config.json describes a network of far more tensors than the {folder.Tensors.Count} of the weights.");
            Wanted.Add(new(name, shape));
            return empty([1], dtype: ScalarType.Float32).expand(shape);
        }

        public Tensor LoadTransposed(string name, long rows, long columns) => Load(name, columns, rows).t();
    }

    private sealed class FolderWeights(CheckpointFolder folder, ScalarType dtype, Device device) : IWeightSource
    {
        public bool Has(string name) => folder.Contains(name);

        public Tensor Load(string name, params long[] shape) => folder.Load(name, shape, dtype, device);
    }
}
