// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Data;

/// <summary>One sound as a network reads it.</summary>
/// <param name="Values">The numbers, row by row of <paramref name="Shape"/>.</param>
/// <param name="Shape"><c>[samples]</c>, <c>[frames, bins]</c> or <c>[bins, frames]</c>, as the family wants it.</param>
/// <param name="Real">How many of the samples or frames come of the sound; what follows them is padding.</param>
public sealed record AudioFeatures(float[] Values, int[] Shape, int Real);

/// <summary>Sounds of one batch, padded to one length: arrays, made on any thread.</summary>
/// <param name="Values">The numbers, row by row of <paramref name="Shape"/>.</param>
/// <param name="Shape">Number of rows, then the shape of each.</param>
/// <param name="Mask">1 for what is real, <c>[rows, samples]</c> or <c>[rows, frames]</c>; null where the network is not told.</param>
public sealed record AudioBatch(float[] Values, long[] Shape, long[]? Mask)
{
    /// <summary>The batch as tensors, which belong to the running dispose scope.</summary>
    /// <param name="device">Where they go; null for the CPU.</param>
    public TokenBatch ToTokens(Device? device = null)
    {
        Tensor Placed(Tensor made) => device is null || device.type == TorchSharp.DeviceType.CPU ? made : made.to(device);
        return TokenBatch.OfSound(Placed(tensor(Values, Shape)), Mask is null ? null : Placed(tensor(Mask, [Shape[0], Mask.Length / Shape[0]])));
    }

    /// <summary>Pads rows to the longest.</summary>
    /// <param name="rows">Rows of one processor.</param>
    /// <param name="timeAxis">Which axis of a row is time.</param>
    /// <param name="masked">True to tell what is real, where anything is not.</param>
    /// <param name="padding">The number that is put there.</param>
    /// <param name="multiple">The common length is a multiple of this.</param>
    internal static AudioBatch Of(IReadOnlyList<AudioFeatures> rows, int timeAxis, bool masked, float padding, int multiple)
    {
        if (rows.Count == 0) throw new ArgumentException("A batch needs at least one row.", nameof(rows));
        int longest = rows.Max(row => row.Shape[timeAxis]), time = (longest + multiple - 1) / multiple * multiple;
        int[] shape = [.. rows[0].Shape];
        shape[timeAxis] = time;
        int size = shape.Aggregate(1, (a, b) => checked(a * b));
        var values = new float[checked(rows.Count * size)];
        for (int r = 0; r < rows.Count; r++) Fill(rows[r], timeAxis, shape, padding, values.AsSpan(r * size, size));
        long[]? mask = masked && rows.Any(row => row.Real < time) ? new long[rows.Count * time] : null;
        if (mask is not null)
            for (int r = 0; r < rows.Count; r++) mask.AsSpan(r * time, rows[r].Real).Fill(1);
        return new AudioBatch(values, [rows.Count, .. shape.Select(n => (long)n)], mask);
    }

    private static void Fill(AudioFeatures row, int timeAxis, int[] shape, float padding, Span<float> to)
    {
        for (int axis = 0; axis < shape.Length; axis++)
            if (axis != timeAxis && row.Shape[axis] != shape[axis])
                throw new ArgumentException($"Rows of one batch have the shapes [{string.Join(", ", row.Shape)}] and [{string.Join(", ", shape)}]; they may differ in axis {timeAxis} alone.");
        int outer = 1, inner = 1;
        for (int axis = 0; axis < timeAxis; axis++) outer *= shape[axis];
        for (int axis = timeAxis + 1; axis < shape.Length; axis++) inner *= shape[axis];
        int own = row.Shape[timeAxis] * inner, wide = shape[timeAxis] * inner;
        for (int o = 0; o < outer; o++)
        {
            row.Values.AsSpan(o * own, own).CopyTo(to[(o * wide)..]);
            to.Slice(o * wide + own, wide - own).Fill(padding);
        }
    }
}
