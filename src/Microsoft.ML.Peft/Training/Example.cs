// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>One row of a data set: token ids, or an image or sound, with what it should be scored as.</summary>
public sealed class Example
{
    /// <summary>The label that no loss counts.</summary>
    public const int Ignored = -100;

    /// <summary>Token ids, without padding; at least one where there is no <see cref="Input"/>.</summary>
    public int[] Ids { get; init; } = [];

    /// <summary>Token types, as long as <see cref="Ids"/>; null for all 0.</summary>
    public int[]? TypeIds { get; init; }

    /// <summary>The image or sound that the row is; null for a text.</summary>
    public ExampleInput? Input { get; init; }

    /// <summary>Class number from 0; <see cref="Ignored"/> for a row that does not count.</summary>
    public int Label { get; init; }

    /// <summary>Number to be predicted, in regression and binary tasks.</summary>
    public float Target { get; init; }

    /// <summary>Weight of the row in the loss, not negative.</summary>
    public float Weight { get; init; } = 1;

    /// <summary>Number of the row in the user's data, for messages.</summary>
    public long Row { get; init; } = -1;

    /// <summary>Number of tokens.</summary>
    public int Length => Input?.Tokens ?? Ids.Length;
}

/// <summary>A batch as tensors, with what its rows should be scored as.</summary>
public sealed class MiniBatch
{
    private readonly Device _device;
    private readonly float[]? _mixing;
    private Tensor? _labels, _targets, _weights, _mixed;

    internal MiniBatch(IReadOnlyList<Example> rows, Device device, float[]? mixing = null)
    {
        Rows = rows;
        _device = device;
        _mixing = mixing;
    }

    /// <summary>The rows, in the order of the tensors.</summary>
    public IReadOnlyList<Example> Rows { get; }

    /// <summary>Class numbers, int64 <c>[batch]</c>.</summary>
    public Tensor Labels => _labels ??= Place(tensor(Array.ConvertAll([.. Rows], r => (long)r.Label)));

    /// <summary>Numbers to be predicted, float32 <c>[batch]</c>.</summary>
    public Tensor Targets => _targets ??= Place(tensor(Array.ConvertAll([.. Rows], r => r.Target)));

    /// <summary>Row weights, float32 <c>[batch]</c>; null where all are 1.</summary>
    public Tensor? Weights => _weights ??= Rows.All(r => r.Weight == 1)
        ? null
        : Place(tensor(Array.ConvertAll([.. Rows], r => r.Weight)));

    /// <summary>The share of each row (columns) in each row that the network read, float32 <c>[batch, batch]</c>; null where rows were not mixed.</summary>
    public Tensor? Mixing => _mixing is null ? null : _mixed ??= Place(tensor(_mixing, [Rows.Count, Rows.Count]));

    // Tensors belong to the dispose scope of the thread that runs the step, so they are made here and not by the queue.
    internal static TokenBatch ToTokens(BatchArrays arrays, Device device)
    {
        Tensor On(Tensor made) => Placed(made, device);
        if (arrays.Rows[0].Input is not null)
        {
            Tensor values = On(tensor(arrays.Values, arrays.Shape));
            return arrays.Kind == BackboneInput.Images
                ? TokenBatch.OfImages(values, arrays.FitsPositions)
                : TokenBatch.OfSound(values, arrays.Padded ? On(tensor(arrays.Mask, [arrays.Shape[0], arrays.Shape[1]])) : null) with { InterpolatePositions = arrays.FitsPositions, MaskFrames = arrays.MasksFrames };
        }
        long[] shape = [arrays.Rows.Count, arrays.Tokens];
        Tensor Make(long[] numbers) => On(tensor(numbers, shape));
        return new TokenBatch(
            Make(arrays.Ids), Make(arrays.Mask), arrays.TypeIds is { } types ? Make(types) : null, Padded: arrays.Padded);
    }

    private Tensor Place(Tensor made) => Placed(made, _device);

    // From memory that the device reads by itself, so that the copy runs beside what is queued there already.
    private static Tensor Placed(Tensor made, Device device) => device.type switch
    {
        TorchSharp.DeviceType.CPU => made,
        TorchSharp.DeviceType.CUDA => made.pin_memory().to(device, non_blocking: true),
        _ => made.to(device),
    };
}
