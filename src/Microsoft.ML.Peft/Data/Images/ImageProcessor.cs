// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// From an image to a backbone's input, as the image processors of Transformers do it on Pillow: resized and cropped to the
/// bit, then rescaled and normalised in float32. Safe for use by many threads.
/// </summary>
public sealed class ImageProcessor
{
    /// <summary>The name of a processor's file in a model's folder.</summary>
    public const string FileName = ProcessorFiles.Name;

    private readonly float[][] _values;

    /// <summary>Creates a processor.</summary>
    /// <param name="settings">What it does.</param>
    public ImageProcessor(ImageProcessorSettings settings)
    {
        ArgumentNullException.ThrowIfNull(settings);
        Settings = settings;
        _values = [.. Enumerable.Range(0, Channels).Select(Values)];
    }

    /// <summary>What it does.</summary>
    public ImageProcessorSettings Settings { get; }

    /// <summary>3: red, green, blue.</summary>
    public int Channels => 3;

    /// <summary>Whether all images come out in one size. Where not, see <see cref="OutputSize"/>.</summary>
    public bool HasFixedSize => Settings.CentreCrop || (Settings.Resize && (Settings.Size.IsFixed || Settings.CropShare > 0));

    /// <summary>The rows that come out.</summary>
    /// <exception cref="InvalidOperationException">They depend on the image.</exception>
    public int Height => FixedSize().Height;

    /// <summary>The columns that come out.</summary>
    /// <exception cref="InvalidOperationException">They depend on the image.</exception>
    public int Width => FixedSize().Width;

    /// <summary>
    /// Reads the processor of a model: its <c>preprocessor_config.json</c>; where that is missing, what is usual in the
    /// family of the backbone, at the size that its <c>config.json</c> says.
    /// </summary>
    /// <param name="files">The model's files.</param>
    /// <param name="config">Its <c>config.json</c>.</param>
    /// <exception cref="CheckpointFormatException">The file cannot be understood, or there is neither file nor known family.</exception>
    public static ImageProcessor Load(IFileSet files, JsonObject config)
    {
        ArgumentNullException.ThrowIfNull(files);
        ArgumentNullException.ThrowIfNull(config);
        return new ImageProcessor(ImageProcessorReader.Load(files, config));
    }

    /// <summary>Reads settings from the content of a <c>preprocessor_config.json</c>.</summary>
    /// <param name="json">The content.</param>
    /// <param name="modelType">The family of the backbone, which counts where the content names no class.</param>
    /// <exception cref="CheckpointFormatException">It cannot be understood.</exception>
    public static ImageProcessor FromJson(JsonObject json, string modelType = "")
    {
        ArgumentNullException.ThrowIfNull(json);
        using var document = JsonDocument.Parse(json.ToJsonString());
        return new ImageProcessor(ImageProcessorReader.Read(new JsonAt(document.RootElement.Clone(), FileName, ""), modelType));
    }

    /// <summary>The settings as a <c>preprocessor_config.json</c> that gives the same processor.</summary>
    public JsonObject ToJson() => Settings.ToJson();

    /// <summary>The size in which an image comes out.</summary>
    /// <param name="width">The image's width.</param>
    /// <param name="height">Its height.</param>
    public (int Width, int Height) OutputSize(int width, int height)
    {
        Plan plan = PlanOf(width, height);
        return (plan.Width, plan.Height);
    }

    /// <summary>Processes an image.</summary>
    /// <param name="image">The image; grey is repeated three times, alpha is laid on white.</param>
    /// <param name="pixels">Receives [channels, height, width].</param>
    /// <exception cref="ArgumentException">The span has another length.</exception>
    public void Process(PixelImage image, Span<float> pixels)
    {
        ArgumentNullException.ThrowIfNull(image);
        Plan plan = PlanOf(image.Width, image.Height);
        if (pixels.Length != Channels * plan.Height * plan.Width)
            throw new ArgumentException($"[{Channels}, {plan.Height}, {plan.Width}] are {Channels * plan.Height * plan.Width} values; the span has {pixels.Length}.", nameof(pixels));
        Normalise(Bytes(image), pixels);
    }

    /// <summary>Processes an image into a new array: [channels, height, width].</summary>
    /// <param name="image">The image.</param>
    public float[] Process(PixelImage image)
    {
        ArgumentNullException.ThrowIfNull(image);
        var (width, height) = OutputSize(image.Width, image.Height);
        float[] pixels = new float[checked(Channels * height * width)];
        Process(image, pixels);
        return pixels;
    }

    /// <summary>
    /// Rescales and normalises alone: an image that has its final size, for instance after augmentation.
    /// </summary>
    /// <param name="image">The image.</param>
    /// <param name="pixels">Receives [channels, height, width].</param>
    /// <exception cref="ArgumentException">The span has another length.</exception>
    public void Normalise(PixelImage image, Span<float> pixels)
    {
        ArgumentNullException.ThrowIfNull(image);
        image = PixelChannels.ToRgb(image);
        int size = image.Width * image.Height;
        if (pixels.Length != Channels * size)
            throw new ArgumentException($"[{Channels}, {image.Height}, {image.Width}] are {Channels * size} values; the span has {pixels.Length}.", nameof(pixels));
        ReadOnlySpan<float> red = _values[0], green = _values[1], blue = _values[2];
        Span<float> reds = pixels[..size], greens = pixels.Slice(size, size), blues = pixels[(2 * size)..];
        ReadOnlySpan<byte> bytes = image.Pixels;
        for (int i = 0; i < reds.Length; i++, bytes = bytes[3..])
        {
            reds[i] = red[bytes[0]];
            greens[i] = green[bytes[1]];
            blues[i] = blue[bytes[2]];
        }
    }

    /// <summary>The first half of the work: resized and cropped, still in bytes.</summary>
    internal PixelImage Bytes(PixelImage image)
    {
        image = PixelChannels.ToRgb(image);
        return Placed(image, Settings.Filter);
    }

    /// <summary>A label map as a model of this processor is trained on: resized by nearest neighbours, after the reduction of labels.</summary>
    /// <param name="labels">One channel; each value a class, 255 for none.</param>
    /// <exception cref="ArgumentException">There are several channels.</exception>
    public PixelImage ProcessLabels(PixelImage labels)
    {
        ArgumentNullException.ThrowIfNull(labels);
        if (labels.Channels != 1)
            throw new ArgumentException($"A label map has one channel, not {labels.Channels}.", nameof(labels));
        if (Settings.ReduceLabels)
            labels = new PixelImage(labels.Width, labels.Height, 1, Array.ConvertAll(labels.Pixels, label => label is 0 or 255 ? (byte)255 : (byte)(label - 1)));
        return Placed(labels, ResizeFilter.Nearest);
    }

    // Where the crop is larger than the picture, the rest is zeros.
    private PixelImage Placed(PixelImage image, ResizeFilter filter)
    {
        Plan plan = PlanOf(image.Width, image.Height);
        CentreCrop crop = plan.Crop;
        PixelImage part = ImageResizer.Resize(image, plan.ResizedWidth, plan.ResizedHeight, filter, new ResizeWindow(crop.Left, crop.Top, crop.Width, crop.Height));
        if (crop.Width == plan.Width && crop.Height == plan.Height)
            return part;
        var framed = new PixelImage(plan.Width, plan.Height, image.Channels, new byte[plan.Width * plan.Height * image.Channels]);
        for (int y = 0; y < crop.Height; y++)
            part.Row(y).CopyTo(framed.Row(crop.TargetTop + y)[(crop.TargetLeft * image.Channels)..]);
        return framed;
    }

    private readonly record struct Plan(int ResizedWidth, int ResizedHeight, CentreCrop Crop, int Width, int Height);

    private Plan PlanOf(int width, int height)
    {
        int cropWidth = Settings.CentreCrop ? Settings.CropWidth : 0, cropHeight = Settings.CentreCrop ? Settings.CropHeight : 0;
        if (Settings.Resize)
        {
            ImageTargetSize size = Settings.Size;
            if (Settings.CropShare > 0 && size.ShortestEdge > 0)
            {
                // ConvNeXt: small images are cropped, large ones are made square.
                if (size.ShortestEdge < 384)
                {
                    (cropWidth, cropHeight) = (size.ShortestEdge, size.ShortestEdge);
                    size = size with { ShortestEdge = (int)(size.ShortestEdge / Settings.CropShare) };
                }
                else
                {
                    size = new ImageTargetSize(size.ShortestEdge, size.ShortestEdge);
                }
            }

            (width, height) = size.IsFixed
                ? (size.Width, size.Height)
                : ImageGeometry.ShortestEdge(width, height, size.ShortestEdge, size.LongestEdge == 0 ? null : size.LongestEdge);
            if (width <= 0 || height <= 0)
                throw new ArgumentException($"The image is too narrow: resized it would be {width} x {height} pixels.");
        }

        if (cropWidth == 0)
            (cropWidth, cropHeight) = (width, height);
        return new Plan(width, height, ImageGeometry.Centre(width, height, cropWidth, cropHeight), cropWidth, cropHeight);
    }

    private (int Width, int Height) FixedSize() => HasFixedSize ? OutputSize(1, 1) : throw new InvalidOperationException(
        "Images come out of this processor in different sizes: it resizes the shortest edge, or nothing, and does not crop. For batches set do_center_crop and crop_size, or a size of height and width.");

    // Byte by byte what the arithmetic on whole images gives: rescaled in double precision, the rest in single.
    private float[] Values(int channel)
    {
        float mean = (float)Settings.Mean[channel], std = (float)Settings.Std[channel];
        float[] values = new float[256];
        for (int i = 0; i < values.Length; i++)
        {
            float value = Settings.Rescale ? (float)(i * Settings.RescaleFactor) : i;
            values[i] = Settings.Normalize ? (value - mean) / std : value;
        }

        return values;
    }
}
