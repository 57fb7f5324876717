// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Random changes of training images. Each step is off where its number is 0 (or null); the steps come in the order of the
/// properties. What happens to a row depends on (seed, epoch, row) alone, so a resumed run and one with more threads see the
/// same images.
/// </summary>
public sealed record ImageAugmentation
{
    /// <summary>No changes: images are resized alone.</summary>
    public static ImageAugmentation None { get; } = new() { CropScale = null, HorizontalFlip = 0 };

    /// <summary>Least and largest share of the area of a random crop (Szegedy et al. 2015); null for the whole image.</summary>
    public (double Low, double High)? CropScale { get; init; } = (0.08, 1);

    /// <summary>Least and largest width / height of a random crop.</summary>
    public (double Low, double High) CropRatio { get; init; } = (3.0 / 4, 4.0 / 3);

    /// <summary>How samples are weighted when the crop is resized.</summary>
    public ResizeFilter Filter { get; init; } = ResizeFilter.Bicubic;

    /// <summary>Probability of mirroring left to right.</summary>
    public double HorizontalFlip { get; init; } = 0.5;

    /// <summary>Probability of turning upside down.</summary>
    public double VerticalFlip { get; init; }

    /// <summary>The largest angle of a rotation about the centre, either way, in degrees; corners become black.</summary>
    public double Rotation { get; init; }

    /// <summary>Brightness is multiplied by 1 - this to 1 + this.</summary>
    public double Brightness { get; init; }

    /// <summary>Contrast likewise.</summary>
    public double Contrast { get; init; }

    /// <summary>Saturation likewise.</summary>
    public double Saturation { get; init; }

    /// <summary>The hue is turned by at most this share of a full circle, either way; at most 0.5.</summary>
    public double Hue { get; init; }

    /// <summary>Probability of erasing a random box (Zhong et al. 2017).</summary>
    public double Erasing { get; init; }

    /// <summary>Least and largest share of the area that is erased.</summary>
    public (double Low, double High) ErasingScale { get; init; } = (0.02, 0.33);

    /// <summary>Least and largest height / width of what is erased.</summary>
    public (double Low, double High) ErasingRatio { get; init; } = (0.3, 3.3);

    /// <summary>Checks the numbers.</summary>
    /// <exception cref="ArgumentException">A number is out of its range; the message names it.</exception>
    public void Validate()
    {
        Range(nameof(CropScale), CropScale ?? (1, 1), 1);
        Range(nameof(CropRatio), CropRatio, double.MaxValue);
        Range(nameof(ErasingScale), ErasingScale, 1);
        Range(nameof(ErasingRatio), ErasingRatio, double.MaxValue);
        Share(nameof(HorizontalFlip), HorizontalFlip, 1);
        Share(nameof(VerticalFlip), VerticalFlip, 1);
        Share(nameof(Rotation), Rotation, 180);
        Share(nameof(Brightness), Brightness, 1);
        Share(nameof(Contrast), Contrast, 1);
        Share(nameof(Saturation), Saturation, 1);
        Share(nameof(Hue), Hue, 0.5);
        Share(nameof(Erasing), Erasing, 1);
        if (!Enum.IsDefined(Filter))
            throw new ArgumentException($"{nameof(Filter)} is {Filter}; it is one of {string.Join(", ", Enum.GetNames<ResizeFilter>())}.");
    }

    /// <summary>An image as row <paramref name="row"/> is seen in an epoch.</summary>
    /// <param name="image">The image as it was read.</param>
    /// <param name="width">The width that the network takes.</param>
    /// <param name="height">The height that it takes.</param>
    /// <param name="seed">The run's seed.</param>
    /// <param name="epoch">The epoch, from 0.</param>
    /// <param name="row">The row of the data, from 0.</param>
    /// <returns>An image of three channels and that size, for <see cref="ImageProcessor.Normalise"/>.</returns>
    /// <exception cref="ArgumentException">A number is out of its range.</exception>
    public PixelImage Apply(PixelImage image, int width, int height, ulong seed, int epoch, long row)
    {
        ArgumentNullException.ThrowIfNull(image);
        Validate();
        var draws = new AugmentationDraws(seed, epoch, row);
        image = PixelChannels.ToRgb(image);
        if (CropScale is { } scale)
        {
            ImageBox box = RandomCrop.Box(image.Width, image.Height, scale, CropRatio, draws.Next);
            image = image.Crop(box.Left, box.Top, box.Width, box.Height);
        }

        return Changed(ImageResizer.Resize(image, width, height, Filter), draws);
    }

    /// <summary>
    /// An image as row <paramref name="row"/> is seen in an epoch. Without a random crop it is resized and cropped as the
    /// processor does it in scoring.
    /// </summary>
    /// <param name="image">The image as it was read.</param>
    /// <param name="processor">The network's processor.</param>
    /// <param name="seed">The run's seed.</param>
    /// <param name="epoch">The epoch, from 0.</param>
    /// <param name="row">The row of the data, from 0.</param>
    /// <returns>An image of three channels, for <see cref="ImageProcessor.Normalise"/>.</returns>
    /// <exception cref="ArgumentException">A number is out of its range.</exception>
    public PixelImage Apply(PixelImage image, ImageProcessor processor, ulong seed, int epoch, long row)
    {
        ArgumentNullException.ThrowIfNull(image);
        ArgumentNullException.ThrowIfNull(processor);
        if (CropScale is not null)
            return Apply(image, processor.Width, processor.Height, seed, epoch, row);
        Validate();
        return Changed(processor.Bytes(image), new AugmentationDraws(seed, epoch, row));
    }

    // Each step draws its numbers only where it is on: switching one off moves those of the steps behind it.
    private PixelImage Changed(PixelImage image, AugmentationDraws draws)
    {
        if (HorizontalFlip > 0 && draws.Next() < HorizontalFlip)
            image = ImageTurns.Mirror(image);
        if (VerticalFlip > 0 && draws.Next() < VerticalFlip)
            image = ImageTurns.Flip(image);
        if (Rotation > 0)
            image = ImageTurns.Rotate(image, draws.Between(-Rotation, Rotation), bilinear: true);
        if (Brightness > 0)
            image = ColorJitter.Brightness(image, draws.Between(1 - Brightness, 1 + Brightness));
        if (Contrast > 0)
            image = ColorJitter.Contrast(image, draws.Between(1 - Contrast, 1 + Contrast));
        if (Saturation > 0)
            image = ColorJitter.Saturation(image, draws.Between(1 - Saturation, 1 + Saturation));
        if (Hue > 0)
            image = ColorJitter.Hue(image, draws.Between(-Hue, Hue));
        return Erasing > 0 && draws.Next() < Erasing ? Erased(image, draws) : image;
    }

    // Each sample of the box becomes a random one, so that no colour means "erased".
    private PixelImage Erased(PixelImage image, AugmentationDraws draws)
    {
        ImageBox box = RandomCrop.Box(image.Width, image.Height, ErasingScale, (1 / ErasingRatio.High, 1 / ErasingRatio.Low), draws.Next);
        var target = new PixelImage(image.Width, image.Height, 3, [.. image.Pixels]);
        for (int y = box.Top; y < box.Top + box.Height; y++)
            foreach (ref byte sample in target.Row(y).Slice(box.Left * 3, box.Width * 3))
                sample = (byte)(draws.Next() * 256);
        return target;
    }

    private static void Share(string name, double value, double most)
    {
        if (!(value >= 0 && value <= most))
            throw new ArgumentException(FormattableString.Invariant($"{name} is {value}; it is from 0 to {most}."));
    }

    private static void Range(string name, (double Low, double High) range, double most)
    {
        if (!(range.Low > 0 && range.Low <= range.High && range.High <= most))
            throw new ArgumentException(FormattableString.Invariant($"{name} is {range.Low} to {range.High}; both are above 0, the second not below the first{(most == 1 ? " and at most 1" : "")}."));
    }
}
