// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// A further network that rows of the method matrix run on: a tiny geometry, the batch in its form, and its words for BERT's
/// module names, which the rows use.
/// </summary>
internal sealed partial class MatrixBackbone
{
    /// <summary>All of them; BERT, the first, is what the whole matrix runs on.</summary>
    public static IReadOnlyList<MatrixBackbone> All { get; } =
    [
        new("vit",
            """
            {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "image_size": 8, "patch_size": 4, "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1}
            """, [])
        {
            EveryRow = true,
            Batch = tokens => TokenBatch.OfImages(new Draws(13, "pixels").Normal(1, tokens.Ids.shape[0], 3, 8, 8).to(tokens.Ids.device)),
        },
        new("beit",
            """
            {"model_type": "beit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "image_size": 8, "patch_size": 4, "use_relative_position_bias": true,
            "use_shared_relative_position_bias": true, "use_absolute_position_embeddings": true, "drop_path_rate": 0.1}
            """, [])
        {
            Few = ["lora", "ssf", "bottleneck", "vpt", "bitfit", "prefix-tuning", "partial", "ia3"],
            Batch = tokens => TokenBatch.OfImages(new Draws(13, "pixels").Normal(1, tokens.Ids.shape[0], 3, 8, 8).to(tokens.Ids.device)),
        },
        new("deit",
            """
            {"model_type": "deit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
            "image_size": 8, "patch_size": 4, "architectures": ["DeiTForImageClassificationWithTeacher"]}
            """, [])
        {
            Few = ["lora", "vpt", "vqt", "prefix-tuning"],
            Batch = tokens => TokenBatch.OfImages(new Draws(13, "pixels").Normal(1, tokens.Ids.shape[0], 3, 8, 8).to(tokens.Ids.device)),
        },
        new("clip",
            """
            {"model_type": "clip", "vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "image_size": 8, "patch_size": 4}}
            """,
            new() { ["query"] = ["q_proj"], ["key"] = ["k_proj"], ["value"] = ["v_proj"], ["dense"] = ["out_proj", "fc1", "fc2"] })
        {
            Few = ["lora", "ssf", "bottleneck", "vpt", "vqt", "prefix-tuning"],
            Batch = tokens => TokenBatch.OfImages(new Draws(13, "pixels").Normal(1, tokens.Ids.shape[0], 3, 8, 8).to(tokens.Ids.device)),
        },
        new("videomae",
            """
            {"model_type": "videomae", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "image_size": 8, "patch_size": 4, "num_frames": 4}
            """, [])
        {
            Few = ["lora", "ssf", "bottleneck", "vqt", "bitfit", "prefix-tuning"],
            Batch = tokens => TokenBatch.OfImages(new Draws(13, "pixels").Normal(1, tokens.Ids.shape[0], 4, 3, 8, 8).to(tokens.Ids.device)),
        },
        new("dinov2",
            """
            {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "mlp_ratio": 1.5, "image_size": 8, "patch_size": 4, "use_mask_token": false, "drop_path_rate": 0.1}
            """, [])
        {
            Few = ["lora", "ssf", "bottleneck", "vpt", "vqt", "bitfit", "prefix-tuning", "partial", "ia3"],
            Batch = tokens => TokenBatch.OfImages(new Draws(13, "pixels").Normal(1, tokens.Ids.shape[0], 3, 8, 12).to(tokens.Ids.device)),
        },
        new("t5",
            """
            {"model_type": "t5", "d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 48,
            "vocab_size": 101, "feed_forward_proj": "gated-gelu"}
            """,
            new() { ["query"] = ["q"], ["key"] = ["k"], ["value"] = ["v"], ["dense"] = ["o", "wi_0", "wi_1", "wo"], ["word_embeddings"] = ["shared"] })
        {
            Pooling = Pooling.Mean,
            Batch = tokens => tokens with { DecoderIds = tokens.Ids.narrow(1, 0, 5).clone() },
        },
        new("gpt2",
            """
            {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 40,
            "vocab_size": 101}
            """,
            new() { ["query"] = ["c_attn"], ["key"] = ["c_attn"], ["value"] = ["c_attn"], ["dense"] = ["c_proj", "c_fc"], ["word_embeddings"] = ["wte"] }),
        new("llama",
            """
            {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40, "vocab_size": 101,
            "attention_dropout": 0.1}
            """,
            new()
            {
                ["query"] = ["q_proj"], ["key"] = ["k_proj"], ["value"] = ["v_proj"], ["dense"] = ["o_proj", "gate_proj", "up_proj", "down_proj"],
                ["word_embeddings"] = ["embed_tokens"],
            })
        {
            EveryRow = true,
        },
    ];

    /// <summary>Networks of stages: what few methods are tried on by <see cref="StagedMethodTests"/>.</summary>
    public static IReadOnlyList<MatrixBackbone> Stages { get; } =
    [
        new("swin",
            """
            {"model_type": "swin", "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "mlp_ratio": 1.5, "window_size": 4,
            "image_size": 16, "patch_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
            """, [])
        {
            Batch = tokens => Images(tokens, 18, 14),
        },
        new("swinv2",
            """
            {"model_type": "swinv2", "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "mlp_ratio": 1.5, "window_size": 4,
            "image_size": 16, "patch_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
            """, [])
        {
            Batch = tokens => Images(tokens, 16, 16),
        },
        new("convnext",
            """
            {"model_type": "convnext", "num_stages": 2, "depths": [1, 2], "hidden_sizes": [16, 32], "drop_path_rate": 0.1}
            """,
            new() { ["query"] = ["pwconv1"], ["key"] = ["pwconv1"], ["value"] = ["pwconv2"], ["dense"] = ["pwconv1", "pwconv2"] })
        {
            Batch = tokens => Images(tokens, 16, 20),
        },
        new("resnet",
            """
            {"model_type": "resnet", "embedding_size": 8, "depths": [1, 2], "hidden_sizes": [16, 32]}
            """,
            new() { ["query"] = ["convolution"], ["key"] = ["convolution"], ["value"] = ["convolution"], ["dense"] = ["convolution"] })
        {
            Batch = tokens => Images(tokens, 24, 20),
        },
        new("segformer",
            """
            {"model_type": "segformer", "num_encoder_blocks": 2, "depths": [1, 2], "hidden_sizes": [16, 32], "num_attention_heads": [2, 4],
            "sr_ratios": [2, 1], "mlp_ratios": [2, 2], "patch_sizes": [7, 3], "strides": [4, 2], "hidden_dropout_prob": 0.1}
            """,
            new() { ["dense"] = ["dense", "dense1", "dense2"] })
        {
            Batch = tokens => Images(tokens, 20, 24),
        },
    ];

    private static TokenBatch Images(TokenBatch tokens, long height, long width) =>
        TokenBatch.OfImages(new Draws(13, "pixels").Normal(1, tokens.Ids.shape[0], 3, height, width).to(tokens.Ids.device));

    private readonly string _config;
    private readonly Dictionary<string, string[]> _words;

    private MatrixBackbone(string name, string config, Dictionary<string, string[]> words) => (Name, _config, _words) = (name, config, words);

    public string Name { get; }

    /// <summary>True to try every row, false for one a method.</summary>
    public bool EveryRow { get; private init; }

    /// <summary>Ids of the only methods to try, one row each; null for all: networks much like another one that tries all.</summary>
    public string[]? Few { get; private init; }

    /// <summary>How the head reads the network.</summary>
    public Pooling Pooling { get; private init; } = Pooling.Family;

    /// <summary>The rows of the matrix in the network's form.</summary>
    public Func<TokenBatch, TokenBatch> Batch { get; private init; } = tokens => tokens;

    /// <summary>The network with random numbers.</summary>
    public Backbone Make(Device device, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        return BackboneLoader.Build(JsonNode.Parse(_config)!.AsObject(), new MatrixModel.Random(device, dtype, pooler: false));
    }

    /// <summary>A row's method with its targets in the network's words.</summary>
    public PeftMethod Spelled(PeftMethod method)
    {
        if (method is TargetedMethod targeted)
            targeted.Targets = [.. targeted.Targets.SelectMany(name => _words.TryGetValue(name, out string[]? own) ? own : [name]).Distinct()];
        return method;
    }
}
