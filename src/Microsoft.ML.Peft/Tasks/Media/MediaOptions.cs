// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Tasks;

/// <summary>What the options of image and audio classification have in common.</summary>
public abstract class MediaClassificationOptions : ClassificationOptions
{
    private protected MediaClassificationOptions()
    {
    }

    /// <summary>Folder that relative paths of the input column begin in; null for the current folder. It is part of the model.</summary>
    public string? Folder;

    /// <summary>MiB of decoded training rows that are kept in memory; what does not fit is decoded again in each epoch. 0 for none.</summary>
    public int CacheMegabytes = 256;

    internal long CacheBytes => CacheMegabytes * 1048576L;

    private protected void ValidateMedia(OnBadInput onBad, string option)
    {
        if (!Enum.IsDefined(onBad)) throw new ArgumentException($"{option} is {onBad}; allowed are {string.Join(", ", Enum.GetNames<OnBadInput>())}.", option);
        if (CacheMegabytes < 0) throw new ArgumentException($"CacheMegabytes is {CacheMegabytes}; it must be 0 (keep nothing) or more.", nameof(CacheMegabytes));
        if (Folder is not null && !Directory.Exists(Folder)) throw new DirectoryNotFoundException($"Folder '{Folder}' does not exist; give the folder that the paths begin in, or null.");
    }
}
