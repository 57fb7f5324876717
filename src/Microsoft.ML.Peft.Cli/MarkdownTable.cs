// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;

namespace Microsoft.ML.Peft.Cli;

/// <summary>Tables that read well as text and as Markdown.</summary>
internal static class MarkdownTable
{
    public static string Make(string[] header, IEnumerable<string[]> rows)
    {
        string[][] cells = [header, .. rows.Select(row => row.Select(cell => cell.Replace("|", "\\|", StringComparison.Ordinal).ReplaceLineEndings(" ")).ToArray())];
        int[] widths = [.. Enumerable.Range(0, header.Length).Select(i => cells.Max(row => row[i].Length))];
        var text = new StringBuilder();
        void Line(IEnumerable<string> row) => text.Append("| ").AppendJoin(" | ", row.Select((cell, i) => cell.PadRight(widths[i]))).Append(" |\n");
        Line(header);
        text.Append('|').AppendJoin("|", widths.Select(w => new string('-', w + 2))).Append("|\n");
        foreach (string[] row in cells.Skip(1)) Line(row);
        return text.ToString();
    }
}
