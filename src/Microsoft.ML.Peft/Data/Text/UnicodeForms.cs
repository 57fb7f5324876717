// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Concurrent;
using System.Text;

namespace Microsoft.ML.Peft.Data;

/// <summary>Unicode normalisation that keeps the alignment.</summary>
internal static class UnicodeForms
{
    private static readonly ConcurrentDictionary<(int, bool), int[]> Decompositions = new();
    private static int known;

    /// <summary>Normalises to NFC, NFD, NFKC or NFKD.</summary>
    public static AlignedText Apply(AlignedText source, NormalizationForm form)
    {
        if (IsInForm(source.Span, form))
            return source;
        var rewriter = new Rewriter(source);
        var span = source.Span;
        int from = 0;
        while (from < span.Length)
        {
            int to = from + 1;
            while (to < span.Length && span[to] >= 0x300)
                to++;
            Run(ref rewriter, span[from..to], form);
            from = to;
        }
        return rewriter.Target;
    }

    private static bool IsInForm(ReadOnlySpan<int> text, NormalizationForm form)
    {
        // Everything below these is in the form already.
        int safe = form switch { NormalizationForm.FormC => 0x300, NormalizationForm.FormD => 0xC0, _ => 0xA0 };
        bool all = true;
        foreach (int c in text)
            all &= c < safe;
        if (all)
            return true;
        try
        {
            return AlignedText.ToString(text).IsNormalized(form);
        }
        catch (ArgumentException)
        {
            return false;
        }
    }

    // Characters below U+0300 never join what stands before them, so a run from one of those to the next is closed.
    private static void Run(ref Rewriter rewriter, ReadOnlySpan<int> run, NormalizationForm form)
    {
        if (run.Length == 1 && run[0] < 0xA0)
        {
            rewriter.Put(run[0], 0);
            return;
        }
        bool compatible = form is NormalizationForm.FormKC or NormalizationForm.FormKD;
        var parts = Decompose(run, compatible);
        if (form is NormalizationForm.FormC or NormalizationForm.FormKC)
            Compose(ref rewriter, parts, AlignedText.CodePoints(Normal(run, form)));
        else
        {
            foreach (var (c, change) in parts)
                rewriter.Put(c, change);
        }
    }

    // The parts of all characters in canonical order; the first part of a character replaces it, the others are inserted.
    private static List<(int C, int Change)> Decompose(ReadOnlySpan<int> run, bool compatible)
    {
        var parts = new List<(int C, int Change)>(run.Length * 2);
        foreach (int c in run)
        {
            int[] parted = Parts(c, compatible);
            for (int i = 0; i < parted.Length; i++)
                parts.Add((parted[i], i == 0 ? 0 : 1));
        }
        int[] ordered = AlignedText.CodePoints(Normal(run, compatible ? NormalizationForm.FormKD : NormalizationForm.FormD));
        if (ordered.Length != parts.Count)
            return parts;
        for (int i = 0; i < ordered.Length; i++)
        {
            int c = ordered[i];
            int at = parts[i].C == c ? i : parts.FindIndex(i, part => part.C == c);
            if (at <= i)
                continue;
            var moved = parts[at];
            parts.RemoveAt(at);
            parts.Insert(i, moved);
        }
        return parts;
    }

    // A composed character swallows its parts: it replaces one character of the source for each part that replaced one.
    private static void Compose(ref Rewriter rewriter, List<(int C, int Change)> parts, int[] composed)
    {
        var used = new bool[parts.Count];
        int head = 0;
        foreach (int c in composed)
        {
            int change = 0;
            bool first = true;
            foreach (int part in Parts(c, compatible: false))
            {
                int at = Unused(parts, used, head, part);
                if (at < 0)
                    continue;
                change = first ? parts[at].Change : change + parts[at].Change - 1;
                first = false;
                used[at] = true;
                while (head < used.Length && used[head])
                    head++;
            }
            rewriter.Put(c, change);
        }
    }

    // What belongs together stands close together.
    private static int Unused(List<(int C, int Change)> parts, bool[] used, int head, int c)
    {
        const int Reach = 256;
        for (int at = head; at < parts.Count && at < head + Reach; at++)
        {
            if (!used[at] && parts[at].C == c)
                return at;
        }
        return -1;
    }

    private static int[] Parts(int c, bool compatible)
    {
        if (Decompositions.TryGetValue((c, compatible), out int[]? parts))
            return parts;
        parts = Decomposition(c, compatible);
        if (Interlocked.Increment(ref known) < 20_000)
            Decompositions[(c, compatible)] = parts;
        return parts;
    }

    private static int[] Decomposition(int c, bool compatible) =>
        AlignedText.CodePoints(Normal([c], compatible ? NormalizationForm.FormKD : NormalizationForm.FormD));

    private static string Normal(ReadOnlySpan<int> run, NormalizationForm form)
    {
        string text = AlignedText.ToString(run);
        try
        {
            return text.Normalize(form);
        }
        catch (ArgumentException)
        {
            // Noncharacters (U+FFFE, U+FFFF) are refused by the platform: they have no other form.
            var built = new StringBuilder();
            foreach (int c in run)
                built.Append(c is 0xFFFE or 0xFFFF ? ((char)c).ToString() : char.ConvertFromUtf32(c).Normalize(form));
            return built.ToString();
        }
    }
}
