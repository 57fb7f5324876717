// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>What becomes of transparency when an image is read.</summary>
public enum AlphaTreatment
{
    /// <summary>The image is laid on white: three channels. What Transformers 5 does.</summary>
    White,

    /// <summary>Alpha is dropped, colours stay as they are stored: three channels. What Transformers 4 did.</summary>
    Drop,

    /// <summary>Alpha is kept: four channels, colours as they are stored.</summary>
    Keep,
}
