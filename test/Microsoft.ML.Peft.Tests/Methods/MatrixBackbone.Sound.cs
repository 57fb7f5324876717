// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <content>Networks that hear.</content>
internal sealed partial class MatrixBackbone
{
    private const string Waves =
        """
        "model_type": "wav2vec2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "conv_dim": [12, 16], "conv_kernel": [8, 3], "conv_stride": [4, 2], "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 14
        """;

    private static readonly Dictionary<string, string[]> _projections = new()
    {
        ["query"] = ["q_proj"],
        ["key"] = ["k_proj"],
        ["value"] = ["v_proj"],
        ["dense"] = ["out_proj", "intermediate_dense", "output_dense", "fc1", "fc2"],
    };

    /// <summary>All of them.</summary>
    public static IReadOnlyList<MatrixBackbone> Sounds { get; } =
    [
        new("audio-spectrogram-transformer",
            """
            {"model_type": "audio-spectrogram-transformer", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48, "patch_size": 4, "frequency_stride": 3, "time_stride": 3, "max_length": 13, "num_mel_bins": 10,
            "hidden_dropout_prob": 0.1}
            """, [])
        {
            Batch = tokens => TokenBatch.OfSound(Drawn(tokens, 13, 10)),
        },
        new("wav2vec2", $$"""{{{Waves}}, "use_weighted_layer_sum": true}""", _projections)
        {
            Batch = tokens => TokenBatch.OfSound(Drawn(tokens, 70)),
        },
        new("wav2vec2 pre-norm",
            $$"""{{{Waves}}, "feat_extract_norm": "layer", "do_stable_layer_norm": true, "conv_bias": true}""", _projections)
        {
            // Rows are as long as their texts would be.
            Batch = tokens => TokenBatch.OfSound(
                Drawn(tokens, 72) * tokens.Mask.repeat_interleave(8, 1), tokens.Mask.repeat_interleave(8, 1)),
        },
        new("whisper",
            """
            {"model_type": "whisper", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_source_positions": 8,
            "num_mel_bins": 10, "vocab_size": 101, "dropout": 0.1}
            """, _projections)
        {
            Batch = tokens => TokenBatch.OfSound(Drawn(tokens, 10, 16)),
        },
        new("kwt",
            """
            {"sample_rate": 16000, "frame": 480, "hop": 160, "frames": 9, "mel": 20, "mfcc": 10, "hidden": 32, "layers": 2, "heads": 2,
            "mlp": 48}
            """,
            new() { ["query"] = ["q"], ["key"] = ["k"], ["value"] = ["v"], ["dense"] = ["out", "fc1", "fc2"] })
        {
            Batch = tokens => TokenBatch.OfSound(Drawn(tokens, 9, 10)),
        },
    ];

    private static Tensor Drawn(TokenBatch tokens, params long[] shape) =>
        new Draws(13, "sounds").Normal(1, [tokens.Ids.shape[0], .. shape]).to(tokens.Ids.device);
}
