// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Which modules a configuration names, against the rows of hf-peft/matching and hf-peft/module-names.</summary>
[TestClass]
[TestCategory("Fixtures")]
public class TargetMatcherTests
{
    private static IEnumerable<Fixture> WithField(string field) =>
        Shared.Cases("hf-peft").Select(folder => new Fixture(folder)).Where(f => f.Json.ContainsKey(field));

    private static string[] Names(JsonNode? node) => node switch
    {
        null => [],
        JsonArray list => [.. list.Select(n => n!.ToString())],
        var one => [one.ToString()],
    };

    private static (string[] Names, string? Pattern) NamesOrPattern(JsonNode? node) =>
        node is JsonValue value ? ([], (string?)value) : (Names(node), null);

    [TestMethod]
    public void RowsMatchAsInPeft()
    {
        int rows = 0;
        foreach (Fixture fixture in WithField("rows").Where(f => File.Exists(f.PathOf("module_types.json"))))
        {
            var models = JsonNode.Parse(File.ReadAllText(fixture.PathOf("module_types.json")))!.AsObject();
            foreach (JsonObject row in fixture.Json["rows"]!.AsArray().Select(r => r!.AsObject()))
            {
                (string[] targets, string? pattern) = NamesOrPattern(row["target_modules"]);
                (string[] excluded, string? excludedPattern) = NamesOrPattern(row["exclude_modules"]);
                var matcher = new TargetMatcher(new TargetRule
                {
                    Targets = targets,
                    Pattern = pattern,
                    Excluded = excluded,
                    ExcludedPattern = excludedPattern,
                    SavedWhole = Names(row["modules_to_save"]),
                    Layers = [.. Names(row["layers_to_transform"]).Select(int.Parse)],
                    LayersPattern = Names(row["layers_pattern"]),
                });
                string[] paths = [.. models[(string)row["model"]!]!.AsArray().Select(m => (string)m![0]!)];
                CollectionAssert.AreEqual(Names(row["matched"]), paths.Where(p => matcher.Match(p) == TargetMatch.Matched).ToArray(), row.ToJsonString());
                CollectionAssert.AreEqual(Names(row["excluded"]), paths.Where(p => matcher.Match(p) == TargetMatch.Excluded).ToArray(), row.ToJsonString());
                rows++;
            }
        }
        Console.WriteLine($"{rows} rows");
    }

    [TestMethod]
    public void PatternKeysMatchAsInPeft()
    {
        int paths = 0;
        foreach (Fixture fixture in WithField("pattern_keys"))
            foreach (JsonNode? row in fixture.Json["pattern_keys"]!.AsArray())
                foreach ((string path, JsonNode? key) in row!["first_match"]!.AsObject())
                {
                    Assert.AreEqual((string?)key, TargetMatcher.FirstKey(Names(row["keys"]), path), $"{path} in {row["keys"]!.ToJsonString()}");
                    paths++;
                }
        Console.WriteLine($"{paths} paths");
    }

    [TestMethod]
    public void LongListsAreShortenedAsInPeft()
    {
        foreach (Fixture fixture in WithField("minimal_target_modules"))
            foreach (JsonNode? row in fixture.Json["minimal_target_modules"]!.AsArray())
                CollectionAssert.AreEquivalent(Names(row!["minimal"]),
                    TargetMatcher.Shorten(Names(row["target_modules"]), Names(row["other_modules"])).ToArray(), row.ToJsonString());
    }

    [TestMethod]
    public void AllLinearNamesEveryProjection()
    {
        List<string> later = [];
        foreach (Fixture fixture in WithField("all_linear"))
            foreach (JsonNode? row in fixture.Json["all_linear"]!.AsArray())
            {
                string folder = Path.Combine(Path.GetDirectoryName(fixture.Folder)!, "_base-" + row!["model"]);
                string? modelType = File.Exists(Path.Combine(folder, "config.json"))
                    ? (string?)JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "config.json")))!["model_type"] : null;
                if (modelType is null || !BackboneLoader.ModelTypes.Contains(modelType))
                {
                    later.Add((string)row["model"]!);
                    continue;
                }
                using var tiny = new TinyBase(folder);
                using PeftAdaptation adaptation = new LoraOptions { Targets = [TargetedMethod.AllLinear], Rank = 1 }.Attach(tiny.Backbone, 0);
                string[] expected = [.. Names(row["matched"]).Select(path => ModuleNames.ToCheckpoint(modelType, path)).Where(path => tiny.Backbone.FindSite(path) is not null)];
                CollectionAssert.AreEquivalent(expected, adaptation.Patches.Keys.Select(tiny.Backbone.PathOf).ToArray());
                if ((string?)row["task_type"] is null) continue;
                var config = new JsonObject();
                adaptation.Method.WriteHuggingFace(config, tiny.Backbone);
                CollectionAssert.AreEquivalent(Names(row["target_modules_in_config"]), Names(config["target_modules"]));
            }
        Console.WriteLine($"models that do not exist here yet: {string.Join(", ", later)}");
    }

    [TestMethod]
    public void BothSpellingsOfRenamedModulesAreKnown()
    {
        int names = 0;
        foreach (Fixture fixture in WithField("names"))
            foreach ((string modelType, JsonNode? pairs) in fixture.Json["names"]!.AsObject())
                foreach ((string memory, JsonNode? checkpoint) in pairs!.AsObject())
                {
                    Assert.AreEqual((string)checkpoint!, ModuleNames.ToCheckpoint(modelType, memory));
                    Assert.AreEqual((string)checkpoint!, ModuleNames.ToCheckpoint(modelType, (string)checkpoint!), "a checkpoint's name stays");
                    Assert.AreEqual(memory, ModuleNames.ToMemory(modelType, (string)checkpoint!));
                    names++;
                }
        Console.WriteLine($"{names} pairs");
    }

    [TestMethod]
    [TestCategory("Unit")]
    public void AHangingPatternIsStopped()
    {
        var matcher = new TargetMatcher(new TargetRule { Pattern = "(a+)+b" });
        var error = Assert.ThrowsExactly<ArgumentException>(() => matcher.Match(new string('a', 60)));
        StringAssert.Contains(error.Message, "too long");
    }
}
