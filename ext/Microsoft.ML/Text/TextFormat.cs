// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>How the lines of a text file are written.</summary>
internal sealed record TextFormat(char[] Separators, char EscapeChar, char DecimalMarker, int InputSize)
{
    public bool HasHeader { get; init; }

    public bool AllowQuoting { get; init; }

    public bool AllowSparse { get; init; }

    public bool TrimWhitespace { get; init; }

    /// <summary>A quoted field may hold line ends; only where quoting is allowed.</summary>
    public bool ReadMultilines { get; init; }

    public bool MissingRealsAsNaNs { get; init; }

    public bool SeparatesAtSpace => Separators.Contains(' ');
}
