// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Every method of the library has a page in docs/methods that names each of its options.</summary>
[TestClass]
public class MethodPagesTests
{
    [TestMethod]
    public void EveryOptionIsOnTheMethodsPage()
    {
        string[] pages = [.. Directory.GetFiles(Path.Combine(Root(), "docs", "methods"), "*.md").Where(p => Path.GetFileName(p) != "README.md").Select(File.ReadAllText)];
        string overview = File.ReadAllText(Path.Combine(Root(), "docs", "methods", "README.md"));
        var missing = new List<string>();
        foreach (string id in PeftMethods.Ids.Where(id => PeftMethods.TypeOf(id).Assembly == typeof(PeftMethods).Assembly))
        {
            string? page = pages.FirstOrDefault(p => p[..p.IndexOf('\n')].Contains($"`{id}`", StringComparison.Ordinal));
            if (page is null)
            {
                missing.Add($"a page whose title names `{id}`");
                continue;
            }
            if (!overview.Contains($"`{id}`", StringComparison.Ordinal)) missing.Add($"{id} in README.md");
            foreach ((string option, JsonNode? _) in JsonNode.Parse(PeftMethods.ToJson(PeftMethods.Create(id)))!.AsObject())
                if (option != "method" && !page.Contains($"`{option}`", StringComparison.Ordinal)) missing.Add($"{id}: `{option}`");
        }
        Assert.AreEqual("", string.Join("\n", missing));
    }

    /// <summary>A method's file has at most 250 lines, any file of the library at most 500.</summary>
    [TestMethod]
    public void FilesAreShort()
    {
        string source = Path.Combine(Root(), "src", "Microsoft.ML.Peft");
        var lengths = Directory.GetFiles(source, "*.cs", SearchOption.AllDirectories).Where(p => !p.Contains($"{Path.DirectorySeparatorChar}obj{Path.DirectorySeparatorChar}", StringComparison.Ordinal))
            .ToDictionary(p => Path.GetRelativePath(source, p).Replace('\\', '/'), p => File.ReadLines(p).Count());
        string[] families = [.. lengths.Keys.Where(p => p.StartsWith("Methods/", StringComparison.Ordinal) && p.Count(c => c == '/') == 2)];
        foreach (string file in families.OrderByDescending(f => lengths[f])) Console.WriteLine($"{lengths[file],5} {file}");
        Console.WriteLine($"{families.Sum(f => lengths[f])} lines in {families.Length} files for {PeftMethods.Ids.Count} methods");
        Assert.AreEqual("", string.Join(", ", families.Where(f => lengths[f] > 250)), "longer than 250 lines");
        Assert.AreEqual("", string.Join(", ", lengths.Keys.Where(f => lengths[f] > 500)), "longer than 500 lines");
    }

    /// <summary>Every method has a row in the matrix, and says its count in the paper's letters.</summary>
    [TestMethod]
    public void EveryMethodHasItsRowAndFormula()
    {
        HashSet<string> rows = [.. MatrixRows.All.Values.Select(make => make().Id)];
        string[] own = [.. PeftMethods.Ids.Where(id => PeftMethods.TypeOf(id).Assembly == typeof(PeftMethods).Assembly)];
        Assert.AreEqual("", string.Join(", ", own.Where(id => !rows.Contains(id))), "without a row in MatrixRows");
        Assert.AreEqual("", string.Join(", ", own.Where(id => PeftMethods.Create(id).Formula.Length == 0)), "without a Formula");
    }

    private static string Root()
    {
        DirectoryInfo? at = new(AppContext.BaseDirectory);
        while (at is not null && !File.Exists(Path.Combine(at.FullName, "Peft.MLNet.sln"))) at = at.Parent;
        return at?.FullName ?? throw new DirectoryNotFoundException("No Peft.MLNet.sln above the tests.");
    }
}
