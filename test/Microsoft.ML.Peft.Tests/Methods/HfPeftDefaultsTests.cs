// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// A configuration that says nothing means what Python PEFT's defaults mean: every field of every type that is known here,
/// and the modules of every model type.
/// </summary>
[TestClass]
[TestCategory("Fixtures")]
public class HfPeftDefaultsTests
{
    private readonly List<string> _failures = [], _done = [], _needs = [], _later = [];

    private static IEnumerable<(string Type, JsonObject Record, Fixture Case)> Types()
    {
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["types"] is not JsonObject types || fixture.Json["common_fields"] is null) continue;
            foreach ((string type, JsonNode? record) in types) yield return (type, record!.AsObject(), fixture);
        }
    }

    private static PeftMethod? Method(string type) => PeftMethods.Ids.Select(PeftMethods.Create).FirstOrDefault(m => m.HuggingFaceType == type);

    [TestMethod]
    public void AnEmptyConfigurationMeansTheRecordedDefaults()
    {
        foreach ((string type, JsonObject record, Fixture fixture) in Types())
        {
            if (Method(type) is not { } method)
            {
                _later.Add(type);
                continue;
            }
            using var scope = NewDisposeScope();
            using TinyBase? tiny = Base(fixture, record);
            if (tiny is null) _later.Add($"{type} (no base that it has defaults for)");
            else CompareFields(type, method, record["fields"]!.AsObject(), tiny.Backbone);
        }
        Report();
    }

    [TestMethod]
    public void DefaultModulesAreTheRecordedOnes()
    {
        foreach ((string type, JsonObject record, Fixture fixture) in Types())
        {
            JsonObject expected = record["default_target_modules"]!.AsObject();
            if (!expected.Select(p => p.Key).Order().SequenceEqual(DefaultTargets.Models(type).Order())) _failures.Add($"{type}: other model types");
            foreach ((string model, JsonNode? names) in expected)
                if (!Names(names).SequenceEqual(DefaultTargets.Of(type, model) ?? [])) _failures.Add($"{type} {model}: {names!.ToJsonString()}");
            foreach ((string model, JsonNode? names) in record["default_feedforward_modules"] as JsonObject ?? [])
                if (!Names(names).SequenceEqual(DefaultTargets.ScaledInputsOf(model) ?? ["none"])) _failures.Add($"{type} {model}: {names!.ToJsonString()} scale inputs");
            CompareSites(type, expected, fixture);
        }
        Report();
    }

    // The modules of a file without names are those of a file that names them.
    private void CompareSites(string type, JsonObject expected, Fixture fixture)
    {
        if (Method(type) is not TargetedMethod) return;
        foreach (string folder in Directory.GetDirectories(Path.GetDirectoryName(fixture.Folder)!, "_base-*").Where(Loads))
        {
            using var scope = NewDisposeScope();
            using var tiny = new TinyBase(folder);
            string model = tiny.Backbone.Config.ModelType;
            string silent = Sites(type, null, tiny.Backbone);
            if (expected[model] is { } names)
            {
                if (silent != Sites(type, names.DeepClone(), tiny.Backbone)) _failures.Add($"{type} {model}: {silent}");
                else _done.Add($"{type} {model}");
            }
            else if (expected.Count > 0 && !silent.Contains("target_modules", StringComparison.Ordinal)) _failures.Add($"{type} {model} should ask for target_modules: {silent}");
        }
    }

    private static string Sites(string type, JsonNode? targets, Backbone backbone)
    {
        PeftMethod method = Method(type)!;
        try
        {
            method.ReadHuggingFace(new JsonObject { ["peft_type"] = type, ["target_modules"] = targets });
            using PeftAdaptation adaptation = method.Attach(backbone, 0);
            return string.Join(", ", adaptation.Patches.Keys.Select(s => s.Name).Order(StringComparer.Ordinal));
        }
        catch (ArgumentException e)
        {
            return e.Message;                                              // defaults may not fit so small a model
        }
    }

    private void CompareFields(string type, PeftMethod method, JsonObject expected, Backbone backbone)
    {
        var written = new JsonObject();
        try
        {
            method.ReadHuggingFace(new JsonObject { ["peft_type"] = type });
            method.WriteHuggingFace(written, backbone);
        }
        catch (ArgumentException e)
        {
            // What has no default must be asked for by its name.
            if (expected.Any(p => p.Value is null && e.Message.Contains($"'{p.Key}'", StringComparison.Ordinal))) _needs.Add($"{type} ({e.Message})");
            else _failures.Add($"{type}: {e.Message}");
            return;
        }
        foreach ((string field, JsonNode? value) in expected)
        {
            if (!written.ContainsKey(field)) _failures.Add($"{type}: {field} is not written");
            else if (!HfBases.Same(written[field], value) && !(value is null && field.EndsWith("_modules", StringComparison.Ordinal)))
                _failures.Add($"{type}: {field} is {written[field]?.ToJsonString() ?? "null"}, expected {value?.ToJsonString() ?? "null"}");
        }
        _failures.AddRange(written.Select(p => p.Key).Where(f => !expected.ContainsKey(f)).Select(f => $"{type}: {f} is written and no field of that type"));
        _done.Add(type);
    }

    private static TinyBase? Base(Fixture fixture, JsonObject record)
    {
        JsonObject defaults = record["default_target_modules"]!.AsObject();
        foreach (string folder in Directory.GetDirectories(Path.GetDirectoryName(fixture.Folder)!, "_base-*").Order(StringComparer.Ordinal).Where(Loads))
        {
            var tiny = new TinyBase(folder);
            if (defaults.Count == 0 || defaults.ContainsKey(tiny.Backbone.Config.ModelType)) return tiny;
            tiny.Dispose();
        }
        return null;
    }

    private static bool Loads(string folder) => Path.Combine(folder, "config.json") is var config && File.Exists(config)
        && BackboneLoader.ModelTypes.Contains((string?)JsonNode.Parse(File.ReadAllText(config))!["model_type"] ?? "");

    private static IEnumerable<string> Names(JsonNode? names) => names!.AsArray().Select(n => (string)n!);

    private void Report()
    {
        Console.WriteLine($"{_done.Count} compared: {string.Join(", ", _done)}\nmust be given something: {string.Join(", ", _needs)}\nnot there yet: {string.Join(", ", _later)}");
        Assert.AreEqual("", string.Join("\n", _failures));
    }
}
