// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>An image cannot be read: not an image, damaged, incomplete, empty or too large. The message names its source.</summary>
public sealed class ImageFormatException : FormatException
{
    /// <summary>Creates the exception.</summary>
    /// <param name="source">Where the image came from: a path, a row and column.</param>
    /// <param name="problem">What was found, and what is expected.</param>
    /// <param name="innerException">The error underneath.</param>
    public ImageFormatException(string source, string problem, Exception? innerException = null)
        : base($"{source}: {problem}", innerException) => (ImageSource, Problem) = (source, problem);

    /// <summary>Where the image came from: a path, a row and column.</summary>
    public string ImageSource { get; }

    /// <summary>What was found, and what is expected.</summary>
    public string Problem { get; }

    /// <summary>The same, with the row of the data in which the image stands.</summary>
    /// <param name="row">The row, from 0.</param>
    public ImageFormatException InRow(long row) => new($"row {row}: {ImageSource}", Problem, InnerException ?? this);
}
