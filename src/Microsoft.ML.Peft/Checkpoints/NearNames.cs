// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Finds names like one that was not found, for error messages: small typing errors and other prefixes.</summary>
internal static class NearNames
{
    private const int LongestName = 256;
    private const int MostCandidates = 20_000;

    /// <summary>The nearest candidates, best first: equal last parts before small edit distances.</summary>
    /// <param name="name">The name that was not found.</param>
    /// <param name="candidates">The names that exist.</param>
    /// <param name="count">How many to return at most.</param>
    public static IReadOnlyList<string> Find(string name, IEnumerable<string> candidates, int count = 3)
    {
        string wanted = Cut(name).ToLowerInvariant();
        var found = new List<(double Cost, string Name)>();
        foreach (string candidate in candidates.Take(MostCandidates))
        {
            if (candidate.Length > LongestName)
                continue;
            double cost = Cost(wanted, candidate.ToLowerInvariant());
            if (cost < 1)
                found.Add((cost, candidate));
        }

        return found.OrderBy(f => f.Cost).ThenBy(f => f.Name, StringComparer.Ordinal)
            .Select(f => f.Name).Distinct(StringComparer.Ordinal).Take(count).ToArray();
    }

    /// <summary>A sentence that begins with a space and lists near names, or the candidates where they are few; may be empty.</summary>
    /// <param name="name">The name that was not found.</param>
    /// <param name="candidates">The names that exist.</param>
    public static string Hint(string name, IEnumerable<string> candidates)
    {
        string[] all = candidates.Take(MostCandidates).ToArray();
        IReadOnlyList<string> near = Find(name, all);
        if (near.Count > 0)
            return $" Near names: {string.Join(", ", near.Select(Quote))}.";
        if (all.Length == 0)
            return string.Empty;
        return all.Length <= 12
            ? $" There are: {string.Join(", ", all.Select(Quote))}."
            : $" There are {all.Length} names, such as {string.Join(", ", all.Take(4).Select(Quote))}.";
    }

    /// <summary>A name as an error message shows it: in quotes, control characters escaped, cut where very long.</summary>
    /// <param name="name">Any text from a file.</param>
    public static string Quote(string name)
    {
        var text = new StringBuilder("'");
        foreach (char c in name.Length > LongestName ? name.AsSpan(0, LongestName) : name)
            text = char.IsControl(c) || char.IsSurrogate(c) ? text.Append($"\\u{(int)c:x4}") : text.Append(c);
        return text.Append(name.Length > LongestName ? "...'" : "'").ToString();
    }

    /// <summary>Several names for a message, the first ones only where they are many.</summary>
    /// <param name="names">The names.</param>
    /// <param name="most">How many are listed.</param>
    public static string List(IEnumerable<string> names, int most = 20)
    {
        string[] all = names as string[] ?? names.ToArray();
        string listed = string.Join(", ", all.Take(most).Select(Quote));
        return all.Length > most ? $"{listed} and {all.Length - most} more" : listed;
    }

    // Below 1 is near. Dotted names count as near when they end alike ("bert.a.b" and "a.b").
    private static double Cost(string wanted, string candidate)
    {
        if (wanted == candidate)
            return 0;
        if (wanted.Length > 0 && candidate.Length > 0
            && (EndsWithPart(wanted, candidate) || EndsWithPart(candidate, wanted)))
        {
            return 0.1 + (Math.Abs(wanted.Length - candidate.Length) * 1e-4);
        }

        int allowed = Math.Max(1, Math.Min(wanted.Length, candidate.Length) / 4);
        if (Math.Abs(wanted.Length - candidate.Length) > allowed)
            return 1;
        int distance = Distance(wanted, candidate);
        return distance > allowed ? 1 : 0.2 + (0.7 * distance / (allowed + 1));
    }

    private static bool EndsWithPart(string text, string end) =>
        text.Length > end.Length && text.EndsWith(end, StringComparison.Ordinal)
        && text[text.Length - end.Length - 1] is '.' or '/' or '_' or ' ';

    private static int Distance(string a, string b)
    {
        Span<int> above = stackalloc int[b.Length + 1];
        Span<int> row = stackalloc int[b.Length + 1];
        for (int j = 0; j <= b.Length; j++)
            above[j] = j;
        for (int i = 1; i <= a.Length; i++)
        {
            row[0] = i;
            for (int j = 1; j <= b.Length; j++)
            {
                int change = above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
                row[j] = Math.Min(change, Math.Min(above[j], row[j - 1]) + 1);
            }

            row.CopyTo(above);
        }

        return above[b.Length];
    }

    private static string Cut(string name) => name.Length > LongestName ? name[..LongestName] : name;
}
