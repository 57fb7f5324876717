// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Tasks;

/// <summary>What becomes of a row whose image or sound cannot be read.</summary>
public enum OnBadInput
{
    /// <summary>An error that names row, file and reason; training data are read through before the first step.</summary>
    Throw,

    /// <summary>The row is left out of training, and gets no scores (not numbers, and no predicted label); skipped rows are counted.</summary>
    Skip,
}

/// <summary>An image or sound of a row: a file, encoded bytes, or what a column held decoded.</summary>
/// <typeparam name="T">What it is decoded to.</typeparam>
/// <param name="Number">Number of the row.</param>
/// <param name="Path">Path of the file; null where there is none.</param>
/// <param name="Bytes">The encoded bytes; null where there are none.</param>
/// <param name="Decoded">What the column held; null for a file or bytes.</param>
/// <param name="Problem">Why a decoded value could not be taken; null where it could.</param>
internal sealed record MediaRow<T>(long Number, string? Path, byte[]? Bytes, T? Decoded, Exception? Problem = null) where T : class;
