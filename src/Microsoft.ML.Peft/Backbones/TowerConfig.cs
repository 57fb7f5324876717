// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>The config.json of one tower: a file of its own, or a section of a pair's.</summary>
internal static class TowerConfig
{
    /// <summary>The fields of a tower, with its own <c>model_type</c>.</summary>
    /// <param name="raw">The file.</param>
    /// <param name="section">Name of the section in a pair's file.</param>
    /// <param name="modelType">The tower's <c>model_type</c>.</param>
    /// <exception cref="CheckpointFormatException">The section is no JSON object.</exception>
    public static JsonObject Section(JsonObject raw, string section, string modelType)
    {
        if ((raw["model_type"] as JsonValue)?.TryGetValue(out string? type) == true && type == modelType) return raw;
        // In old files a second section wins, and what it leaves out has the family's usual value.
        JsonNode? found = raw[section + "_dict"] ?? raw[section];
        JsonObject fields = found switch
        {
            null => [],
            JsonObject there => there.DeepClone().AsObject(),
            _ => throw new CheckpointFormatException($"config.json: field '{section}' is {found.ToJsonString()}; expected an object with the fields of one tower."),
        };
        fields["model_type"] = modelType;
        return fields;
    }

    /// <summary>Width of the space that a tower's own file may have a projection into; null for a section of a pair's.</summary>
    /// <param name="raw">The file.</param>
    /// <param name="fields">The tower's fields.</param>
    public static int? JointWidth(JsonObject raw, JsonObject fields) => ReferenceEquals(raw, fields) ? new ConfigReader(raw).Int("projection_dim", 512) : null;

    /// <summary>Geometry of a text tower.</summary>
    /// <param name="fields">Its fields.</param>
    /// <param name="modelType">Its <c>model_type</c>.</param>
    /// <param name="usual">What the family has where the file does not say.</param>
    public static BackboneConfig Texts(JsonObject fields, string modelType, TextTower usual)
    {
        var read = new ConfigReader(fields);
        int hidden = read.Int("hidden_size", usual.Hidden);
        return new BackboneConfig
        {
            ModelType = modelType,
            Raw = fields,
            HiddenSize = hidden,
            EmbeddingSize = hidden,
            LayerCount = read.Int("num_hidden_layers", 12),
            HeadCount = read.Int("num_attention_heads", usual.Heads),
            IntermediateSize = read.Int("intermediate_size", 4 * usual.Hidden),
            VocabularySize = read.Int("vocab_size", usual.Vocabulary),
            MaxTokens = read.Int("max_position_embeddings", usual.Tokens),
            PadId = read.Int("pad_token_id", 1, 0),
            Activation = read.Text("hidden_act", usual.Activation),
            NormEpsilon = read.Positive("layer_norm_eps", usual.Epsilon),
            HiddenDropout = 0,
            AttentionDropout = read.Share("attention_dropout", 0),
            ClassifierDropout = 0,
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    /// <summary>Geometry of an image tower.</summary>
    /// <param name="fields">Its fields.</param>
    /// <param name="modelType">Its <c>model_type</c>.</param>
    /// <param name="leading">Tokens in front of the patches.</param>
    /// <param name="epsilon">Added to the variance in norms where the file does not say.</param>
    /// <param name="activation">Name of the activation where the file does not say.</param>
    public static BackboneConfig Images(JsonObject fields, string modelType, int leading, double epsilon, string activation)
    {
        var read = new ConfigReader(fields);
        return ImageEncoder.ReadShared(fields, modelType, leading, epsilon) with
        {
            Activation = read.Text("hidden_act", activation),
            HiddenDropout = 0,
            AttentionDropout = read.Share("attention_dropout", 0),
        };
    }
}

/// <summary>What a family's text tower has where its file does not say.</summary>
internal sealed record TextTower(int Hidden, int Heads, int Vocabulary, int Tokens, string Activation, double Epsilon);
