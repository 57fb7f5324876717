// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>What the tests over hf-peft share.</summary>
internal static class HfBases
{
    public static TinyBase Load(Fixture fixture) => new(Path.Combine(Path.GetDirectoryName(fixture.Folder)!, fixture.Text("base")!));

    /// <summary>The parameter behind a key of an adapter file, or null.</summary>
    public static NamedParameter? Find(string key, PeftAdaptation adaptation, TinyBase tiny)
    {
        if (adaptation.Parameters.FirstOrDefault(p => p.FileKey == key && p.Trainable) is { } keyed) return keyed;
        string name = key.StartsWith("base_model.model.", StringComparison.Ordinal) ? key["base_model.model.".Length..]
            : key.StartsWith("base_model.", StringComparison.Ordinal) ? key["base_model.".Length..] : key;
        name = ModuleNames.ToCheckpoint(tiny.Backbone.Config.ModelType, name);
        return adaptation.Find(name) ?? adaptation.Parameters.FirstOrDefault(p => p.FileKey == key) ?? tiny.Head?.Parameters.FirstOrDefault(p => p.Name == name) ?? adaptation.Find($"{tiny.Backbone.Prefix}.{name}");
    }

    public static void CompareGradients(Fixture fixture, Deviations deviations, PeftAdaptation adaptation, TinyBase tiny, double tolerance)
    {
        Dictionary<string, Tensor> all = fixture.Under("grad/").ToDictionary(g => g.Name, g => g.Value);
        foreach ((string key, Tensor recorded) in all)
        {
            Tensor expected = recorded;
            NamedParameter? parameter = Find(key, adaptation, tiny);
            // Each side of a shared tensor has a gradient of its own there; their sum is the gradient.
            if (parameter?.TurnedCopies.Any(copy => key.EndsWith(copy, StringComparison.Ordinal)) == true) continue;
            foreach (string copy in parameter?.TurnedCopies ?? [])
                if (all.TryGetValue(adaptation.Method.FilePrefix + copy, out Tensor? side)) expected = expected + side.t();
            if (parameter is null) deviations.Fail($"{fixture.Name}: no parameter for the gradient of {key}");
            else if (parameter.Value.grad is not { } gradient) deviations.Fail($"{fixture.Name}: {key} has no gradient");
            else deviations.Add("gradient", $"{fixture.Name} {key}", gradient, expected, tolerance);
        }
    }

    public static void CompareValues(Fixture fixture, Deviations deviations, string prefix, PeftAdaptation adaptation, TinyBase tiny, double tolerance, PeftAdaptation? folded = null)
    {
        var unstable = fixture.Json["after_unstable"] as JsonObject;
        foreach ((string key, Tensor expected) in fixture.Under(prefix))
        {
            // The file keeps a trained head's bias up to three times where all biases are trained.
            if (unstable?.ContainsKey(key) == true || key.Contains(".modules_to_save.", StringComparison.Ordinal)) continue;
            if (folded?.Parameters.FirstOrDefault(p => p.FileKey == key && p.Exchanged) is { } made) deviations.Add(prefix.TrimEnd('/'), $"{fixture.Name} {key}", made.Value, expected, tolerance);
            else if (Find(key, adaptation, tiny) is { } parameter && parameter.Value.shape.SequenceEqual(expected.shape))
                deviations.Add(prefix.TrimEnd('/'), $"{fixture.Name} {key}", parameter.Value, expected, tolerance);
            else if (folded is not null && Find(key, folded, tiny) is { } other) deviations.Add(prefix.TrimEnd('/'), $"{fixture.Name} {key}", other.Value, expected, tolerance);
            else if (Exchanged(key, adaptation) is { } value) deviations.Add(prefix.TrimEnd('/'), $"{fixture.Name} {key}", value, expected, tolerance);
            else deviations.Fail($"{fixture.Name}: no parameter for {prefix}{key}");
        }
    }

    /// <summary>A tensor of the file that the adaptation makes: folded, or joined of several parameters.</summary>
    private static Tensor? Exchanged(string key, PeftAdaptation adaptation)
    {
        PeftAdaptation exchanged = adaptation.Method.ToExchange(adaptation);
        Tensor[] parts = [.. exchanged.Parameters.Where(p => p.FileKey == key && p.Exchanged).Select(p => p.Value.detach())];
        Tensor? joined = parts.Length == 0 ? null : cat(parts);
        if (!ReferenceEquals(exchanged, adaptation)) exchanged.Dispose();
        return joined;
    }

    /// <summary>Patches of several adaptations, the later ones around the earlier.</summary>
    public static Dictionary<Site, Patch> Stacked(params PeftAdaptation[] worn)
    {
        var patches = new Dictionary<Site, Patch>();
        foreach (PeftAdaptation adaptation in worn)
            foreach ((Site site, Patch patch) in adaptation.Patches)
                patches[site] = patches.TryGetValue(site, out Patch? inner) ? PatchStack.Of(site, inner, patch) : patch;
        return patches;
    }

    public static PatchTable Stack(params PeftAdaptation[] worn) => new(Stacked(worn));

    /// <summary>Equal JSON, lists in any order, numbers by value.</summary>
    public static bool Same(JsonNode? a, JsonNode? b) => (a, b) switch
    {
        (null, null) => true,
        (JsonArray x, JsonArray y) => x.Count == y.Count
            && (x.Select(n => n?.ToJsonString()).Order().SequenceEqual(y.Select(n => n?.ToJsonString()).Order()) || x.Zip(y).All(pair => Same(pair.First, pair.Second))),
        (JsonObject x, JsonObject y) => x.Count == y.Count && x.All(p => y.ContainsKey(p.Key) && Same(p.Value, y[p.Key])),
        (JsonValue x, JsonValue y) => x.ToJsonString() == y.ToJsonString()
            || (double.TryParse(x.ToJsonString(), out double m) && double.TryParse(y.ToJsonString(), out double n) && m == n),
        _ => false,
    };

    /// <summary>A fresh folder that the test run throws away.</summary>
    public static string Temporary() => Directory.CreateTempSubdirectory("peft-test-").FullName;
}
