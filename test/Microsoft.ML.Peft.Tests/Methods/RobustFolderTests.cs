// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// Old, future, damaged and renamed adapter folders: read without strictness they do what Python PEFT does; read strictly,
/// whatever it leaves aside is an error that names the tensors. One thing is better here: biases under their old names count.
/// </summary>
[TestClass]
[TestCategory("Fixtures")]
public class RobustFolderTests
{
    private readonly Deviations _deviations = new();
    private readonly List<string> _lines = [], _later = [];

    [TestMethod]
    public void FoldersAreReadOrRefusedAsTheyShould()
    {
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["folders"] is not JsonObject folders) continue;
            foreach ((string name, JsonNode? expected) in folders)
            {
                using var scope = NewDisposeScope();
                Check(fixture, name, expected!.AsObject());
                count++;
            }
        }
        Console.WriteLine($"{count} folders; later: {string.Join(", ", _later)}\n" + string.Join("\n", _lines));
        _deviations.Report();
    }

    private void Check(Fixture fixture, string name, JsonObject expected)
    {
        string baseFolder = Path.Combine(Path.GetDirectoryName(fixture.Folder)!, (string)expected["base"]!);
        string modelType = (string)JsonNode.Parse(File.ReadAllText(Path.Combine(baseFolder, "config.json")))!["model_type"]!;
        string folder = Path.Combine([fixture.Folder, name, .. (string?)expected["arguments"]?["subfolder"] is { } sub ? new[] { sub } : []]);
        // What the reference refuses and a reader should load anyway, the case says in words.
        string? twin = TwinOf(expected);
        bool loads = twin is not null || ((string)expected["outcome"]!).StartsWith("loads", StringComparison.Ordinal);
        if (!BackboneLoader.ModelTypes.Contains(modelType) || (loads && LaterMethod(folder) is not null))
        {
            _later.Add($"{name} ({LaterMethod(folder) ?? modelType})");
            return;
        }
        var lenient = new AdapterLoadOptions { Strict = false, IgnoreMismatchedShapes = (bool?)expected["arguments"]?["ignore_mismatched_sizes"] ?? false };
        string? strictError = Error(baseFolder, folder, new AdapterLoadOptions());
        if (!loads)
        {
            string? error = Error(baseFolder, folder, lenient);
            // Types that are gone there, and that the case leaves to a reader.
            if (((string)expected["meaning"]!).Contains("a reader may", StringComparison.Ordinal) && error is null && strictError is null)
            {
                _lines.Add($"{name}: read, as a reader may");
                return;
            }
            if (error is null || strictError is null) _deviations.Fail($"{name} should be refused: {expected["meaning"]}");
            else _lines.Add($"{name}: {error.Replace(fixture.Folder, "...", StringComparison.Ordinal)}");
            return;
        }
        using var tiny = new TinyBase(baseFolder);
        using AdapterFolder file = AdapterFolder.Open(folder);
        using PeftAdaptation adaptation = file.Attach(tiny.Backbone, tiny.Head, lenient);
        bool asideIsStrictError = file.Warnings.Any(w => w.StartsWith("Missing", StringComparison.Ordinal) || w.StartsWith("Unexpected", StringComparison.Ordinal) || w.StartsWith("Tensors of", StringComparison.Ordinal));
        if (asideIsStrictError != (strictError is not null)) _deviations.Fail($"{name}: strict reading says '{strictError}', warnings are: {string.Join(" ", file.Warnings)}");
        if (((string)expected["outcome"]!).Contains("warning", StringComparison.Ordinal) && file.Warnings.Count == 0) _deviations.Fail($"{name}: a warning is expected: {expected["meaning"]}");
        _lines.Add($"{name}: read. {string.Join(" ", file.Warnings)}");
        Outputs(fixture, name, expected, tiny, file, adaptation);
    }

    private void Outputs(Fixture fixture, string name, JsonObject expected, TinyBase tiny, AdapterFolder file, PeftAdaptation adaptation)
    {
        using var off = no_grad();
        // A folder for another base is run on that base's own batch.
        using Fixture? other = (string?)expected["base"] is { } otherBase && otherBase != fixture.Text("base")
            ? new Fixture(Path.Combine(Path.GetDirectoryName(fixture.Folder)!, otherBase), "base.json", "batch.safetensors") : null;
        var batch = new FixtureBatch(other ?? fixture);
        Tensor Run() => batch.Forward(tiny.Backbone, tiny.Head, new Pass(adaptation.Table())).Logits;
        double tolerance = (double)fixture.Json["tolerance"]!["logits"]!;
        if ((bool?)expected["logits_are_nan"] == true)
        {
            if (!Run().isnan().any().item<bool>()) _deviations.Fail($"{name}: NaN is expected");
        }
        else if (fixture.Has("logits/" + (TwinOf(expected) ?? name)))
        {
            Tensor logits = Run();
            if (file.Warnings.Any(w => w.Contains("old names", StringComparison.Ordinal)))
            {
                // The reference leaves these biases aside without a word.
                NamedParameter[] biases = [.. adaptation.Parameters.Where(p => p.Name.EndsWith(".base_layer.bias", StringComparison.Ordinal))];
                foreach (NamedParameter bias in biases)
                    bias.Load(((WeightSite)tiny.Backbone.FindSite(bias.Name[..^".base_layer.bias".Length])!).Bias!);
                if (Deviations.Distance(Run(), logits) < tolerance) _deviations.Fail($"{name}: the biases under their old names change nothing");
                logits = Run();
            }
            _deviations.Add("logits", name, logits, fixture["logits/" + (TwinOf(expected) ?? name)], tolerance);
        }
        if (expected["safe_merge"] is not null) Assert.ThrowsExactly<InvalidOperationException>(() => Merging.Merge(adaptation));
    }

    private static string? Error(string baseFolder, string folder, AdapterLoadOptions options)
    {
        using var tiny = new TinyBase(baseFolder);
        try
        {
            using AdapterFolder file = AdapterFolder.Open(folder);
            file.Attach(tiny.Backbone, tiny.Head, options).Dispose();
            return null;
        }
        catch (CheckpointFormatException e)
        {
            return e.Message;
        }
    }

    private static string? TwinOf(JsonObject expected) =>
        Regex.Match((string)expected["meaning"]!, @"should load it with the same result as ([\w-]+)") is { Success: true } match ? match.Groups[1].Value : null;

    private static string? LaterMethod(string folder)
    {
        string path = Path.Combine(folder, "adapter_config.json");
        if (!File.Exists(path)) return null;
        string? type = (string?)JsonNode.Parse(File.ReadAllText(path))?["peft_type"];
        return PeftMethods.Ids.Select(PeftMethods.Create).Any(m => m.HuggingFaceType == type) ? null : $"method {type}";
    }
}
