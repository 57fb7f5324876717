// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Threading.Channels;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>A batch of generated images with shares of classes.</summary>
/// <param name="Pixels">[batch, 3, side, side].</param>
/// <param name="Targets">[batch, classes]; each row sums to 1.</param>
/// <param name="Labels">The class of the larger share.</param>
internal sealed record FormulaBatch(float[] Pixels, float[] Targets, int[] Labels);

/// <summary>Batches of a run, made ahead by threads of their own; batch k is the same whoever makes it.</summary>
internal sealed class FormulaBatches(FormulaImages images, int batch, ulong seed, double mix, double smoothing)
{
    private const double MixupAlpha = 0.8;

    /// <summary>The batch of a step.</summary>
    public FormulaBatch Make(long step)
    {
        var order = new Draw(seed, ulong.MaxValue, (ulong)step);
        var labels = new int[batch];
        var pixels = new float[batch * images.Length];
        for (int row = 0; row < batch; row++)
        {
            labels[row] = order.Below(images.Categories);
            images.Make(labels[row], step * batch + row, pixels.AsSpan(row * images.Length, images.Length));
        }
        float[] targets = Targets(labels);
        if (order.Chance(mix)) Mix(ref order, pixels, targets);
        return new FormulaBatch(pixels, targets, labels);
    }

    /// <summary>All batches from a step on.</summary>
    /// <param name="from">First step.</param>
    /// <param name="to">Behind the last step.</param>
    /// <param name="workers">Threads.</param>
    public IEnumerable<FormulaBatch> Stream(long from, long to, int workers)
    {
        var lines = new Channel<FormulaBatch>[workers];
        for (int w = 0; w < workers; w++)
        {
            Channel<FormulaBatch> line = lines[w] = Channel.CreateBounded<FormulaBatch>(2);
            long first = from + w;
            new Thread(() =>
            {
                for (long step = first; step < to; step += workers) line.Writer.WriteAsync(Make(step)).AsTask().GetAwaiter().GetResult();
            })
            { IsBackground = true }.Start();
        }
        for (long step = from; step < to; step++) yield return lines[(step - from) % workers].Reader.ReadAsync().AsTask().GetAwaiter().GetResult();
    }

    // ImageMixing.Targets rounds once where this rounds twice: another bit here and there, and the published run could not be repeated.
    private float[] Targets(int[] labels)
    {
        int classes = images.Categories;
        var targets = new float[labels.Length * classes];
        Array.Fill(targets, (float)(smoothing / classes));
        for (int row = 0; row < labels.Length; row++) targets[row * classes + labels[row]] += (float)(1 - smoothing);
        return targets;
    }

    // Mixup (arXiv 1710.09412): rows with the rows from the other end of the batch.
    private void Mix(ref Draw draw, float[] pixels, float[] targets)
    {
        float share = (float)draw.Beta(MixupAlpha);
        if (share < 0.5f) share = 1 - share;
        int[] order = [.. Enumerable.Range(0, batch).Reverse()];
        ImageMixing.Mix(pixels, order, share);
        ImageMixing.Mix(targets, order, share);
    }
}
