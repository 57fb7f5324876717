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

    private static string Root()
    {
        DirectoryInfo? at = new(AppContext.BaseDirectory);
        while (at is not null && !File.Exists(Path.Combine(at.FullName, "Peft.MLNet.sln"))) at = at.Parent;
        return at?.FullName ?? throw new DirectoryNotFoundException("No Peft.MLNet.sln above the tests.");
    }
}
