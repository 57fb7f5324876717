// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>The end of a text at which tokens are cut off or padding is put.</summary>
public enum TextSide
{
    /// <summary>The end.</summary>
    Right,

    /// <summary>The beginning.</summary>
    Left,
}

/// <summary>Which text of a pair gives way when both are too long together.</summary>
public enum TextTruncation
{
    /// <summary>
    /// The longer one. With lengths n1 at most n2 and room for L tokens: n2 becomes n1 if n1 &gt; L, else max(n1, L - n1); if
    /// that is still too long, both become L / 2 and the rest.
    /// </summary>
    LongestFirst,

    /// <summary>The first text alone.</summary>
    OnlyFirst,

    /// <summary>The second text alone.</summary>
    OnlySecond,
}

/// <summary>How a text is encoded.</summary>
public sealed record TextEncodeOptions
{
    /// <summary>Most tokens of one encoding, special tokens included; null for no limit.</summary>
    public int? MaxTokens { get; init; }

    /// <summary>Put the model's special tokens around the text.</summary>
    public bool AddSpecialTokens { get; init; } = true;

    /// <summary>Treat special tokens that stand in the text as ordinary text: for text from strangers.</summary>
    public bool SpecialTokensAsText { get; init; }

    /// <summary>Which text of a pair is cut.</summary>
    public TextTruncation Truncation { get; init; }

    /// <summary>At which end a text is cut.</summary>
    public TextSide TruncationSide { get; init; }

    /// <summary>Tokens that a window has in common with the one before it; for windows over long texts.</summary>
    public int Stride { get; init; }
}
