// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>How a text file is written: everything but its columns.</summary>
internal sealed record TextFormat
{
    internal const int MaxFields = int.MaxValue;

    [Flags]
    private enum Flags : uint
    {
        TrimWhitespace = 0x01,
        HasHeader = 0x02,
        AllowQuoting = 0x04,
        AllowSparse = 0x08,
        ReadMultilines = 0x10,
        MissingRealsAsNaNs = 0x20,
    }

    internal char[] Separators { get; private init; }
    internal char Escape { get; private init; }
    internal char DecimalMarker { get; private init; }
    internal int InputSize { get; private init; }
    internal long MaxRows { get; private init; }
    internal bool UseThreads { get; private init; }
    internal bool TrimWhitespace { get; private init; }
    internal bool HasHeader { get; private init; }
    internal bool AllowQuoting { get; private init; }
    internal bool AllowSparse { get; private init; }
    internal bool ReadMultilines { get; private init; }
    internal bool MissingRealsAsNaNs { get; private init; }

    internal static TextFormat Of(IExceptionContext context, TextLoader.Options options, bool hasHeader)
    {
        context.CheckUserArg(options.MaxRows is null or >= 0, nameof(options.MaxRows));
        context.Check(options.InputSize is null or >= 0, "inputSize");
        context.CheckUserArg(options.Separators is { Length: > 0 }, nameof(options.Separators), "Must specify a separator");
        foreach (char separator in options.Separators)
        {
            bool legal = separator == '\t' || separator >= ' ' && !char.IsAsciiDigit(separator) && separator != '"';
            context.CheckUserArg(legal, "Separator", $"Illegal separator: '{separator}'");
            context.CheckUserArg(separator != ':' || !options.AllowSparse, "Separator", "When the separator is colon, turn off allowSparse");
        }
        context.CheckUserArg(options.DecimalMarker is '.' or ',', nameof(options.DecimalMarker),
            $"Decimal marker cannot be the '{options.DecimalMarker}' character. It must be '.' or ','.");
        context.CheckUserArg(options.AllowQuoting || options.DecimalMarker != ',' || !options.Separators.Contains(','), nameof(options.AllowQuoting),
            "Quoting must be allowed if decimal marker and separator are the ',' character.");
        context.CheckUserArg(!options.Separators.Contains(options.EscapeChar), nameof(options.EscapeChar),
            $"EscapeChar '{options.EscapeChar}' can't be used both as EscapeChar and separator");
        return new TextFormat
        {
            Separators = [.. options.Separators.Distinct()],
            Escape = options.EscapeChar,
            DecimalMarker = options.DecimalMarker,
            InputSize = Math.Min(options.InputSize ?? 0, MaxFields - 1),
            MaxRows = options.MaxRows ?? long.MaxValue,
            UseThreads = options.UseThreads,
            TrimWhitespace = options.TrimWhitespace,
            HasHeader = hasHeader,
            AllowQuoting = options.AllowQuoting,
            AllowSparse = options.AllowSparse,
            ReadMultilines = options.AllowQuoting && options.ReadMultilines,
            MissingRealsAsNaNs = options.MissingRealsAsNaNs,
        };
    }

    internal static TextFormat Load(IExceptionContext context, ModelLoadContext ctx, bool hasEscape)
    {
        var reader = ctx.Reader;
        long maxRows = reader.ReadInt64();
        var flags = (Flags)reader.ReadUInt32();
        int inputSize = reader.ReadInt32();
        int count = reader.ReadInt32();
        context.CheckDecode(maxRows > 0 && inputSize >= 0 && count is > 0 and < 256, "Corrupt text loader");
        char[] separators = [.. Enumerable.Range(0, count).Select(_ => (char)reader.ReadInt16())];
        return new TextFormat
        {
            Separators = separators,
            Escape = hasEscape ? reader.ReadChar() : '"',
            DecimalMarker = hasEscape ? reader.ReadChar() : '.',
            InputSize = inputSize,
            MaxRows = maxRows,
            UseThreads = true,
            TrimWhitespace = flags.HasFlag(Flags.TrimWhitespace),
            HasHeader = flags.HasFlag(Flags.HasHeader),
            AllowQuoting = flags.HasFlag(Flags.AllowQuoting),
            AllowSparse = flags.HasFlag(Flags.AllowSparse),
            ReadMultilines = flags.HasFlag(Flags.ReadMultilines),
            MissingRealsAsNaNs = flags.HasFlag(Flags.MissingRealsAsNaNs),
        };
    }

    internal void Save(ModelSaveContext ctx)
    {
        // long: most rows; uint: flags; int: fields in a line, 0 for unknown; int: separators, short each; char: escape; char: decimal marker
        Flags Flag(bool set, Flags flag) => set ? flag : 0;
        ctx.Writer.Write(MaxRows);
        ctx.Writer.Write((uint)(Flag(TrimWhitespace, Flags.TrimWhitespace) | Flag(HasHeader, Flags.HasHeader) | Flag(AllowQuoting, Flags.AllowQuoting)
            | Flag(AllowSparse, Flags.AllowSparse) | Flag(ReadMultilines, Flags.ReadMultilines) | Flag(MissingRealsAsNaNs, Flags.MissingRealsAsNaNs)));
        ctx.Writer.Write(InputSize);
        ctx.Writer.Write(Separators.Length);
        foreach (char separator in Separators)
            ctx.Writer.Write((short)separator);
        ctx.Writer.Write(Escape);
        ctx.Writer.Write(DecimalMarker);
    }
}
