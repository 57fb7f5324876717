// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>What the processors of a family do where their file says nothing, and how they read a size that is one number.</summary>
/// <param name="Class">The name of the class, without "ImageProcessor".</param>
/// <param name="Defaults">The settings.</param>
/// <param name="NumberIsShortest">One number is the shortest edge, not a square.</param>
/// <param name="ModelTypes">The families of backbones that come with it.</param>
internal sealed record ImageProcessorFamily(string Class, ImageProcessorSettings Defaults, bool NumberIsShortest, params string[] ModelTypes)
{
    private static readonly double[] ImageNetMean = [0.485, 0.456, 0.406], ImageNetStd = [0.229, 0.224, 0.225];
    private static readonly double[] ClipMean = [0.48145466, 0.4578275, 0.40821073], ClipStd = [0.26862954, 0.26130258, 0.27577711];

    public static IReadOnlyList<ImageProcessorFamily> All { get; } =
    [
        new("ViT", Square("ViT", 224) with { Filter = ResizeFilter.Bilinear }, false, "vit", "swin", "swinv2", "vit_mae", "ijepa"),
        new("DeiT", Cropped(Square("DeiT", 256), 224), false, "deit"),
        new("Beit", Cropped(Square("Beit", 256), 224), false, "beit", "data2vec-vision"),
        new("CLIP", Cropped(Shortest("CLIP", 224), 224) with { Mean = ClipMean, Std = ClipStd }, true, "clip", "clip_vision_model"),
        new("ChineseCLIP", Cropped(Shortest("ChineseCLIP", 224), 224) with { Mean = ClipMean, Std = ClipStd }, true, "chinese_clip"),
        new("Bit", Cropped(Shortest("Bit", 224), 224) with { Mean = ClipMean, Std = ClipStd }, true, "dinov2", "dinov2_with_registers", "bit"),
        new("ConvNext", Shortest("ConvNext", 384) with { CropShare = 224 / 256.0 }, true, "convnext", "convnextv2", "resnet", "regnet", "van"),
        new("Siglip", Square("Siglip", 224), true, "siglip", "siglip_vision_model"),
        new("Segformer", Square("Segformer", 512) with { Filter = ResizeFilter.Bilinear, Mean = ImageNetMean, Std = ImageNetStd }, false, "segformer"),
        new("VideoMAE", Cropped(Shortest("VideoMAE", 224), 224) with { Filter = ResizeFilter.Bilinear }, true, "videomae"),
        new("Blip", Square("Blip", 384) with { Mean = ClipMean, Std = ClipStd }, false, "blip", "blip-2"),
    ];

    /// <summary>The family of a class name as files hold it: an image processor or feature extractor, with any ending.</summary>
    public static ImageProcessorFamily? OfClass(string name)
    {
        foreach (string ending in (string[])["Pil", "Fast"])
            if (name.EndsWith(ending, StringComparison.Ordinal))
                name = name[..^ending.Length];
        foreach (string ending in (string[])["ImageProcessor", "FeatureExtractor", "Processor"])
            if (name.EndsWith(ending, StringComparison.Ordinal))
                name = name[..^ending.Length];
        return All.FirstOrDefault(family => family.Class.Equals(name, StringComparison.OrdinalIgnoreCase));
    }

    public static ImageProcessorFamily? OfModel(string modelType) => All.FirstOrDefault(family => family.ModelTypes.Contains(modelType));

    public static CheckpointFormatException Unknown(string file, string found) => Malformed.In(file, found,
        $"an image processor of one of the classes {string.Join(", ", All.Select(family => family.Class + "ImageProcessor"))}");

    private static ImageProcessorSettings Square(string name, int size) => new() { Type = name + "ImageProcessor", Size = new(size, size) };

    private static ImageProcessorSettings Shortest(string name, int size) => new() { Type = name + "ImageProcessor", Size = new(0, 0, size) };

    private static ImageProcessorSettings Cropped(ImageProcessorSettings settings, int size) =>
        settings with { CentreCrop = true, CropWidth = size, CropHeight = size };
}
