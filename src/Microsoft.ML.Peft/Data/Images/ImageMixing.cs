// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Mixes the rows of a batch with one another: by weights (mixup, Zhang et al. 2017) or by boxes (CutMix, Yun et al. 2019).
/// The loss is then the cross-entropy with shares of classes as targets.
/// </summary>
public sealed record ImageMixing
{
    /// <summary>The parameter of mixup's beta distribution; 0 for no mixup.</summary>
    public double MixupAlpha { get; init; }

    /// <summary>The parameter of CutMix's beta distribution; 0 for no CutMix.</summary>
    public double CutMixAlpha { get; init; }

    /// <summary>Probability that a batch is mixed at all.</summary>
    public double Probability { get; init; } = 1;

    /// <summary>Probability of CutMix where both are on.</summary>
    public double SwitchProbability { get; init; } = 0.5;

    /// <summary>Checks the numbers.</summary>
    /// <exception cref="ArgumentException">A number is out of its range; the message names it.</exception>
    public void Validate()
    {
        if (!(MixupAlpha >= 0 && double.IsFinite(MixupAlpha) && CutMixAlpha >= 0 && double.IsFinite(CutMixAlpha)))
            throw new ArgumentException(FormattableString.Invariant($"{nameof(MixupAlpha)} is {MixupAlpha}, {nameof(CutMixAlpha)} is {CutMixAlpha}; both are 0 or above."));
        if (!(Probability is >= 0 and <= 1 && SwitchProbability is >= 0 and <= 1))
            throw new ArgumentException(FormattableString.Invariant($"{nameof(Probability)} is {Probability}, {nameof(SwitchProbability)} is {SwitchProbability}; both are from 0 to 1."));
    }

    /// <summary>Mixes a batch in place.</summary>
    /// <param name="images">[rows, channels, height, width].</param>
    /// <param name="rows">The rows.</param>
    /// <param name="height">The rows of an image.</param>
    /// <param name="width">The columns of an image.</param>
    /// <param name="targets">[rows, classes]: the share of each class, for instance of <see cref="Targets"/>; mixed too.</param>
    /// <param name="seed">The run's seed.</param>
    /// <param name="epoch">The epoch, from 0.</param>
    /// <param name="batch">The batch of the epoch, from 0.</param>
    /// <returns>The weight of each row's own image; 1 where nothing was mixed.</returns>
    /// <exception cref="ArgumentException">A number is out of its range, or the lengths do not fit.</exception>
    public double Apply(Span<float> images, int rows, int height, int width, Span<float> targets, ulong seed, int epoch, long batch)
    {
        Validate();
        // Batches have streams of their own, away from those of rows.
        var draws = new AugmentationDraws(~seed, epoch, batch);
        if (rows < 2 || (MixupAlpha == 0 && CutMixAlpha == 0) || draws.Next() >= Probability)
            return 1;
        bool cut = MixupAlpha == 0 || (CutMixAlpha > 0 && draws.Next() < SwitchProbability);
        double own = draws.Beta(cut ? CutMixAlpha : MixupAlpha);
        int[] order = Shuffled(rows, draws);
        if (cut)
        {
            ImageBox box = CutMixBox(width, height, own, (int)(draws.Next() * width), (int)(draws.Next() * height));
            own = OwnShare(box, width, height);
            Paste(images, order, height, width, box);
        }
        else
        {
            Mix(images, order, own);
        }

        Mix(targets, order, own);
        return own;
    }

    /// <summary>Targets with label smoothing: 1 - s + s / classes at the label, s / classes elsewhere; [rows, classes].</summary>
    /// <param name="labels">The class of each row.</param>
    /// <param name="classes">How many classes there are.</param>
    /// <param name="smoothing">s, in [0, 1).</param>
    /// <exception cref="ArgumentException">A label that is no class.</exception>
    public static float[] Targets(ReadOnlySpan<int> labels, int classes, double smoothing)
    {
        float[] targets = new float[labels.Length * classes];
        targets.AsSpan().Fill((float)(smoothing / classes));
        for (int i = 0; i < labels.Length; i++)
        {
            if ((uint)labels[i] >= (uint)classes)
                throw new ArgumentException($"Row {i} has the label {labels[i]}; there are {classes} classes, from 0 on.", nameof(labels));
            targets[i * classes + labels[i]] = (float)(1 - smoothing + smoothing / classes);
        }

        return targets;
    }

    /// <summary>Each row becomes own x itself + (1 - own) x its partner, in place.</summary>
    internal static void Mix(Span<float> values, ReadOnlySpan<int> order, double own)
    {
        int length = values.Length / order.Length;
        float[] before = values.ToArray();
        float mine = (float)own, others = (float)(1 - own);
        for (int row = 0; row < order.Length; row++)
        {
            ReadOnlySpan<float> self = before.AsSpan(row * length, length), partner = before.AsSpan(order[row] * length, length);
            Span<float> target = values.Slice(row * length, length);
            for (int i = 0; i < target.Length; i++)
                target[i] = self[i] * mine + partner[i] * others;
        }
    }

    /// <summary>A box around a centre that leaves about the share <paramref name="own"/> of the image outside; cut off at the border.</summary>
    internal static ImageBox CutMixBox(int width, int height, double own, int column, int row)
    {
        double side = Math.Sqrt(1 - own);
        int halfWidth = (int)(width * side) / 2, halfHeight = (int)(height * side) / 2;
        int left = Math.Max(column - halfWidth, 0), top = Math.Max(row - halfHeight, 0);
        int right = Math.Min(column + halfWidth, width), bottom = Math.Min(row + halfHeight, height);
        return new ImageBox(left, top, right - left, bottom - top);
    }

    /// <summary>The share of the image that a box leaves.</summary>
    internal static double OwnShare(ImageBox box, int width, int height) => 1 - (double)(box.Width * box.Height) / (width * height);

    /// <summary>Each row's box is taken from its partner, in place.</summary>
    internal static void Paste(Span<float> images, ReadOnlySpan<int> order, int height, int width, ImageBox box)
    {
        int plane = height * width, planes = images.Length / order.Length / plane;
        float[] before = images.ToArray();
        for (int row = 0; row < order.Length; row++)
            for (int p = 0; p < planes; p++)
                for (int y = box.Top; y < box.Top + box.Height; y++)
                {
                    int at = p * plane + y * width + box.Left;
                    before.AsSpan(order[row] * planes * plane + at, box.Width).CopyTo(images[(row * planes * plane + at)..]);
                }
    }

    private static int[] Shuffled(int count, AugmentationDraws draws)
    {
        int[] order = [.. Enumerable.Range(0, count)];
        for (int i = count - 1; i > 0; i--)
        {
            int other = (int)(draws.Next() * (i + 1));
            (order[i], order[other]) = (order[other], order[i]);
        }

        return order;
    }
}
