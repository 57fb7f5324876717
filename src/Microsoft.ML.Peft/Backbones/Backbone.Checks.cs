// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Backbones;

/// <content>Checks that several families make.</content>
public abstract partial class Backbone
{
    /// <summary>Checks that every head has the same whole share of the hidden width.</summary>
    /// <exception cref="CheckpointFormatException">The width is not divisible by the heads.</exception>
    private protected void RequireEvenHeads()
    {
        if (Config.HiddenSize % Config.HeadCount != 0)
            throw new CheckpointFormatException($"config.json: hidden_size {Config.HiddenSize} is not divisible by {Config.HeadCount} attention heads.");
    }
}
