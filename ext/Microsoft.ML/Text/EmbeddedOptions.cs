// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>
/// A text file may say at its top, in comments that begin with "#@", how it is to be read: the saver writes such
/// a "TextLoader{header+ sep=tab col=Name:Type:Fields ...}". It counts where the caller says nothing.
/// </summary>
internal static class EmbeddedOptions
{
    /// <summary>The codes of item types, by kind.</summary>
    internal static readonly Dictionary<DataKind, string> Codes = new()
    {
        [DataKind.SByte] = "I1",
        [DataKind.Byte] = "U1",
        [DataKind.Int16] = "I2",
        [DataKind.UInt16] = "U2",
        [DataKind.Int32] = "I4",
        [DataKind.UInt32] = "U4",
        [DataKind.Int64] = "I8",
        [DataKind.UInt64] = "U8",
        [DataKind.Single] = "R4",
        [DataKind.Double] = "R8",
        [DataKind.String] = "TX",
        [DataKind.Boolean] = "BL",
        [DataKind.TimeSpan] = "TS",
        [DataKind.DateTime] = "DT",
        [DataKind.DateTimeOffset] = "DZ",
    };

    /// <summary>The names of separators.</summary>
    internal static readonly Dictionary<string, char> Separators = new()
    {
        ["space"] = ' ',
        ["tab"] = '\t',
        ["comma"] = ',',
        ["colon"] = ':',
        ["semicolon"] = ';',
        ["bar"] = '|',
    };

    /// <summary>The options with columns: the caller's, the file's, or a label and features.</summary>
    internal static TextLoader.Options Resolve(IHost host, TextLoader.Options options, IMultiStreamSource sample)
    {
        if (options.Columns is { Length: > 0 })
            return options;
        string embedded = Read(string.IsNullOrWhiteSpace(options.HeaderFile) ? sample : new MultiFileSource(options.HeaderFile));
        if (!string.IsNullOrWhiteSpace(embedded))
        {
            using var channel = host.Start("Parsing options from file");
            if (IsDefault(options))
                return Parse(host, embedded, options);
            channel.Warning(MessageSensitivity.Unknown, "Arguments cannot be embedded in the file and in the command line. The embedded arguments will be ignored");
        }
        var copy = Copy(options);
        copy.Columns = [new("Label", DataKind.Single, 0), new("Features", DataKind.Single, [new TextLoader.Range(1, null)])];
        return copy;
    }

    private static string Read(IMultiStreamSource source)
    {
        if (source.Count == 0)
            return null;
        using var reader = source.OpenTextReader(0);
        var parts = new List<string>();
        for (string line = reader.ReadLine(); line != null && (line.Length == 0 || line[0] == '#' || line.StartsWith("//", StringComparison.Ordinal)); line = reader.ReadLine())
            if (line.Length > 2 && line.StartsWith("#@", StringComparison.Ordinal))
                parts.Add(line[2..].Trim());
        return string.Join(' ', parts);
    }

    private static bool IsDefault(TextLoader.Options options)
        => options is { AllowQuoting: false, AllowSparse: false, InputSize: null, Separators: ['\t'], DecimalMarker: '.', TrimWhitespace: false, HasHeader: false, ReadMultilines: false, EscapeChar: '"', MissingRealsAsNaNs: false };

    private static TextLoader.Options Copy(TextLoader.Options options) => new()
    {
        AllowQuoting = options.AllowQuoting,
        AllowSparse = options.AllowSparse,
        InputSize = options.InputSize,
        Separators = options.Separators,
        DecimalMarker = options.DecimalMarker,
        Columns = options.Columns,
        TrimWhitespace = options.TrimWhitespace,
        HasHeader = options.HasHeader,
        UseThreads = options.UseThreads,
        ReadMultilines = options.ReadMultilines,
        HeaderFile = options.HeaderFile,
        MaxRows = options.MaxRows,
        EscapeChar = options.EscapeChar,
        MissingRealsAsNaNs = options.MissingRealsAsNaNs,
    };

    private static TextLoader.Options Parse(IHost host, string text, TextLoader.Options given)
    {
        var options = Copy(given);
        var columns = new List<TextLoader.Column>();
        int open = text.IndexOf('{'), close = text.LastIndexOf('}');
        bool valid = open > 0 && close > open && text[..open].Trim() is "TextLoader" or "Text";
        foreach (string word in valid ? text[(open + 1)..close].Split((char[])null, StringSplitOptions.RemoveEmptyEntries) : [])
        {
            string[] pair = word.Split('=', 2);
            switch (pair[0].TrimEnd('+', '-').ToLowerInvariant())
            {
                case "header" or "hasheader":
                    options.HasHeader = !word.EndsWith('-');
                    break;
                case "quote" or "allowquoting":
                    options.AllowQuoting = !word.EndsWith('-');
                    break;
                case "sparse" or "allowsparse":
                    options.AllowSparse = !word.EndsWith('-');
                    break;
                case "trim" or "trimwhitespace":
                    options.TrimWhitespace = !word.EndsWith('-');
                    break;
                case "sep" or "separator" when pair.Length == 2:
                    options.Separators = [.. pair[1] == "," ? [','] : pair[1].Split(',').Select(name => Separators.TryGetValue(name, out char separator) ? separator : name[0])];
                    break;
                case "size" or "inputsize" when pair.Length == 2 && int.TryParse(pair[1], out int size):
                    options.InputSize = size;
                    break;
                case "col" or "column" when pair.Length == 2 && ParseColumn(pair[1]) is { } column:
                    columns.Add(column);
                    break;
                default:
                    valid = false;
                    break;
            }
        }
        if (!valid || columns.Count == 0)
            throw host.Except("TextLoader options embedded in the file are invalid");
        options.Columns = [.. columns];
        return options;
    }

    // Name:Fields, Name:Type:Fields or Name:Type[Count]:Fields
    private static TextLoader.Column ParseColumn(string text)
    {
        string[] parts = text.Split(':');
        if (parts.Length is < 2 or > 3 || string.IsNullOrWhiteSpace(parts[0]))
            return null;
        var column = new TextLoader.Column { Name = parts[0] };
        if (parts.Length == 3 && parts[1].Length > 0)
        {
            int bracket = parts[1].IndexOf('[');
            string code = bracket < 0 ? parts[1] : parts[1][..bracket];
            if (Codes.FirstOrDefault(pair => pair.Value.Equals(code, StringComparison.OrdinalIgnoreCase)) is not { Value: not null } kind)
                return null;
            column.DataKind = kind.Key;
            if (bracket >= 0)
                column.KeyCount = ulong.TryParse(parts[1][(bracket + 1)..].TrimEnd(']'), out ulong count) ? new KeyCount(count) : new KeyCount();
        }
        column.Source = Array.ConvertAll(parts[^1].Split(','), ParseRange);
        return column.Source.Contains(null) ? null : column;
    }

    // 3, 3-7, 3-* (to the end, all lines alike), 3-** (to the end, each line its own), ~ for - takes what no other column takes
    private static TextLoader.Range ParseRange(string text)
    {
        int dash = text.IndexOfAny(['-', '~']);
        if (dash < 0)
            return int.TryParse(text, out int only) && only >= 0 ? new TextLoader.Range(only) : null;
        bool other = text[dash] == '~';
        int min = 0;
        if (dash == 0 ? !other : !int.TryParse(text[..dash], out min))
            return null;
        var range = new TextLoader.Range { Min = min, AllOther = other, ForceVector = true };
        switch (text[(dash + 1)..])
        {
            case "" or "*":
                range.AutoEnd = true;
                return range;
            case "**":
                range.VariableEnd = true;
                return range;
            case var end when int.TryParse(end, out int max):
                range.Max = max;
                return range;
            default:
                return null;
        }
    }
}
