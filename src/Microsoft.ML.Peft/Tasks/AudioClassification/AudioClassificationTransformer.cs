// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Runtime;

[assembly: LoadableClass(typeof(AudioClassificationTransformer), null, typeof(SignatureLoadModel),
    AudioClassificationTask.UserName, AudioClassificationTask.Loader)]

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A trained classifier of sounds; what it adds to data: see <see cref="ClassificationTransformer"/>.</summary>
public sealed class AudioClassificationTransformer : ClassificationTransformer
{
    internal AudioClassificationTransformer(ClassificationModel<MediaRow<AudioClip>> model) : base(model) => Inner = model;

    internal ClassificationModel<MediaRow<AudioClip>> Inner { get; }

    /// <summary>Name of the column of sounds that is read.</summary>
    public string AudioColumn => InputColumns[0];

    /// <summary>What is done to a sound before the network reads it.</summary>
    public AudioProcessor Processor => ((AudioEncoder)Inner.Encoder).Processor;

    /// <summary>Rows that could not be read and got no scores, since the transformer was made.</summary>
    public long SkippedSounds => Skipped;

    // Found by mlContext.Model.Load through the attribute above.
    private static AudioClassificationTransformer Create(IHostEnvironment env, ModelLoadContext ctx) =>
        new(ClassificationModel<MediaRow<AudioClip>>.Load(AudioClassificationTask.Instance, env, ctx));
}
