// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Fine-tunes a frozen vision backbone to classify images. Input: a key or Boolean label and a column of images; output:
/// see <see cref="ImageClassificationTransformer"/>.
/// </summary>
public sealed class ImageClassificationTrainer : ClassificationTrainer<ImageClassificationTransformer>
{
    internal ImageClassificationTrainer(IHostEnvironment environment, ImageClassificationOptions options) : base(environment, options)
    {
    }

    private new ImageClassificationOptions Options => (ImageClassificationOptions)base.Options;

    private protected override void CheckInput(SchemaShape shape) => Options.Columns.Check(shape);

    private protected override ImageClassificationTransformer Train(IDataView input, IDataView? validation)
    {
        ImageClassificationOptions options = Options;
        (ClassificationModel<MediaRow<PixelImage>> model, Training.TrainingResult result) = new ClassificationFit<MediaRow<PixelImage>>(
            Environment, ImageClassificationTask.Instance, options, options.Columns,
            (files, network) => new ImageRowEncoder(
                ImageRowEncoder.Load(files, network.Backbone.Config, options.ImageSize), network.Backbone.Config, options.Columns, options.ImageSize,
                options.OnBadImage, Augmentation(options, network), options.Mixing, options.CacheBytes),
            nameof(ImageClassificationTrainer)).Run(input, validation);
        return new ImageClassificationTransformer(model) { Training = result };
    }

    private static ImageAugmentation? Augmentation(ImageClassificationOptions options, Adaptation.AdaptedModel network)
    {
        bool kept = options.Training.CacheFeatures && options.Mixing is null && Peft.Training.Forwarder.CanCache(network);
        return kept && ReferenceEquals(options.Augmentation, ImageClassificationOptions.DefaultAugmentation) ? null : options.Augmentation;
    }
}
