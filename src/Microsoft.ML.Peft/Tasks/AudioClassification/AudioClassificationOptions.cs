// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Options of <see cref="AudioClassificationTrainer"/>. A <see cref="ClassificationOptions.BackboneFolder"/> must be named: none is embedded.</summary>
public sealed class AudioClassificationOptions : MediaClassificationOptions
{
    internal const string NoBackbone =
        "BackboneFolder is null, but no backbone for sounds is embedded; give a Hugging Face folder, such as one of audio-spectrogram-transformer or wav2vec2.";

    /// <summary>Column with the sounds: paths of files (text), the bytes of files (a vector of Byte), or samples in [-1, 1] (a vector of Single).</summary>
    public string AudioColumnName = "Audio";

    /// <summary>Samples a second, where the column holds samples; files say it themselves.</summary>
    public int? SampleRate;

    /// <summary>Column with the samples a second (Int32 or Single), in the place of <see cref="SampleRate"/>; null for none.</summary>
    public string? SampleRateColumnName;

    /// <summary>Seconds that every sound is cut or padded to; null for the backbone's own length, or for as long as each sound is.</summary>
    public double? Seconds;

    /// <summary>
    /// Masks of times and frequencies while training; null for none. Backbones that read samples (wav2vec 2.0) mask frames as their
    /// configuration says, whatever the numbers here.
    /// </summary>
    public SpecAugment? Augmentation;

    /// <summary>What becomes of rows whose sound cannot be read.</summary>
    public OnBadInput OnBadSound = OnBadInput.Throw;

    internal AudioColumns Columns => new(AudioColumnName, Folder is null ? null : Path.GetFullPath(Folder), SampleRate, SampleRateColumnName);

    private protected override string FolderNeeds => ProcessorFiles.Name;

    private protected override void ValidateInput()
    {
        CheckName(nameof(AudioColumnName), AudioColumnName);
        if (SampleRateColumnName is not null) CheckName(nameof(SampleRateColumnName), SampleRateColumnName);
        if (SampleRate is not null && SampleRateColumnName is not null)
            throw new ArgumentException("SampleRate and SampleRateColumnName are both given; give one of them.", nameof(SampleRate));
        if (SampleRate is < AudioClip.LowestRate or > AudioClip.HighestRate)
            throw new ArgumentException($"SampleRate is {SampleRate}; it must be {AudioClip.LowestRate} to {AudioClip.HighestRate} samples a second.", nameof(SampleRate));
        if (Seconds is { } seconds && !(seconds > 0 && seconds <= 3600))
            throw new ArgumentException(FormattableString.Invariant($"Seconds is {seconds}; it must be above 0 and at most 3600."), nameof(Seconds));
        ValidateMedia(OnBadSound, nameof(OnBadSound));
        Augmentation?.Validate();
        if (BackboneFolder is null) throw new ArgumentException(NoBackbone, nameof(BackboneFolder));
    }
}
