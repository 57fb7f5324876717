// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Immutable;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>What the header of a safetensors file says of one tensor; checked against the file.</summary>
public sealed class SafetensorsInfo
{
    internal SafetensorsInfo(string name, SafetensorsDtype dtype, ImmutableArray<long> shape, long start, long length)
    {
        Name = name;
        Dtype = dtype;
        Shape = shape;
        Start = start;
        Length = length;
    }

    /// <summary>The tensor's name in the file.</summary>
    public string Name { get; }

    /// <summary>Element type.</summary>
    public SafetensorsDtype Dtype { get; }

    /// <summary>Sizes of all dimensions; empty for a single number.</summary>
    public ImmutableArray<long> Shape { get; }

    /// <summary>First byte, counted from the end of the header.</summary>
    public long Start { get; }

    /// <summary>Length in bytes.</summary>
    public long Length { get; }

    /// <summary>Number of elements.</summary>
    public long Elements => Length * 8 / Dtype.Bits();

    /// <inheritdoc/>
    public override string ToString() => $"{Name} {Dtype} {ShapeText(Shape.AsSpan())}";

    /// <summary>A shape as messages show it: <c>[24, 16]</c>.</summary>
    internal static string ShapeText(ReadOnlySpan<long> shape)
    {
        if (shape.Length == 0)
            return "[]";
        var text = new System.Text.StringBuilder("[");
        foreach (long size in shape)
            text.Append(size).Append(", ");
        text.Length -= 2;
        return text.Append(']').ToString();
    }
}
