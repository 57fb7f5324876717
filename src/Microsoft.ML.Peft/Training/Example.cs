// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>One row of a data set: token ids with what they should be scored as.</summary>
public sealed class Example
{
    /// <summary>The label that no loss counts.</summary>
    public const int Ignored = -100;

    /// <summary>Token ids, without padding; at least one.</summary>
    public required int[] Ids { get; init; }

    /// <summary>Token types, as long as <see cref="Ids"/>; null for all 0.</summary>
    public int[]? TypeIds { get; init; }

    /// <summary>Class number from 0; <see cref="Ignored"/> for a row that does not count.</summary>
    public int Label { get; init; }

    /// <summary>Number to be predicted, in regression and binary tasks.</summary>
    public float Target { get; init; }

    /// <summary>Weight of the row in the loss, not negative.</summary>
    public float Weight { get; init; } = 1;

    /// <summary>Number of the row in the user's data, for messages.</summary>
    public long Row { get; init; } = -1;

    /// <summary>Number of tokens.</summary>
    public int Length => Ids.Length;
}

/// <summary>Padded arrays of a batch: made on any thread, without tensors.</summary>
internal sealed class BatchArrays
{
    private BatchArrays(IReadOnlyList<Example> rows, int tokens)
    {
        Rows = rows;
        Tokens = tokens;
        Ids = new long[rows.Count * tokens];
        Mask = new long[rows.Count * tokens];
    }

    public IReadOnlyList<Example> Rows { get; }

    public int Tokens { get; }

    public long[] Ids { get; }

    public long[] Mask { get; }

    public long[]? TypeIds { get; private set; }

    public bool Padded { get; private set; }

    /// <summary>Tokens of the rows, padding left out.</summary>
    public long RealTokens { get; private set; }

    /// <summary>Pads rows to the longest, rounded up to a multiple where the position table allows it.</summary>
    public static BatchArrays Of(IReadOnlyList<Example> rows, BackboneConfig config, int multiple)
    {
        int padId = config.PadId, longest = rows.Max(r => r.Length);
        var batch = new BatchArrays(rows, Math.Max(longest, Math.Min(config.MaxTokens, (longest + multiple - 1) / multiple * multiple)));
        for (int r = 0; r < rows.Count; r++) batch.Fill(r, rows[r], padId);
        return batch;
    }

    private void Fill(int row, Example example, int padId)
    {
        int start = row * Tokens, length = example.Length;
        for (int t = 0; t < length; t++) Ids[start + t] = example.Ids[t];
        Mask.AsSpan(start, length).Fill(1);
        Ids.AsSpan(start + length, Tokens - length).Fill(padId);
        Padded |= length < Tokens;
        RealTokens += length;
        if (example.TypeIds is not { } types || !types.AsSpan().ContainsAnyExcept(0)) return;
        TypeIds ??= new long[Ids.Length];
        for (int t = 0; t < length; t++) TypeIds[start + t] = types[t];
    }
}

/// <summary>A batch as tensors, with what its rows should be scored as.</summary>
public sealed class MiniBatch
{
    private readonly Device _device;
    private Tensor? _labels, _targets, _weights;

    internal MiniBatch(IReadOnlyList<Example> rows, Device device)
    {
        Rows = rows;
        _device = device;
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

    // Tensors belong to the dispose scope of the thread that runs the step, so they are made here and not by the queue.
    internal static TokenBatch ToTokens(BatchArrays arrays, Device device)
    {
        long[] shape = [arrays.Rows.Count, arrays.Tokens];
        Tensor Make(long[] numbers)
        {
            Tensor made = tensor(numbers, shape);
            return device.type == TorchSharp.DeviceType.CPU ? made : made.to(device);
        }
        return new TokenBatch(
            Make(arrays.Ids), Make(arrays.Mask), arrays.TypeIds is { } types ? Make(types) : null, Padded: arrays.Padded);
    }

    private Tensor Place(Tensor made) => _device.type == TorchSharp.DeviceType.CPU ? made : made.to(_device);
}
