// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Single adapters of AdapterHub: outputs, hidden states, gradients, eight AdamW steps, merging, heads, files.</summary>
[TestClass]
[TestCategory("Fixtures")]
public class AdapterHubFixtureTests
{
    private readonly Deviations _deviations = new();

    private static Tensor Run(Fixture fixture, Backbone backbone, PatchTable worn) => AdapterHubCase.Run(fixture, backbone, worn).Last;

    [TestMethod]
    public void SingleAdaptersEqualAdapterHub()
    {
        int done = 0;
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (!File.Exists(fixture.PathOf("adapter", "adapter_config.json"))) continue;
            using var scope = NewDisposeScope();
            try
            {
                Check(fixture);
                done++;
            }
            catch (Exception e) when (e is not AssertFailedException)
            {
                _deviations.Fail($"{fixture.Name}: {e}");
            }
        }
        Console.WriteLine($"{done} cases run");
        _deviations.Report();
    }

    private void Check(Fixture fixture)
    {
        using var tiny = new TinyBase(AdapterHubCase.BaseOf(fixture)!);
        double tolerance = (double)fixture.Json["tolerance"]!;
        string folder = fixture.PathOf("adapter");
        using PeftAdaptation adaptation = AdapterHubFolder.Attach(folder, tiny.Backbone, AdapterHubCase.Method(fixture, folder));
        using AdapterHubHead? head = AdapterHubFolder.AttachHead(folder, tiny.Backbone);
        Compare(fixture, "base", Run(fixture, tiny.Backbone, PatchTable.Empty), "base.last_hidden_state");
        BackboneOutput output = AdapterHubCase.Run(fixture, tiny.Backbone, adaptation.Table(), keep: true, adaptation);
        Compare(fixture, "output", output.Last, "on.last_hidden_state");
        foreach (string name in fixture.Names.Where(n => n.StartsWith("on.", StringComparison.Ordinal) && n.Contains(".hidden.", StringComparison.Ordinal)))
            Compare(fixture, "hidden", (name.StartsWith("on.encoder.", StringComparison.Ordinal) ? output.Encoder! : output).HiddenStates![int.Parse(name.Split('.')[^1])], name);
        if (fixture.Has("on.encoder.last_hidden_state")) Compare(fixture, "output", output.Encoder!.Last, "on.encoder.last_hidden_state");
        if (head is not null) CompareLogits(fixture, head, tiny.Backbone, adaptation, tolerance);
        foreach ((string key, Tensor expected) in fixture.Under("effective/"))
            _deviations.Add("projection", $"{fixture.Name} {key}", Projection(adaptation, key), expected, tolerance);
        Merged(fixture, adaptation, tiny.Backbone, output.Last, tolerance);
        Fresh(fixture, adaptation, tiny.Backbone);
        Files(fixture, adaptation, head);
        if (!fixture.Names.Any(n => n.StartsWith("grad/", StringComparison.Ordinal))) return;
        NamedParameter[] parameters = [.. adaptation.Parameters, .. head?.Parameters ?? []];
        CompareTrained(fixture, parameters);
        Train(fixture, adaptation, head, tiny.Backbone, parameters);
    }

    private void Compare(Fixture fixture, string kind, Tensor found, string name)
    {
        Tensor expected = fixture[name];
        _deviations.Add(kind, $"{fixture.Name} {name}", AdapterHubCase.Real(fixture, found, expected), expected, (double)fixture.Json["tolerance"]!);
    }

    private void CompareLogits(Fixture fixture, AdapterHubHead head, Backbone backbone, PeftAdaptation adaptation, double tolerance)
    {
        using var off = no_grad();
        Tensor logits = Logits(fixture, head, backbone, adaptation);
        if (!fixture.Has("on.logits"))
        {
            _deviations.Add("logits", $"{fixture.Name} start", logits.select(-1, 0), fixture["on.start_logits"], tolerance);
            _deviations.Add("logits", $"{fixture.Name} end", logits.select(-1, 1), fixture["on.end_logits"], tolerance);
        }
        else _deviations.Add("logits", fixture.Name, logits, fixture["on.logits"], tolerance);
    }

    private static Tensor Logits(Fixture fixture, AdapterHubHead head, Backbone backbone, PeftAdaptation adaptation)
    {
        TokenBatch batch = AdapterHubCase.Batch(fixture);
        var pass = new Pass(adaptation.Table());
        adaptation.BeforePass(pass, batch);
        return head.Forward(backbone, backbone.Forward(batch, pass), pass);
    }

    // bert.….projection.weight is stored as a turn of a basis; a frozen map that is called a projection is itself.
    private static Tensor Projection(PeftAdaptation adaptation, string key)
    {
        string path = key[..^".weight".Length] + ".parametrizations.weight";
        if (adaptation.Backbone.FindSite(key[..^".weight".Length]) is WeightSite frozen) return frozen.Weight;
        return Orthonormal.Turned(adaptation.Find(path + ".0.base")!.Value, adaptation.Find(path + ".original")!.Value);
    }

    // What the package merges wrongly (its own outputs differ) is compared with the unmerged output instead.
    private void Merged(Fixture fixture, PeftAdaptation adaptation, Backbone backbone, Tensor worn, double tolerance)
    {
        if (!adaptation.Method.Mergeable)
        {
            Assert.ThrowsExactly<NotSupportedException>(() => Merging.Merge(adaptation));
            return;
        }
        using Backbone merged = Merging.Merge(adaptation);
        using var off = no_grad();
        _deviations.Add("merged", fixture.Name, Run(fixture, merged, PatchTable.Empty), worn, tolerance);
        if ((double?)fixture.Json["facts"]?["max_abs_diff_merged"] is not { } theirs || theirs > 1e-4) return;
        _deviations.Add("merged", fixture.Name, Run(fixture, merged, PatchTable.Empty), fixture["merged.last_hidden_state"], tolerance);
        foreach ((string key, Tensor expected) in fixture.Under("merged/"))
        {
            string name = key[(key.IndexOf('.') + 1)..^".weight".Length];
            var site = merged.Sites.OfType<WeightSite>().Single(s => s.Name == name);
            _deviations.Add("merged", $"{fixture.Name} {key}", site is Projection { StoredTransposed: true } ? site.Weight.t() : site.Weight, expected, tolerance);
        }
    }

    private void CompareTrained(Fixture fixture, IEnumerable<NamedParameter> parameters)
    {
        Dictionary<string, NamedParameter> ours = parameters.Where(p => p.Trainable).ToDictionary(p => p.Name);
        foreach ((string name, JsonNode? shape) in fixture.Json["trainable"]!["shapes"]!.AsObject())
        {
            long[] expected = [.. shape!.AsArray().Select(n => (long)n!)];
            if (!ours.Remove(name, out NamedParameter? found) || !(found.Value.shape.SequenceEqual(expected) || (found.Value.dim() == 1 && expected.Length == 2 && expected.All(n => n == found.Value.shape[0]))))
                _deviations.Fail($"{fixture.Name}: {name} should be trained with shape {shape.ToJsonString()}");
        }
        if (ours.Count > 0) _deviations.Fail($"{fixture.Name}: trained here only: {string.Join(", ", ours.Keys)}");
    }

    private void Fresh(Fixture fixture, PeftAdaptation loaded, Backbone backbone)
    {
        using PeftAdaptation fresh = loaded.Method.Attach(backbone, seed: 3);
        if (fresh.TrainableCount != loaded.Method.CountTrainable(backbone)) _deviations.Fail($"{fixture.Name}: {fresh.TrainableCount} trained numbers, the formula says {loaded.Method.CountTrainable(backbone)}");
        if ((double?)fixture.Json["facts"]?["init_max_abs_diff_to_base"] is not { } recorded) return;
        using var off = no_grad();
        Tensor bare = fixture["base.last_hidden_state"];
        double distance = Deviations.Distance(AdapterHubCase.Real(fixture, AdapterHubCase.Run(fixture, backbone, fresh.Table(), adaptation: fresh).Last, bare), bare);
        // Other random numbers: the size of the first change is the same within a small factor, down to rounding.
        if (fresh.Method.ExactAtStart ? distance > 1e-5 : recorded < 1e-5 ? distance > 1e-4 : distance > 4 * recorded || distance < recorded / 4)
            _deviations.Fail($"{fixture.Name}: a fresh adapter changes the output by {distance:g3}, there by {recorded:g3}");
    }

    private void Files(Fixture fixture, PeftAdaptation adaptation, AdapterHubHead? head)
    {
        string folder = HfBases.Temporary();
        JsonObject Config(string where, string file) => AdapterConfig.Parse(File.ReadAllText(Path.Combine(where, file)), file);
        string theirs = fixture.PathOf("adapter");
        JsonObject original = Config(theirs, "adapter_config.json");
        bool sameMethod = JsonNode.DeepEquals(original["config"], fixture.Json["config"]) && adaptation.Method is not HubLoraOptions { VeraVectors: true };
        AdapterHubFolder.Save(folder, adaptation, (string?)original["model_class"], (string?)original["model_name"], head);
        JsonObject saved = Config(folder, "adapter_config.json");
        foreach ((string field, JsonNode? value) in original)
            if (field != "config" && !HfBases.Same(value, saved[field])) _deviations.Fail($"{fixture.Name}: saved {field} is {saved[field]?.ToJsonString()}, expected {value?.ToJsonString()}");
        Same(fixture.Name, original["config"]!.AsObject(), saved["config"]!.AsObject());
        SameBytes(fixture, folder, "adapter.safetensors");
        if (head is not null)
        {
            SameBytes(fixture, folder, "model_head.safetensors");
            SameBytes(fixture, folder, "head_config.json");
        }
        AdapterHubFolder.Save(folder, adaptation, loadedFrom: original);
        if (sameMethod) SameBytes(fixture, folder, "adapter_config.json");
    }

    private void Same(string where, JsonObject expected, JsonObject found)
    {
        foreach ((string field, JsonNode? value) in expected)
            if (!HfBases.Same(value, found[field])) _deviations.Fail($"{where}: saved {field} is {found[field]?.ToJsonString()}, expected {value?.ToJsonString()}");
    }

    private void SameBytes(Fixture fixture, string folder, string file)
    {
        if (!File.ReadAllBytes(Path.Combine(folder, file)).AsSpan().SequenceEqual(File.ReadAllBytes(fixture.PathOf("adapter", file))))
            _deviations.Fail($"{fixture.Name}: {file} has other bytes");
    }

    private void Train(Fixture fixture, PeftAdaptation adaptation, AdapterHubHead? head, Backbone backbone, NamedParameter[] parameters)
    {
        JsonNode? train = fixture.Json["train"];
        var tolerances = fixture.Json["tolerances"]!;
        JsonArray losses = train?["losses"]?.AsArray() ?? [fixture.Json["loss_at_stored_weights"]!.DeepClone()];
        var optimizer = train is null ? null : new PlainAdamW((double)train["lr"]!, (double)train["weight_decay"]!, (double)train["eps"]!);
        foreach (NamedParameter parameter in parameters) parameter.Decay = true;      // that recipe decays everything
        var unstable = fixture.Json["not_compared"]?["tensors"]?.AsArray().Select(n => (string)n!).ToHashSet() ?? [];
        NamedParameter? Find(string key) => parameters.FirstOrDefault(p => p.Name == key);
        for (int step = 0; step < losses.Count; step++)
        {
            using var scope = NewDisposeScope();
            Tensor loss = head is not null
                ? AdapterHubCase.HeadLoss(fixture, head, Logits(fixture, head, backbone, adaptation))
                : AdapterHubCase.MeanSquare(fixture, AdapterHubCase.Run(fixture, backbone, adaptation.Table(), adaptation: adaptation));
            _deviations.Add("loss", $"{fixture.Name} step {step}", Math.Abs(loss.item<float>() - (double)losses[step]!), (double?)tolerances["losses"] ?? 1e-5);
            if (step > 0 && step == losses.Count - 1) break;
            PlainAdamW.ZeroGradients(parameters);
            loss.backward();
            if (step == 0)
                foreach ((string key, Tensor expected) in fixture.Under("grad/"))
                    if (Find(key)?.Value.grad is { } gradient) _deviations.Add("gradient", $"{fixture.Name} {key}", gradient, AdapterHubCase.Shaped(expected, gradient), (double)tolerances["grad"]!);
                    else _deviations.Fail($"{fixture.Name}: no gradient for {key}");
            optimizer?.Step(parameters);
        }
        foreach ((string key, Tensor expected) in fixture.Under("final/"))
            if (unstable.Contains("final/" + key)) continue;
            else if (Find(key) is { } parameter) _deviations.Add("after training", $"{fixture.Name} {key}", parameter.Value, AdapterHubCase.Shaped(expected, parameter.Value), (double)tolerances["final"]!);
            else _deviations.Fail($"{fixture.Name}: no parameter {key}");
        optimizer?.Dispose();
    }

    [TestMethod]
    public void SwitchesEqualAdapterHub()
    {
        int count = 0;
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Names.Any(n => n.StartsWith("weights/0/", StringComparison.Ordinal)) || AdapterHubCase.BaseOf(fixture) is not { } baseFolder) continue;
            using var scope = NewDisposeScope();
            using var off = no_grad();
            using var tiny = new TinyBase(baseFolder);
            foreach ((string key, JsonNode? switches) in fixture.Json["config"]!.AsObject())
            {
                var config = switches!.DeepClone().AsObject();
                config["mh_adapter"] = true;
                config["output_adapter"] = true;
                config["reduction_factor"] = 8;
                config["non_linearity"] = "relu";
                using PeftAdaptation adaptation = AdapterHubFolder.Parse(config, "default").Attach(tiny.Backbone, 0);
                foreach (NamedParameter parameter in adaptation.Parameters) parameter.Load(Weight(fixture, parameter.Name));
                _deviations.Add("output", $"{fixture.Name} {key}", Run(fixture, tiny.Backbone, adaptation.Table()), fixture["out/" + key], (double)fixture.Json["tolerance"]!);
                count++;
            }
        }
        Console.WriteLine($"{count} settings");
        _deviations.Report();
    }

    // bert.encoder.layer.1.attention.output.adapters.default.adapter_up.bias -> weights/1/mh/up.bias
    private static Tensor Weight(Fixture fixture, string name)
    {
        string[] parts = name.Split('.');
        string layer = parts.First(p => int.TryParse(p, out _)), place = name.Contains("attention", StringComparison.Ordinal) ? "mh" : "output";
        string rest = string.Join('.', parts.Skip(Array.IndexOf(parts, "adapters") + 2)).Replace("adapter_", "", StringComparison.Ordinal)
            .Replace("down.0.", "down.", StringComparison.Ordinal).Replace("down.1.", "down.", StringComparison.Ordinal);
        return fixture[$"weights/{layer}/{place}/{rest}"];
    }
}
