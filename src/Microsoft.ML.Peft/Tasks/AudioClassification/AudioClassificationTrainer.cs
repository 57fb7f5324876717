// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Fine-tunes a frozen network that hears to classify sounds. Input: a key or Boolean label and a column of sounds; output:
/// see <see cref="AudioClassificationTransformer"/>.
/// </summary>
public sealed class AudioClassificationTrainer : ClassificationTrainer<AudioClassificationTransformer>
{
    internal AudioClassificationTrainer(IHostEnvironment environment, AudioClassificationOptions options) : base(environment, options)
    {
    }

    private new AudioClassificationOptions Options => (AudioClassificationOptions)base.Options;

    private protected override void CheckInput(SchemaShape shape) => Options.Columns.Check(shape);

    private protected override AudioClassificationTransformer Train(IDataView input, IDataView? validation)
    {
        AudioClassificationOptions options = Options;
        (ClassificationModel<MediaRow<AudioClip>> model, Training.TrainingResult result) = new ClassificationFit<MediaRow<AudioClip>>(
            Environment, AudioClassificationTask.Instance, options, options.Columns,
            (files, network) => new AudioEncoder(AudioProcessor.Load(files, network.Backbone.Config.Raw, options.Seconds), network.Backbone.Config, options.Columns,
                options.Seconds, options.OnBadSound, options.Augmentation, options.CacheBytes),
            nameof(AudioClassificationTrainer)).Run(input, validation);
        return new AudioClassificationTransformer(model) { Training = result };
    }
}
