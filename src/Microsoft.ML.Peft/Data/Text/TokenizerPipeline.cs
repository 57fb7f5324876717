// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>The steps of a tokenizer, as tokenizer.json names them.</summary>
internal sealed record TokenizerPipeline(TokenModel Model)
{
    public IReadOnlyList<AddedToken> Added { get; init; } = [];

    public TextNormalizer? Normalizer { get; init; }

    public PreTokenizer? PreTokenizer { get; init; }

    public PostProcessor Post { get; init; } = new();

    public TokenDecoder? Decoder { get; init; }

    /// <summary>A word-end mark that decoding leaves in the text; null where there is none.</summary>
    public string? DecodedWordEnd { get; init; }
}

/// <summary>Which token plays which part, and what else tokenizer_config.json says.</summary>
internal sealed record TokenizerNames
{
    public string? Unknown { get; init; }

    public string? Pad { get; init; }

    public string? Cls { get; init; }

    public string? Sep { get; init; }

    public string? Bos { get; init; }

    public string? Eos { get; init; }

    public string? Mask { get; init; }

    public int PadTypeId { get; init; }

    public int? MaxLength { get; init; }

    public TextSide PaddingSide { get; init; }
}
