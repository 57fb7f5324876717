// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Bench;

/// <summary>Tables of short texts, drawn from a list of words by a seed.</summary>
internal static class RowTable
{
    /// <summary>The words of some texts, each once: letters only, so that a table needs no quoting.</summary>
    public static string[] Words(IEnumerable<string> texts) =>
        [.. texts.SelectMany(t => t.Split(' ')).Where(w => w.Length > 1 && w.All(char.IsAsciiLetterLower)).Distinct().Order(StringComparer.Ordinal)];

    /// <summary>Writes rows of three to seven words; the label is whether the first word lies in the first half of the list.</summary>
    public static void Write(string path, string[] words, int rows)
    {
        var random = new Random(1);
        using var writer = new StreamWriter(path);
        writer.WriteLine("Text\tLabel");
        for (int row = 0; row < rows; row++)
        {
            int first = random.Next(words.Length), more = random.Next(2, 7);
            writer.Write(words[first]);
            for (int i = 0; i < more; i++)
            {
                writer.Write(' ');
                writer.Write(words[random.Next(words.Length)]);
            }
            writer.Write('\t');
            writer.WriteLine(first < words.Length / 2 ? "a" : "b");
        }
    }
}
