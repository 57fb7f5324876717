// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Backbones;

/// <summary>What a network reads.</summary>
public enum BackboneInput
{
    /// <summary>Token ids.</summary>
    Text,
    /// <summary>Normalised images <c>[batch, channels, height, width]</c>.</summary>
    Images,
    /// <summary>Samples <c>[batch, samples]</c>, or spectrograms as the family wants them.</summary>
    Sound,
}

/// <summary>Geometry and settings that all families share, read from config.json.</summary>
public sealed record BackboneConfig
{
    /// <summary>The <c>model_type</c>, e.g. <c>bert</c>.</summary>
    public required string ModelType { get; init; }

    /// <summary>What the network reads.</summary>
    public BackboneInput Input { get; init; }

    /// <summary>Width of the hidden states; of the last stage where stages differ.</summary>
    public required int HiddenSize { get; init; }

    /// <summary>Number of layers; in networks of two stacks of both together.</summary>
    public required int LayerCount { get; init; }

    /// <summary>Number of the decoder's first layer, in networks of two stacks; else null.</summary>
    public int? DecoderStart { get; init; }

    /// <summary>Number of attention heads.</summary>
    public required int HeadCount { get; init; }

    /// <summary>Number of key and value heads where query heads share them; null for one a query head.</summary>
    public int? KeyHeadCount { get; init; }

    /// <summary>Width of a head where it is not the hidden width divided by the heads; null where it is.</summary>
    public int? HeadWidth { get; init; }

    /// <summary>True to have the language head's projection among the sites (decoders).</summary>
    public bool LanguageHead { get; init; }

    /// <summary>Width of the space that this tower shares with another, to have the projection into it among the sites; null for none.</summary>
    public int? JointWidth { get; init; }

    /// <summary>Width of the feed-forward part.</summary>
    public required int IntermediateSize { get; init; }

    /// <summary>Rows of the embedding table.</summary>
    public required int VocabularySize { get; init; }

    /// <summary>Longest row in tokens.</summary>
    public required int MaxTokens { get; init; }

    /// <summary>Width of the embeddings where it differs (ALBERT, ELECTRA).</summary>
    public int EmbeddingSize { get; init; }

    /// <summary>Rows of the token-type table; 0 for none.</summary>
    public int TypeVocabularySize { get; init; }

    /// <summary>Id of the padding token.</summary>
    public int PadId { get; init; }

    /// <summary>Id of the token that a decoder begins with, in networks of two stacks.</summary>
    public int DecoderStartId { get; init; }

    /// <summary>Name of the activation, as in config.json.</summary>
    public string Activation { get; init; } = "gelu";

    /// <summary>Added to the variance in norms.</summary>
    public double NormEpsilon { get; init; } = 1e-12;

    /// <summary>Dropout of hidden states while training.</summary>
    public double HiddenDropout { get; init; } = 0.1;

    /// <summary>Dropout of attention weights while training.</summary>
    public double AttentionDropout { get; init; } = 0.1;

    /// <summary>Dropout before a classifier; null means <see cref="HiddenDropout"/>.</summary>
    public double? ClassifierDropout { get; init; }

    /// <summary>Standard deviation of fresh weights.</summary>
    public double InitializerRange { get; init; } = 0.02;

    /// <summary>The whole file, for fields that one family alone has.</summary>
    public required System.Text.Json.Nodes.JsonObject Raw { get; init; }
}
