// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>The families with a SentencePiece model.</summary>
internal static class SentencePieceFamily
{
    public static TokenizerPipeline Build(IFileSet files, string name, TokenizerSettings settings) => throw new NotSupportedException("This family is read from its tokenizer.json only.");
}
