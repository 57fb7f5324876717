// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Numerics;
using System.Runtime.InteropServices;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// Weights as signed bytes with one float32 scale a row: value = integer x scale. A quarter of the size, and the rows of
/// a weight [out, in] or of an embedding table [tokens, width] differ enough in range to deserve their own scales.
/// </summary>
internal static class Int8Rows
{
    private const int Levels = 127;

    // Shares of a row's largest magnitude that are tried as the end of the range: cutting a few far values off can
    // lower the squared error of all others by more. The plain range comes first and wins ties.
    private static readonly double[] Clips = [.. Enumerable.Range(0, 31).Select(i => 1 - (0.01 * i))];

    /// <summary>Restores elements of a matrix.</summary>
    /// <param name="stored">The bytes of the elements.</param>
    /// <param name="scales">The scales of all rows.</param>
    /// <param name="rowLength">Elements of a row.</param>
    /// <param name="first">Index of the first element in the whole matrix.</param>
    /// <param name="values">Receives the values, as many as there are bytes.</param>
    public static void Restore(ReadOnlySpan<byte> stored, float[] scales, long rowLength, long first, Span<float> values)
    {
        ReadOnlySpan<sbyte> integers = MemoryMarshal.Cast<byte, sbyte>(stored);
        int at = 0;
        while (at < values.Length)
        {
            long row = (first + at) / rowLength;
            int count = (int)Math.Min(values.Length - at, ((row + 1) * rowLength) - (first + at));
            RestoreRow(integers.Slice(at, count), scales[row], values.Slice(at, count));
            at += count;
        }
    }

    /// <summary>
    /// Rounds a row to integers of -127 to 127. Of a small grid of ranges the one with the least squared error is
    /// taken; the same row always gives the same bytes.
    /// </summary>
    /// <param name="values">The row; finite.</param>
    /// <param name="integers">Receives the integers.</param>
    /// <returns>The row's scale; 0 for a row of zeros.</returns>
    public static float Store(ReadOnlySpan<float> values, Span<sbyte> integers)
    {
        float largest = 0;
        foreach (float value in values)
            largest = Math.Max(largest, Math.Abs(value));
        float best = 0;
        double least = double.PositiveInfinity;
        foreach (double clip in Clips)
        {
            float scale = (float)(largest * clip / Levels);
            double error = scale > 0 ? SquaredError(values, scale) : double.PositiveInfinity;
            if (error < least)
                (least, best) = (error, scale);
        }

        for (int i = 0; i < values.Length; i++)
            integers[i] = best > 0 ? Round(values[i], best) : (sbyte)0;
        return best;
    }

    private static void RestoreRow(ReadOnlySpan<sbyte> integers, float scale, Span<float> values)
    {
        int i = 0;
        for (; i <= integers.Length - Vector<sbyte>.Count; i += Vector<sbyte>.Count)
        {
            Vector.Widen(new Vector<sbyte>(integers[i..]), out Vector<short> low, out Vector<short> high);
            RestoreHalf(low, scale, values[i..]);
            RestoreHalf(high, scale, values[(i + Vector<short>.Count)..]);
        }

        for (; i < integers.Length; i++)
            values[i] = integers[i] * scale;
    }

    private static void RestoreHalf(Vector<short> integers, float scale, Span<float> values)
    {
        Vector.Widen(integers, out Vector<int> low, out Vector<int> high);
        (Vector.ConvertToSingle(low) * scale).CopyTo(values);
        (Vector.ConvertToSingle(high) * scale).CopyTo(values[Vector<float>.Count..]);
    }

    private static double SquaredError(ReadOnlySpan<float> values, float scale)
    {
        double sum = 0;
        foreach (float value in values)
        {
            double error = value - ((double)Round(value, scale) * scale);
            sum += error * error;
        }

        return sum;
    }

    private static sbyte Round(float value, float scale) =>
        (sbyte)Math.Clamp(Math.Round((double)value / scale, MidpointRounding.ToEven), -Levels, Levels);
}
