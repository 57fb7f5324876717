// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Assets;

/// <summary>
/// The backbone that is used where none is named: all-MiniLM-L6-v2, an English sentence encoder of 22.7 million
/// parameters (BERT with 6 layers of width 384, uncased), embedded in this assembly with int8 weights. It is licensed
/// under Apache-2.0; its licence, notice and model card are among its files.
/// </summary>
/// <remarks>Paper: Wang et al., 2020, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
/// Pre-Trained Transformers", https://arxiv.org/abs/2002.10957.</remarks>
public static class DefaultBackbone
{
    /// <summary>The model's published name.</summary>
    public const string Name = "all-MiniLM-L6-v2";

    /// <summary>The files of the checkpoint; reading them copies nothing.</summary>
    public static IFileSet Files { get; } = new ResourceFileSet(typeof(DefaultBackbone).Assembly, "minilm/");

    /// <summary>Opens the checkpoint; the caller disposes it.</summary>
    /// <exception cref="CheckpointFormatException">This build of the assembly has no embedded backbone.</exception>
    public static CheckpointFolder Open() => CheckpointFolder.Open(Files);
}
