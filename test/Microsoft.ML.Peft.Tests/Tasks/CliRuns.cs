// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.IO.Compression;
using System.Text.Json.Nodes;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Runs of the command line as processes, in a folder that is gone afterwards.</summary>
public abstract class CliRuns
{
    private protected readonly string Folder = Directory.CreateTempSubdirectory("cli").FullName;

    public TestContext TestContext { get; set; } = null!;

    [TestCleanup]
    public void Cleanup() => Directory.Delete(Folder, recursive: true);

    private protected string At(string name) => Path.Combine(Folder, name);

    private protected (int Code, string Output, string Error) Peft(string[] arguments, string? input = null) =>
        Child.Run("Microsoft.ML.Peft.Cli", "peft", arguments, input, Folder, oneThread: true);

    private protected void Succeeds(string[] arguments)
    {
        (int code, string output, string error) = Peft(arguments);
        Assert.AreEqual(0, code, output + error);
    }

    // One line on standard error that says it all.
    private protected void Fails(int code, string[] arguments, params string[] parts)
    {
        (int found, string output, string error) = Peft(arguments);
        Assert.AreEqual(code, found, $"{string.Join(' ', arguments)}\n{output}{error}");
        string[] lines = error.TrimEnd('\n').Split('\n');
        if (code == 1) StringAssert.StartsWith(lines[^1], "peft: ");
        // The plan of a training run may stand before it.
        if (code == 1 && !lines.Any(l => l.StartsWith("method ", StringComparison.Ordinal))) Assert.HasCount(1, lines, error);
        foreach (string part in parts) StringAssert.Contains(error, part);
        Assert.DoesNotContain("   at ", error);
    }

    private protected JsonObject Json(string name) => JsonNode.Parse(File.ReadAllText(At(name)))!.AsObject();

    // Tables wrap long cells where there is no terminal to be wide.
    private protected static string Unwrapped(string text) => string.Join(' ', text.Split([' ', '\n', '│', '┃'], StringSplitOptions.RemoveEmptyEntries));

    private protected static byte[] Entry(string zip, string name)
    {
        using ZipArchive archive = ZipFile.OpenRead(zip);
        ZipArchiveEntry entry = archive.Entries.Single(e => e.FullName.EndsWith(name, StringComparison.Ordinal));
        using var memory = new MemoryStream();
        using (Stream stream = entry.Open()) stream.CopyTo(memory);
        return memory.ToArray();
    }
}
