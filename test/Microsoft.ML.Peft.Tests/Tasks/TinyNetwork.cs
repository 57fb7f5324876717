// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Hugging Face folders of small networks with random numbers, of any family that the library builds.</summary>
internal static class TinyNetwork
{
    public const string ViTConfig = """
        {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "image_size": 16, "patch_size": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        """;

    public const string ViTProcessor = """
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "do_normalize": true,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2}
        """;

    public const string AstConfig = """
        {"model_type": "audio-spectrogram-transformer", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "num_mel_bins": 16, "max_length": 40, "patch_size": 8, "frequency_stride": 8, "time_stride": 8,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        """;

    public const string AstProcessor = """
        {"feature_extractor_type": "ASTFeatureExtractor", "feature_size": 1, "max_length": 40, "num_mel_bins": 16, "do_normalize": true,
        "mean": -4.27, "std": 4.57, "sampling_rate": 16000, "padding_value": 0.0, "return_attention_mask": false}
        """;

    public const string WaveConfig = """
        {"model_type": "wav2vec2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "conv_dim": [8, 8, 8, 8], "conv_kernel": [10, 4, 4, 4], "conv_stride": [5, 4, 4, 4], "feat_extract_norm": "NORM", "do_stable_layer_norm": true,
        "num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "vocab_size": 12}
        """;

    public const string WaveProcessor = """
        {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "do_normalize": true, "sampling_rate": 16000,
        "padding_value": 0.0, "return_attention_mask": MASK}
        """;

    /// <summary>Writes a folder.</summary>
    /// <param name="folder">Where to.</param>
    /// <param name="config">Content of config.json.</param>
    /// <param name="processor">Content of preprocessor_config.json.</param>
    /// <param name="seed">Seed of the numbers.</param>
    public static string Write(string folder, string config, string processor, int seed = 1)
    {
        Directory.CreateDirectory(folder);
        File.WriteAllText(Path.Combine(folder, "config.json"), config);
        File.WriteAllText(Path.Combine(folder, "preprocessor_config.json"), processor);
        using var scope = NewDisposeScope();
        var source = new Recorded(seed);
        BackboneLoader.Build(JsonNode.Parse(config)!.AsObject(), source).Dispose();
        source.Writer.Save(Path.Combine(folder, "model.safetensors"));
        return folder;
    }

    /// <summary>A folder for all tests of the process, which only read it.</summary>
    public static Lazy<string> Shared(string name, string config, string processor) => new(() =>
    {
        string folder = Directory.CreateTempSubdirectory(name).FullName;
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Directory.Delete(folder, recursive: true);
        return Write(folder, config, processor);
    });

    // Makes what the network asks for, and writes it down.
    private sealed class Recorded(int seed) : IWeightSource
    {
        public SafetensorsWriter Writer { get; } = new();

        public bool Has(string name) => !name.StartsWith("pooler.", StringComparison.Ordinal);

        public Tensor Load(string name, params long[] shape)
        {
            Tensor noise = new Draws(seed, name).Normal(shape.Length > 1 ? 0.2 : 0.1, shape);
            Tensor made = shape.Length == 1 && name.EndsWith(".weight", StringComparison.Ordinal) ? noise + 1 : noise;
            AdapterTensors.Add(Writer, name, made);
            return made;
        }
    }
}
