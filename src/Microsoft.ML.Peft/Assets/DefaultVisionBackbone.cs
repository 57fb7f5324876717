// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Assets;

/// <summary>
/// The backbone of images that is used where none is named: a small ViT that was pretrained on generated images alone,
/// embedded in this assembly where the build has it.
/// </summary>
public static class DefaultVisionBackbone
{
    /// <summary>The files of the checkpoint; reading them copies nothing. None where the build has no such backbone.</summary>
    public static IFileSet Files { get; } = new ResourceFileSet(typeof(DefaultVisionBackbone).Assembly, "vit/");

    /// <summary>True where this build of the assembly has the backbone.</summary>
    public static bool Exists => Files.Exists("config.json");

    /// <summary>Opens the checkpoint; the caller disposes it.</summary>
    /// <exception cref="CheckpointFormatException">This build of the assembly has no embedded backbone of images.</exception>
    public static CheckpointFolder Open() => CheckpointFolder.Open(Files);
}
