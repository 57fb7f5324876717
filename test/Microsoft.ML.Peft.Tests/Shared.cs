// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Tests;

/// <summary>Material outside the repository: reference values, weights, data. A test that asks for it is skipped where it is absent.</summary>
internal static class Shared
{
    private static readonly string? Found = Find();

    /// <summary>Whether the material is there.</summary>
    public static bool Exists => Found is not null;

    /// <summary>Its folder: <c>PEFT_SHARED</c>, else <c>shared</c> beside the checkout.</summary>
    public static string Root
    {
        get
        {
            if (Found is null)
                Assert.Inconclusive("No shared folder beside the checkout; PEFT_SHARED can name one.");
            return Found!;
        }
    }

    /// <summary>The folder of fixture areas: <c>PEFT_FIXTURES</c>, else <c>fixtures</c> in <see cref="Root"/>.</summary>
    public static string Fixtures => Environment.GetEnvironmentVariable("PEFT_FIXTURES") is { Length: > 0 } folder
        ? folder : Path.Combine(Root, "fixtures");

    /// <summary>The folders of an area's cases (those with a case.json), in ordinal order; none where there is no such area.</summary>
    public static IReadOnlyList<string> Cases(string area)
    {
        string folder = Path.Combine(Fixtures, area);
        if (!Directory.Exists(folder))
            return [];
        string[] cases = Directory.GetDirectories(folder).Where(d => File.Exists(Path.Combine(d, "case.json"))).ToArray();
        Array.Sort(cases, StringComparer.Ordinal);
        return cases;
    }

    private static string? Find()
    {
        if (Environment.GetEnvironmentVariable("PEFT_SHARED") is { Length: > 0 } named)
            return Directory.Exists(named) ? named : null;
        for (DirectoryInfo? at = new(AppContext.BaseDirectory); at is not null; at = at.Parent)
        {
            string beside = Path.Combine(at.FullName, "shared");
            if (Directory.Exists(Path.Combine(beside, "fixtures")))
                return beside;
        }

        return null;
    }
}
