// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

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

    /// <summary>The images of a batch, <c>[batch, channels, height, width]</c>.</summary>
    /// <param name="batch">The batch.</param>
    /// <param name="channels">Colours that the network reads.</param>
    /// <exception cref="ArgumentException">There are none, or they have another shape.</exception>
    private protected Tensor ImagesOf(TokenBatch batch, int channels)
    {
        if (batch.Pixels is not { } pixels)
            throw new ArgumentException($"A {Config.ModelType} backbone reads images: make the batch with TokenBatch.OfImages.");
        long[] shape = pixels.shape;
        if (shape.Length != 4 || shape[1] != channels)
            throw new ArgumentException($"Images have the shape [{string.Join(", ", shape)}]; expected [batch, {channels}, height, width].");
        return pixels;
    }
}
