// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>In which order the four bytes of a pixel stand.</summary>
public enum MLPixelFormat
{
    Unknown,
    Bgra32,
    Rgba32,
}
