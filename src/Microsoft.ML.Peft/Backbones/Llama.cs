// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// LLaMA 1 to 3 (Touvron et al. 2023, arXiv 2302.13971 and 2307.09288; Grattafiori et al. 2024, arXiv 2407.21783): root-mean-square
/// norms, rotary positions, keys shared by groups of query heads, a gated feed-forward part.
/// </summary>
public sealed class LlamaBackbone : PreNormDecoder
{
    private static readonly DecoderNames _names = new(
        "self_attn", "input_layernorm", null, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj");

    private readonly RotaryAngles _rotary;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public LlamaBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        _rotary = RotaryAngles.Read(config.Raw, config.HeadWidth!.Value, config.MaxTokens);
        bool attentionBias = read.Flag("attention_bias", false), feedForwardBias = read.Flag("mlp_bias", false);
        AddWords("embed_tokens");
        AddInput();
        for (int layer = 0; layer < config.LayerCount; layer++)
            AddLayer($"layers.{layer}", layer, _names, attentionBias, attentionBias, feedForwardBias);
        AddEnd("norm", read.Flag("tie_word_embeddings", false));
    }

    /// <inheritdoc/>
    public override string Prefix => "model";

    private protected override bool RootMeanSquare => true;

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        int hidden = read.Int("hidden_size", 4096), heads = read.Int("num_attention_heads", 32);
        if (!read.Has("head_dim") && hidden % heads != 0)
            throw new CheckpointFormatException($"config.json: hidden_size {hidden} is not divisible by {heads} attention heads, and no head_dim is given.");
        int width = read.Int("head_dim", hidden / heads);
        if (width % 2 != 0) throw new CheckpointFormatException($"config.json: the width of a head is {width}; rotary positions need an even one.");
        var config = new BackboneConfig
        {
            ModelType = "llama",
            Raw = raw,
            HiddenSize = hidden,
            LayerCount = read.Int("num_hidden_layers", 32),
            HeadCount = heads,
            KeyHeadCount = read.Int("num_key_value_heads", heads),
            HeadWidth = width,
            IntermediateSize = read.Int("intermediate_size", 11008),
            VocabularySize = read.Int("vocab_size", 32000),
            MaxTokens = read.Int("max_position_embeddings", 2048),
            EmbeddingSize = hidden,
            PadId = Math.Max(0, read.Int("pad_token_id", 0, -1)),
            Activation = read.Text("hidden_act", "silu"),
            NormEpsilon = read.Positive("rms_norm_eps", 1e-6),
            HiddenDropout = 0,
            AttentionDropout = read.Share("attention_dropout", 0),
            ClassifierDropout = 0,
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
        RotaryAngles.Read(raw, width, config.MaxTokens);                     // settings that are not understood are told before weights are read
        return config;
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor hidden = Input.Forward(EmbedWords(batch, pass), pass);
        // Made here, where the batch's own positions are known; layers that run again in the backward pass find it.
        pass.Once((this, pass.Layout), () => _rotary.At(Positions.Counted(batch, pass), hidden.dtype));
        return hidden;
    }

    private protected override (Tensor Query, Tensor Key) Rotate(Tensor query, Tensor key, Pass pass)
    {
        // A layout of its own belongs to some of the rows, or to tokens that a method changed between layers: these are counted.
        Tensor[] turn = pass.Once((this, pass.Layout), () => _rotary.At(Positions.Counted(new TokenBatch(pass.Layout.Mask, pass.Layout.Mask), pass), query.dtype));
        return (RotaryAngles.Turn(query, turn[0], turn[1]), RotaryAngles.Turn(key, turn[0], turn[1]));
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new LlamaBackbone(Config, weights);
}

/// <summary>
/// Rotary positions (Su et al. 2021, arXiv 2104.09864) with the ways of stretching them to longer texts: linear and dynamic
/// interpolation, YaRN (Peng et al. 2023, arXiv 2309.00071), and LLaMA 3's.
/// </summary>
internal sealed class RotaryAngles
{
    private readonly ConfigReader _read;
    private readonly string _type;
    private readonly double _theta;
    private readonly int _width;
    private readonly double _longest;

    private RotaryAngles(ConfigReader read, string type, double theta, int width, double longest) =>
        (_read, _type, _theta, _width, _longest) = (read, type, theta, width, longest);

    /// <summary>Factor on cosines and sines.</summary>
    public double Multiplier { get; private set; } = 1;

    /// <summary>The ways that are understood.</summary>
    public static IReadOnlyList<string> Types { get; } = ["default", "linear", "dynamic", "llama3", "yarn"];

    /// <summary>Reads rope_parameters, or rope_scaling and rope_theta of older files.</summary>
    /// <param name="raw">config.json.</param>
    /// <param name="width">Width of a head.</param>
    /// <param name="maxTokens">max_position_embeddings.</param>
    public static RotaryAngles Read(JsonObject raw, int width, int maxTokens)
    {
        string field = raw["rope_parameters"] is not null ? "rope_parameters" : "rope_scaling";
        JsonObject rope = raw[field] switch
        {
            null => [],
            JsonObject o when o.All(p => p.Value is not JsonObject) => o,
            JsonNode other => throw new CheckpointFormatException($"config.json: field '{field}' is {other.ToJsonString()}; expected one object with rope_type."),
        };
        var read = new ConfigReader(rope);
        string type = read.Text("rope_type", read.Text("type", "default"));
        if (!Types.Contains(type))
            throw new CheckpointFormatException($"config.json: the rope_type in '{field}' is '{type}', which is not supported; supported are {string.Join(", ", Types)}.");
        foreach ((string owner, ConfigReader at) in new[] { (field, read), ("config.json", new ConfigReader(raw)) })
            if (at.Has("partial_rotary_factor") && at.Positive("partial_rotary_factor", 1) != 1)
                throw new CheckpointFormatException($"config.json: partial_rotary_factor in {owner} is not supported; every entry of a head is turned here.");
        string[] needed = type switch
        {
            "linear" or "dynamic" => ["factor"],
            "llama3" => ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            _ => [],
        };
        if (needed.FirstOrDefault(n => !read.Has(n)) is { } missing)
            throw new CheckpointFormatException($"config.json: '{field}' of rope_type {type} lacks the field '{missing}'.");
        double theta = read.Positive("rope_theta", new ConfigReader(raw).Positive("rope_theta", 10000));
        double longest = type == "dynamic" ? maxTokens : read.Int("original_max_position_embeddings", maxTokens);
        var angles = new RotaryAngles(read, type, theta, width, longest);
        if (type == "yarn") angles.Multiplier = angles.YarnMultiplier(maxTokens);
        angles.Stretched(1, 0);                                              // every number is checked once
        return angles;
    }

    /// <summary>Radians a position, <c>[head width / 2]</c>.</summary>
    /// <param name="length">Longest position of the batch + 1; only dynamic interpolation depends on it.</param>
    public float[] Inverse(long length)
    {
        double theta = _theta;
        if (_type == "dynamic" && length > _longest)
        {
            double factor = _read.Positive("factor", 1);
            theta *= Math.Pow(factor * length / _longest - (factor - 1), _width / (_width - 2.0));
        }
        return [.. Enumerable.Range(0, _width / 2).Select(j => (float)Stretched(Math.Pow(theta, -2.0 * j / _width), j))];
    }

    private double Stretched(double inverse, int j) => _type switch
    {
        "linear" => inverse / _read.Positive("factor", 1),
        "llama3" => Llama3(inverse),
        "yarn" => Yarn(inverse, j),
        _ => inverse,
    };

    // Short waves stay, long ones are stretched, those between by a share.
    private double Llama3(double inverse)
    {
        double factor = _read.Positive("factor", 1), low = _read.Positive("low_freq_factor", 1), high = _read.Positive("high_freq_factor", 4);
        double turns = _longest * inverse / (2 * Math.PI);
        if (turns > high) return inverse;
        if (turns < low) return inverse / factor;
        double share = (turns - low) / (high - low);
        return (1 - share) * inverse / factor + share * inverse;
    }

    private double Yarn(double inverse, int j)
    {
        // The entry whose wave makes so many turns in the original length.
        double At(double turns) => _width * Math.Log(_longest / (turns * 2 * Math.PI)) / (2 * Math.Log(_theta));
        double low = At(_read.Positive("beta_fast", 32)), high = At(_read.Positive("beta_slow", 1));
        if (_read.Flag("truncate", true)) (low, high) = (Math.Floor(low), Math.Ceiling(high));
        (low, high) = (Math.Max(low, 0), Math.Min(high, _width - 1));
        if (low == high) high += 0.001;
        double ramp = Math.Clamp((j - low) / (high - low), 0, 1);
        return inverse / YarnFactor * ramp + inverse * (1 - ramp);
    }

    private double YarnFactor { get; set; } = 1;

    private double YarnMultiplier(int maxTokens)
    {
        double factor = YarnFactor = _read.Positive("factor", maxTokens / _longest);
        double Scale(double m) => factor <= 1 ? 1 : 0.1 * m * Math.Log(factor) + 1;
        if (_read.Has("attention_factor")) return _read.Positive("attention_factor", 1);
        (double over, double under) = (_read.Number("mscale", 0), _read.Number("mscale_all_dim", 0));
        return over != 0 && under != 0 ? Scale(over) / Scale(under) : Scale(1);
    }

    /// <summary>Cosines and sines at positions, <c>[1 or batch, 1, tokens, head width]</c> each.</summary>
    /// <param name="positions">Positions, int64 <c>[1 or batch, tokens]</c>.</param>
    /// <param name="dtype">Type of the queries.</param>
    public Tensor[] At(Tensor positions, ScalarType dtype)
    {
        long length = _type == "dynamic" ? positions.max().item<long>() + 1 : 0;
        Tensor angles = positions.to_type(ScalarType.Float32).unsqueeze(-1) * tensor(Inverse(length), device: positions.device);
        angles = cat([angles, angles], -1).unsqueeze(1);
        return [(angles.cos() * Multiplier).to_type(dtype), (angles.sin() * Multiplier).to_type(dtype)];
    }

    /// <summary>Turns pairs of entries, half a head apart, by their angles.</summary>
    /// <param name="x">Queries or keys <c>[batch, heads, tokens, head width]</c>.</param>
    /// <param name="cos">Cosines.</param>
    /// <param name="sin">Sines.</param>
    public static Tensor Turn(Tensor x, Tensor cos, Tensor sin)
    {
        long half = x.shape[^1] / 2;
        return x * cos + cat([-x.narrow(-1, half, half), x.narrow(-1, 0, half)], -1) * sin;
    }
}
