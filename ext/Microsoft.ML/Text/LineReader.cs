// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Reads the rows' lines of text files: without comments, empty lines and headers, quoted line breaks joined.</summary>
internal static class LineReader
{
    internal readonly record struct Line(string Path, long Number, string Text);

    /// <summary>The first lines, the header among them, to learn from; two at least, where there are as many.</summary>
    internal static string[] FirstLines(IMultiStreamSource source, TextFormat format, int count)
    {
        try
        {
            return [.. Read(source, format, skipHeader: false).Select(line => line.Text).Take(Math.Max(2, count))];
        }
        catch (EndOfStreamException ex)
        {
            throw Contracts.ExceptDecode(null, ex, "Stream reading encountered exception");
        }
    }

    internal static IEnumerable<Line> Read(IMultiStreamSource source, TextFormat format, bool skipHeader)
    {
        for (int file = 0; file < source.Count; file++)
        {
            string path = source.GetPathOrNull(file);
            using var reader = source.OpenTextReader(file);
            bool atTop = true;
            string text;
            for (long number = 1; (text = Next(reader, format, number, atTop)) != null; number++)
            {
                if (text.Length == 0 || text.StartsWith("//", StringComparison.Ordinal) || atTop && text[0] == '#')
                    continue;
                bool isHeader = atTop && skipHeader;
                atTop = false;
                if (!isHeader)
                    yield return new Line(path, number, text);
            }
        }
    }

    private static string Next(TextReader reader, TextFormat format, long number, bool atTop)
    {
        string line = reader.ReadLine();
        if (!format.ReadMultilines || string.IsNullOrEmpty(line) || line.StartsWith("//", StringComparison.Ordinal) || atTop && line[0] == '#')
            return line;
        string whole = line;
        for (bool open = EndsInsideQuotes(line, format, false); open; open = EndsInsideQuotes(line, format, true))
        {
            line = reader.ReadLine()
                ?? throw new EndOfStreamException($"A quoted field opened on line {number - 1} was never closed, and we've read to the last line in the file without finding the closing quote");
            whole += "\n" + line;
        }
        return whole;
    }

    private static bool EndsInsideQuotes(string line, TextFormat format, bool startsInside)
    {
        bool separatesBySpace = format.Separators.Contains(' ');
        bool inside = startsInside;
        int at = 0;
        while (true)
        {
            if (!inside)
            {
                while (!separatesBySpace && at < line.Length && line[at] == ' ')
                    at++;
                if (at >= line.Length)
                    return false;
                inside = line[at] == '"';
                if (inside)
                    at++;
            }
            if (inside)
            {
                if (!SkipQuoted(line, format, ref at))
                    return true;
                // With an escape character of one's own, the real reader takes a closed quote for a mistake, too.
                if (format.Escape != '"')
                    return false;
                inside = false;
                while (!separatesBySpace && at < line.Length && line[at] == ' ')
                    at++;
                // Text behind a closing quote: a mistake that the parser reports; the line ends here.
                if (at < line.Length && !format.Separators.Contains(line[at]))
                    return false;
            }
            else
                while (at < line.Length && !format.Separators.Contains(line[at]))
                    at++;
            if (at >= line.Length)
                return false;
            at++;
        }
    }

    private static bool SkipQuoted(string line, TextFormat format, ref int at)
    {
        for (; at < line.Length; at++)
        {
            if (line[at] == format.Escape && format.Escape != '"')
                at++;
            else if (line[at] == '"')
            {
                at++;
                if (format.Escape != '"' || at >= line.Length || line[at] != '"')
                    return true;
            }
        }
        return false;
    }
}
