// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>The families with vocab.json and merges.txt.</summary>
internal static class ByteLevelFamily
{
    public static TokenizerPipeline Build(IFileSet files, TokenizerSettings settings) => throw new NotSupportedException("This family is read from its tokenizer.json only.");
}
