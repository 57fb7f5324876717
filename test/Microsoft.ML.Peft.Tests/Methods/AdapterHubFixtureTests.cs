// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Bottleneck adapters of AdapterHub on the families that exist here: outputs, gradients, eight AdamW steps, files.</summary>
[TestClass]
[TestCategory("Fixtures")]
public class AdapterHubFixtureTests
{
    private readonly Deviations _deviations = new();

    private static string? BaseOf(Fixture fixture)
    {
        string folder = Path.Combine(Path.GetDirectoryName(fixture.Folder)!, fixture.Text("base") ?? "");
        string config = Path.Combine(folder, "config.json");
        return File.Exists(config) && BackboneLoader.ModelTypes.Contains((string)JsonNode.Parse(File.ReadAllText(config))!["model_type"]!) ? folder : null;
    }

    private static Tensor Run(Fixture fixture, Backbone backbone, PatchTable worn)
    {
        TokenBatch tokens = fixture.Has("pixel_values") ? TokenBatch.OfImages(fixture["pixel_values"])
            : new(fixture["input_ids"], fixture["attention_mask"], fixture.Has("token_type_ids") ? fixture["token_type_ids"] : null)
            {
                DecoderIds = fixture.Has("decoder_input_ids") ? fixture["decoder_input_ids"] : null,
            };
        return backbone.Forward(tokens, new Pass(worn)).Last;
    }

    [TestMethod]
    public void BottlenecksEqualAdapterHub()
    {
        List<string> done = [], later = [];
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["config"] is not JsonObject config || !config.ContainsKey("mh_adapter") || !fixture.Has("on.last_hidden_state")) continue;
            string? reason = BaseOf(fixture) is null ? $"base {fixture.Text("base")}"
                : !File.Exists(fixture.PathOf("adapter", "adapter.safetensors")) ? "several adapters"
                : (bool?)config["phm_layer"] == true ? "PHM layers"
                : config["inv_adapter"] is not null ? "invertible adapters" : null;
            if (reason is not null)
            {
                later.Add($"{fixture.Name} ({reason})");
                continue;
            }
            using var scope = NewDisposeScope();
            try
            {
                Check(fixture);
                done.Add(fixture.Name);
            }
            catch (Exception e) when (e is not AssertFailedException)
            {
                _deviations.Fail($"{fixture.Name}: {e}");
            }
        }
        Console.WriteLine($"{done.Count} cases run: {string.Join(", ", done)}\nlater: {string.Join(", ", later)}");
        _deviations.Report();
    }

    private void Check(Fixture fixture)
    {
        using var tiny = new TinyBase(BaseOf(fixture)!);
        double tolerance = (double)fixture.Json["tolerance"]!;
        using PeftAdaptation adaptation = AdapterHubFolder.Attach(fixture.PathOf("adapter"), tiny.Backbone);
        _deviations.Add("base", fixture.Name, Run(fixture, tiny.Backbone, PatchTable.Empty), fixture["base.last_hidden_state"], tolerance);
        _deviations.Add("output", fixture.Name, Run(fixture, tiny.Backbone, adaptation.Table()), fixture["on.last_hidden_state"], tolerance);
        Fresh(fixture, adaptation, tiny.Backbone);
        Files(fixture, adaptation);
        // Losses through the package's own heads are not repeated here; the adapter's output is.
        if (fixture.Json["trainable"]?["shapes"] is JsonObject shapes && shapes.Any(s => s.Key.StartsWith("heads.", StringComparison.Ordinal))) return;
        if (!fixture.Names.Any(n => n.StartsWith("grad/", StringComparison.Ordinal))) return;
        if (fixture.Json["train"]?["losses"] is not null) CompareTrained(fixture, adaptation);
        Train(fixture, adaptation, tiny.Backbone);
    }

    private void CompareTrained(Fixture fixture, PeftAdaptation adaptation)
    {
        Dictionary<string, long[]> ours = adaptation.Parameters.Where(p => p.Trainable).ToDictionary(p => p.Name, p => p.Value.shape);
        foreach ((string name, JsonNode? shape) in fixture.Json["trainable"]!["shapes"]!.AsObject())
            if (!ours.Remove(name, out long[]? found) || !found.SequenceEqual(shape!.AsArray().Select(n => (long)n!)))
                _deviations.Fail($"{fixture.Name}: {name} should be trained with shape {shape!.ToJsonString()}");
        if (ours.Count > 0) _deviations.Fail($"{fixture.Name}: trained here only: {string.Join(", ", ours.Keys)}");
    }

    private void Fresh(Fixture fixture, PeftAdaptation loaded, Backbone backbone)
    {
        using PeftAdaptation fresh = loaded.Method.Attach(backbone, seed: 3);
        if (fresh.TrainableCount != loaded.Method.CountTrainable(backbone)) _deviations.Fail($"{fixture.Name}: count of trained numbers");
        if ((double?)fixture.Json["facts"]?["init_max_abs_diff_to_base"] is not { } recorded) return;
        double distance = Deviations.Distance(Run(fixture, backbone, fresh.Table()), fixture["base.last_hidden_state"]);
        // Other random numbers: the size of the first change is the same within a small factor.
        if (fresh.Method.ExactAtStart ? distance > 1e-5 : distance > 4 * recorded || distance < recorded / 4)
            _deviations.Fail($"{fixture.Name}: a fresh adapter changes the output by {distance:g3}, there by {recorded:g3}");
    }

    private void Files(Fixture fixture, PeftAdaptation adaptation)
    {
        string folder = HfBases.Temporary();
        var original = AdapterConfig.Parse(File.ReadAllText(fixture.PathOf("adapter", "adapter_config.json")), "adapter_config.json");
        AdapterHubFolder.Save(folder, adaptation, (string?)original["model_class"], (string?)original["model_name"]);
        var saved = AdapterConfig.Parse(File.ReadAllText(Path.Combine(folder, "adapter_config.json")), "adapter_config.json");
        foreach ((string field, JsonNode? value) in original["config"]!.AsObject())
            if (!HfBases.Same(value, saved["config"]![field])) _deviations.Fail($"{fixture.Name}: saved {field} is {saved["config"]![field]?.ToJsonString()}, expected {value?.ToJsonString()}");
        using SafetensorsFile ours = SafetensorsFile.Open(Path.Combine(folder, "adapter.safetensors")), theirs = SafetensorsFile.Open(fixture.PathOf("adapter", "adapter.safetensors"));
        string[] expected = [.. theirs.Names.Where(n => ours.Contains(n) || !n.Contains("adapter_down.0", StringComparison.Ordinal) || !theirs.Contains(n.Replace("adapter_down.0", "adapter_norm_before", StringComparison.Ordinal)))];
        if (!ours.Names.SequenceEqual(expected)) _deviations.Fail($"{fixture.Name}: keys differ: {string.Join(", ", ours.Names.Except(expected).Concat(expected.Except(ours.Names)))}");
        else if (expected.Any(n => !ours.Bytes(n).SequenceEqual(theirs.Bytes(n)))) _deviations.Fail($"{fixture.Name}: saved tensors differ");
    }

    private void Train(Fixture fixture, PeftAdaptation adaptation, Backbone backbone)
    {
        JsonNode? train = fixture.Json["train"];
        var tolerances = fixture.Json["tolerances"]!;
        JsonArray losses = train?["losses"]?.AsArray() ?? [fixture.Json["loss_at_stored_weights"]!.DeepClone()];
        var optimizer = train is null ? null : new PlainAdamW((double)train["lr"]!, (double)train["weight_decay"]!, (double)train["eps"]!);
        foreach (NamedParameter parameter in adaptation.Parameters) parameter.Decay = true;      // that recipe decays everything
        var unstable = fixture.Json["not_compared"]?["tensors"]?.AsArray().Select(n => (string)n!).ToHashSet() ?? [];
        Tensor mask = fixture["loss_mask"].to_type(ScalarType.Float32).unsqueeze(-1), target = fixture["target"];
        for (int step = 0; step < losses.Count; step++)
        {
            using var scope = NewDisposeScope();
            Tensor hidden = Run(fixture, backbone, adaptation.Table());
            Tensor loss = (mask * (hidden - target).square()).sum() / (mask.sum() * hidden.shape[^1]);
            _deviations.Add("loss", $"{fixture.Name} step {step}", Math.Abs(loss.item<float>() - (double)losses[step]!), (double?)tolerances["losses"] ?? 1e-5);
            if (step > 0 && step == losses.Count - 1) break;
            PlainAdamW.ZeroGradients(adaptation.Parameters);
            loss.backward();
            if (step == 0)
                foreach ((string key, Tensor expected) in fixture.Under("grad/"))
                    if (adaptation.Find(key)?.Value.grad is { } gradient) _deviations.Add("gradient", $"{fixture.Name} {key}", gradient, expected, (double)tolerances["grad"]!);
                    else _deviations.Fail($"{fixture.Name}: no gradient for {key}");
            optimizer?.Step(adaptation.Parameters);
        }
        foreach ((string key, Tensor expected) in fixture.Under("final/"))
            if (unstable.Contains("final/" + key)) continue;
            else if (adaptation.Find(key) is { } parameter) _deviations.Add("after training", $"{fixture.Name} {key}", parameter.Value, expected, (double)tolerances["final"]!);
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
            if (!fixture.Names.Any(n => n.StartsWith("weights/0/", StringComparison.Ordinal)) || BaseOf(fixture) is not { } baseFolder) continue;
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
                using PeftAdaptation adaptation = AdapterHubFolder.Parse(config).Attach(tiny.Backbone, 0);
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
        string layer = parts[Array.IndexOf(parts, "layer") + 1], place = name.Contains(".attention.", StringComparison.Ordinal) ? "mh" : "output";
        string rest = string.Join('.', parts.Skip(Array.IndexOf(parts, "adapters") + 2)).Replace("adapter_", "", StringComparison.Ordinal)
            .Replace("down.0.", "down.", StringComparison.Ordinal).Replace("down.1.", "down.", StringComparison.Ordinal);
        return fixture[$"weights/{layer}/{place}/{rest}"];
    }

    [TestMethod]
    public void CountsOfRealSizesEqualAdapterHub()
    {
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["real_size_counts"]?["bert-base"] is not JsonObject counts) continue;
            using Backbone backbone = MatrixModel.ShapesOnly(hidden: 768, layers: 12, inner: 3072);
            Assert.AreEqual((long)counts["seq_bn"]!, new PfeifferOptions().CountTrainable(backbone));
            Assert.AreEqual((long)counts["double_seq_bn"]!, new HoulsbyOptions().CountTrainable(backbone));
            Assert.AreEqual((long)counts["par_bn"]!, new BottleneckOptions { Parallel = true, ReductionFactor = 2 }.CountTrainable(backbone));
        }
    }
}
