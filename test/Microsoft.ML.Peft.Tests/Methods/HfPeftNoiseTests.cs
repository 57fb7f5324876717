// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Random numbers that must be the reference's: noise that a case recorded, frozen tensors that a file names by their seed.</summary>
[TestClass]
[TestCategory("Fixtures")]
public class HfPeftNoiseTests
{
    [TestMethod]
    public void TrainingWithRecordedNoiseEqualsPeft()
    {
        var deviations = new Deviations();
        List<string> done = [], later = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Has("train/logits") || !fixture.Names.Any(n => n.StartsWith("train/noise/", StringComparison.Ordinal))) continue;
            if (HfPeftFixtureTests.Later(fixture) is { } reason)
            {
                later.Add($"{fixture.Name} ({reason})");
                continue;
            }
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            using PeftAdaptation adaptation = file.Attach(tiny.Backbone, tiny.Head);
            // Noise is asked for in the order of the network, once a site.
            var noise = new Queue<string>(adaptation.Patches.Keys.OrderBy(s => s.Index).Select(s => "train/noise/" + tiny.Backbone.PathOf(s)));
            Assert.IsTrue(noise.All(fixture.Has), $"{fixture.Name}: noise for every adapted site is expected");
            var pass = new Pass(adaptation.Table(), training: true) { NoiseWith = _ => fixture[noise.Dequeue()] };
            Tensor logits = new FixtureBatch(fixture).Forward(tiny.Backbone, tiny.Head, pass).Logits;
            Assert.AreEqual(0, noise.Count, $"{fixture.Name}: noise was left over");
            deviations.Add("logits with noise", fixture.Name, logits, fixture["train/logits"], (double)fixture.Json["tolerance"]!["logits"]!);
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} cases run: {string.Join(", ", done)}; later: {string.Join(", ", later)}");
        deviations.Report();
    }

    /// <summary>A fresh adapter draws from its seed what the file holds, or what the case recorded beside a file without it.</summary>
    [TestMethod]
    public void SeedsGiveTheTensorsOfPeft()
    {
        var deviations = new Deviations();
        List<string> done = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!Directory.Exists(fixture.PathOf("adapter")) || HfPeftFixtureTests.Later(fixture) is not null) continue;
            using var scope = NewDisposeScope();
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            if (!((string[])["projection_prng_key", "projection_seed", "proj_seed"]).Any(file.Config.ContainsKey)) continue;
            using TinyBase tiny = HfBases.Load(fixture);
            using PeftAdaptation fresh = file.Method.Attach(tiny.Backbone, seed: 1);
            using SafetensorsFile tensors = SafetensorsFile.Open(fixture.PathOf("adapter", "adapter_model.safetensors"));
            int compared = 0;
            foreach (NamedParameter parameter in fresh.Parameters.Where(p => !p.Trainable && !DependsOnTheWeight(p.Name)))
            {
                string key = parameter.FileKey ?? "base_model.model." + parameter.Name;
                if ((tensors.Contains(key) ? Fixture.Read(tensors, key) : Recorded(fixture, parameter.Name)) is not { } expected) continue;
                deviations.Add("drawn by seed", $"{fixture.Name} {key}", parameter.Value, expected, 1e-6);
                compared++;
            }
            Assert.AreNotEqual(0, compared, fixture.Name);
            done.Add($"{fixture.Name} ({compared} tensors)");
        }
        Console.WriteLine($"{done.Count} cases run: {string.Join(", ", done)}");
        deviations.Report();
    }

    private static bool DependsOnTheWeight(string name) => name.EndsWith(".tinylora_A", StringComparison.Ordinal) || name.EndsWith(".tinylora_B", StringComparison.Ordinal)
        || name.StartsWith("frod_V.", StringComparison.Ordinal) || name.EndsWith(".frod_U", StringComparison.Ordinal);

    // Under its own name, or its last word before the module's path: P/bert.encoder..., indices_A/bert.encoder...
    private static Tensor? Recorded(Fixture fixture, string name)
    {
        int dot = name.LastIndexOf('.');
        string last = name[(dot + 1)..], path = dot < 0 ? "" : name[..dot];
        return ((string[])[name, $"{last}/{path}", $"{last[(last.IndexOf('_') + 1)..]}/{path}"]).FirstOrDefault(fixture.Has) is { } found ? fixture[found] : null;
    }
}
