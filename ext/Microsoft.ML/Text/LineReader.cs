// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Reads the lines of text files that hold rows: without comments, blank lines and (where told so) the header.</summary>
internal static class LineReader
{
    public readonly record struct Line(string Text, long Number);

    /// <summary>The lines of all streams, numbered from 1 in each.</summary>
    public static IEnumerable<Line> Read(IMultiStreamSource source, TextFormat format, bool skipHeader, long limit)
    {
        long rows = 0;
        for (int i = 0; i < source.Count && rows < limit; i++)
        {
            using TextReader reader = source.OpenTextReader(i);
            bool first = true;
            long number = 0;
            while (rows < limit && ReadLine(reader, format, number, first) is { } text)
            {
                number++;
                if (text.Length == 0 || text.StartsWith("//", StringComparison.Ordinal) || (first && text[0] == '#'))
                    continue;
                if (!first || !skipHeader)
                {
                    rows++;
                    yield return new Line(text, number);
                }

                first = false;
            }
        }
    }

    private static string ReadLine(TextReader reader, TextFormat format, long number, bool first)
    {
        string line = reader.ReadLine();
        bool comment = string.IsNullOrEmpty(line) || line.StartsWith("//", StringComparison.Ordinal) || (first && line[0] == '#');
        if (!format.ReadMultilines || comment || !EndsInsideQuotes(line, format, inside: false))
            return line;
        var text = new StringBuilder(line);
        do
        {
            line = reader.ReadLine();
            if (line == null)
            {
                string message = $"A quoted field opened on line {number} was never closed, and we've read to the last line in the file without finding the closing quote";
                throw Contracts.ExceptDecode(null, new EndOfStreamException(message), "Stream reading encountered exception");
            }

            text.Append('\n').Append(line);
        }
        while (EndsInsideQuotes(line, format, inside: true));
        return text.ToString();
    }

    /// <summary>Whether the last field of a line goes on in the next line; a line with wrong quotes ends.</summary>
    private static bool EndsInsideQuotes(string line, TextFormat format, bool inside)
    {
        int at = 0;
        while (true)
        {
            if (!inside)
            {
                while (at < line.Length && line[at] == ' ' && !format.SeparatesAtSpace)
                    at++;
                if (at >= line.Length)
                    return false;
                inside = line[at] == '"';
                if (inside)
                    at++;
            }

            if (inside)
            {
                if (!FindClosingQuote(line, format.EscapeChar, ref at))
                    return true;
                while (at < line.Length && line[at] == ' ' && !format.SeparatesAtSpace)
                    at++;
                if (at < line.Length && !format.Separators.Contains(line[at]))
                    return false;
                inside = false;
            }

            while (at < line.Length && !format.Separators.Contains(line[at]))
                at++;
            at++;
        }
    }

    /// <summary>Moves behind the closing quote; false where the line has none.</summary>
    private static bool FindClosingQuote(string line, char escape, ref int at)
    {
        for (; at < line.Length; at++)
        {
            if (line[at] == escape && (escape != '"' || (at + 1 < line.Length && line[at + 1] == '"')))
            {
                at++;
            }
            else if (line[at] == '"')
            {
                at++;
                return true;
            }
        }

        return false;
    }
}
