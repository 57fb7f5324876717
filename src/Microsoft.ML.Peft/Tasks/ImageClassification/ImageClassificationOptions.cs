// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Options of <see cref="ImageClassificationTrainer"/>; without <see cref="ClassificationOptions.BackboneFolder"/> it takes the embedded ViT.</summary>
public sealed class ImageClassificationOptions : MediaClassificationOptions
{
    /// <summary>
    /// The changes of training images where none are named: crops of most of the image, a little narrower or wider. Nothing is
    /// mirrored, because letters, digits and traffic signs are other ones in the mirror.
    /// </summary>
    public static ImageAugmentation DefaultAugmentation { get; } = new() { CropScale = (0.7, 1), CropRatio = (0.85, 1.18), HorizontalFlip = 0 };

    /// <summary>Column with the images: paths of files (text), the bytes of files (a vector of Byte), or <c>MLImage</c>.</summary>
    public string ImageColumnName = "Image";

    /// <summary>
    /// Random changes of training images, by seed, epoch and row; null for none. <see cref="DefaultAugmentation"/> is left out where
    /// the backbone stays as it is (a head alone), whose features are then computed once; another augmentation is always applied.
    /// </summary>
    public ImageAugmentation? Augmentation = DefaultAugmentation;

    /// <summary>Mixing of training images with one another (mixup, CutMix); null for none.</summary>
    public ImageMixing? Mixing;

    /// <summary>
    /// Side in pixels of the square that images are resized to, in place of what the backbone's processor says; its table of positions is
    /// fitted to it. Null for the processor's own size.
    /// </summary>
    public int? ImageSize;

    /// <summary>What becomes of rows whose image cannot be read.</summary>
    public OnBadInput OnBadImage = OnBadInput.Throw;

    internal ImageColumns Columns => new(ImageColumnName, Folder is null ? null : Path.GetFullPath(Folder));

    private protected override string FolderNeeds => ProcessorFiles.Name;

    private protected override void ValidateInput()
    {
        CheckName(nameof(ImageColumnName), ImageColumnName);
        if (ImageSize is < 1 or > 4096) throw new ArgumentException($"ImageSize is {ImageSize}; it must be 1 to 4096 pixels, or null.", nameof(ImageSize));
        ValidateMedia(OnBadImage, nameof(OnBadImage));
        Augmentation?.Validate();
        Mixing?.Validate();
        if (BackboneFolder is null && !DefaultVisionBackbone.Exists)
            throw new ArgumentException("BackboneFolder is null, but this build has no embedded backbone of images; give a Hugging Face folder, such as one of vit, dinov2 or convnext.", nameof(BackboneFolder));
    }
}
