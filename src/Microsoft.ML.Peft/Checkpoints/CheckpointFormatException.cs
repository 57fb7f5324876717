// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// A checkpoint file is damaged, incomplete or of a kind that is not read. The message names the file, what was found
/// and what was expected.
/// </summary>
public sealed class CheckpointFormatException : FormatException
{
    /// <summary>Creates the exception with its message.</summary>
    /// <param name="message">File, what was found, what was expected.</param>
    public CheckpointFormatException(string message)
        : base(message)
    {
    }

    /// <summary>Creates the exception with its message and the error that led to it.</summary>
    /// <param name="message">File, what was found, what was expected.</param>
    /// <param name="innerException">The error underneath.</param>
    public CheckpointFormatException(string message, Exception? innerException)
        : base(message, innerException)
    {
    }
}
