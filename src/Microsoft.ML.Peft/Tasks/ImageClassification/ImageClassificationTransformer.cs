// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Runtime;

[assembly: LoadableClass(typeof(ImageClassificationTransformer), null, typeof(SignatureLoadModel),
    ImageClassificationTask.UserName, ImageClassificationTask.Loader)]

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A trained classifier of images; what it adds to data: see <see cref="ClassificationTransformer"/>.</summary>
public sealed class ImageClassificationTransformer : ClassificationTransformer
{
    internal ImageClassificationTransformer(ClassificationModel<MediaRow<PixelImage>> model) : base(model) => Inner = model;

    internal ClassificationModel<MediaRow<PixelImage>> Inner { get; }

    /// <summary>Name of the column of images that is read.</summary>
    public string ImageColumn => InputColumns[0];

    /// <summary>Height and width in pixels that images are resized to.</summary>
    public (int Height, int Width) ImageSize => (Processor.Height, Processor.Width);

    /// <summary>What is done to an image before the network reads it.</summary>
    public ImageProcessor Processor => ((ImageRowEncoder)Inner.Encoder).Processor;

    /// <summary>Rows that could not be read and got no scores, since the transformer was made.</summary>
    public long SkippedImages => Skipped;

    // Found by mlContext.Model.Load through the attribute above.
    private static ImageClassificationTransformer Create(IHostEnvironment env, ModelLoadContext ctx) =>
        new(ClassificationModel<MediaRow<PixelImage>>.Load(ImageClassificationTask.Instance, env, ctx));
}
