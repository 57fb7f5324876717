// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Immutable;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>One tensor of a checkpoint folder, as a backbone sees it: int8 rows with scales are one float32 tensor.</summary>
public sealed class CheckpointTensor
{
    internal CheckpointTensor(string name, SafetensorsFile file, SafetensorsInfo stored)
    {
        Name = name;
        File = file;
        Stored = stored;
    }

    /// <summary>Its name, old spellings replaced (<c>LayerNorm.gamma</c> is <c>LayerNorm.weight</c>).</summary>
    public string Name { get; }

    /// <summary>The file that holds it.</summary>
    public SafetensorsFile File { get; }

    /// <summary>What that file says of it, its name there included.</summary>
    public SafetensorsInfo Stored { get; }

    /// <summary>Sizes of all dimensions.</summary>
    public ImmutableArray<long> Shape => Stored.Shape;

    /// <summary>Element type of the values: float32 for int8 rows with scales, else as stored.</summary>
    public SafetensorsDtype Dtype => IsInt8PerRow ? SafetensorsDtype.F32 : Stored.Dtype;

    /// <summary>Whether it is stored as int8 [rows, ...] with one float32 scale a row: value = integer x scale.</summary>
    public bool IsInt8PerRow => Scale is not null;

    /// <summary>The tensor <c>NAME.scale</c> [rows] of int8 storage, and its file.</summary>
    internal SafetensorsInfo? Scale { get; private set; }

    internal SafetensorsFile? ScaleFile { get; private set; }

    /// <inheritdoc/>
    public override string ToString() => $"{Name} {Dtype} {SafetensorsInfo.ShapeText(Shape.AsSpan())}";

    internal void SetScale(CheckpointTensor scale)
    {
        Scale = scale.Stored;
        ScaleFile = scale.File;
    }
}
