// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// Every single-adapter case of hf-peft whose method and base exist here: outputs, gradients, eight AdamW steps, merging,
/// files. Tolerances are the cases' own.
/// </summary>
[TestClass]
[TestCategory("Fixtures")]
public class HfPeftFixtureTests
{
    // What the library does not have yet, by the words of the cases; any other failure to read an adapter is a failure.
    private static readonly string[] _laterFields =
        ["arrow_config"];

    private static readonly string[] _laterStarts = ["loftq"];

    [TestMethod]
    public void SingleAdaptersEqualPeft()
    {
        var deviations = new Deviations();
        List<string> later = [], done = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!Directory.Exists(fixture.PathOf("adapter")) || fixture.Json["trainable"] is null || !fixture.Has("logits")) continue;
            if (Later(fixture) is { } reason)
            {
                later.Add($"{fixture.Name} ({reason})");
                continue;
            }
            using var scope = NewDisposeScope();
            try
            {
                new SingleAdapterCase(fixture, deviations).Run();
                done.Add(fixture.Name);
            }
            catch (Exception e) when (e is not AssertFailedException)
            {
                deviations.Fail($"{fixture.Name}: {e}");
            }
        }
        Console.WriteLine($"{done.Count} cases run: {string.Join(", ", done)}");
        Console.WriteLine($"{later.Count} cases of methods or bases that do not exist here yet: {string.Join(", ", later)}");
        deviations.Report();
        if (Shared.Cases("hf-peft").Count > 0) Assert.AreNotEqual(0, done.Count);
    }

    /// <summary>Why a case is left out, or null.</summary>
    internal static string? Later(Fixture fixture)
    {
        string? peftType = fixture.Text("peft_type"), baseName = fixture.Text("base");
        if (!PeftMethods.Ids.Select(PeftMethods.Create).Any(m => m.HuggingFaceType == peftType)) return $"method {peftType}";
        string folder = Path.Combine(Shared.Fixtures, "hf-peft", baseName ?? ""), config = Path.Combine(folder, "config.json");
        if (!File.Exists(config)) return PlainBase.Describes(folder) ? LaterAdapter(fixture.PathOf("adapter")) : $"base {baseName}";
        string modelType = (string)JsonNode.Parse(File.ReadAllText(config))!["model_type"]!;
        if (!BackboneLoader.ModelTypes.Contains(modelType)) return $"base {modelType}";
        return LaterAdapter(fixture.PathOf("adapter"));
    }

    internal static string? LaterAdapter(string folder)
    {
        string path = Path.Combine(folder, "adapter_config.json");
        if (!File.Exists(path)) return null;
        var adapter = JsonNode.Parse(File.ReadAllText(path))!.AsObject();
        if (!PeftMethods.Ids.Select(PeftMethods.Create).Any(m => m.HuggingFaceType == (string?)adapter["peft_type"])) return $"method {adapter["peft_type"]}";
        if (_laterFields.FirstOrDefault(f => !AdapterConfig.IsEmpty(adapter, f)) is { } field) return $"option {field}";
        return adapter["init_lora_weights"] is JsonValue init && init.TryGetValue(out string? start) && _laterStarts.Contains(start)
            ? $"start {start}" : null;
    }

    [TestMethod]
    public void DropoutWithRecordedMasksEqualsPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Has("logits_train") || !fixture.Names.Any(n => n.StartsWith("mask/", StringComparison.Ordinal)) || Later(fixture) is not null) continue;
            count++;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            using PeftAdaptation adaptation = file.Attach(tiny.Backbone, tiny.Head);
            var batch = new FixtureBatch(fixture);
            double tolerance = (double)fixture.Json["tolerance"]!["logits"]!;
            deviations.Add("logits without dropout", fixture.Name, batch.Forward(tiny.Backbone, tiny.Head, new Pass(adaptation.Table())).Logits, fixture["logits_eval"], tolerance);

            // Masks are asked for in the order of the network, once a site.
            var masks = new Queue<string>(adaptation.Patches.Keys.OrderBy(s => s.Index).Select(s => "mask/" + tiny.Backbone.PathOf(s)));
            Assert.IsTrue(masks.All(fixture.Has), $"{fixture.Name}: a mask for every adapted site is expected");
            var pass = new Pass(adaptation.Table(), training: true) { DropWith = (x, p) => x * fixture[masks.Dequeue()] / (1 - p) };
            Tensor logits = batch.Forward(tiny.Backbone, tiny.Head, pass).Logits;
            Assert.AreEqual(0, masks.Count, $"{fixture.Name}: masks were left over");
            deviations.Add("logits with dropout", fixture.Name, logits, fixture["logits_train"], tolerance);
            batch.Loss(logits).backward();
            HfBases.CompareGradients(fixture, deviations, adaptation, tiny, (double)fixture.Json["tolerance"]!["grad"]!);
        }
        Console.WriteLine($"{count} cases with recorded masks");
        deviations.Report();
    }

    [TestMethod]
    public void SeveralActiveAdaptersEqualPeft()
    {
        var deviations = new Deviations();
        List<string> done = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Has("logits/a+b") || !fixture.Has("logits/merged a, then b") || Later(fixture) is not null) continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder fileA = AdapterFolder.Open(fixture.PathOf("adapters", "a")), fileB = AdapterFolder.Open(fixture.PathOf("adapters", "b"));
            using PeftAdaptation a = fileA.Attach(tiny.Backbone), b = fileB.Attach(tiny.Backbone);
            var batch = new FixtureBatch(fixture);
            double tolerance = (double)fixture.Json["tolerance"]!["logits"]!;
            void Check(string key, params PeftAdaptation[] worn) => deviations.Add($"logits of {key}", fixture.Name,
                batch.Forward(tiny.Backbone, tiny.Head, new Pass(HfBases.Stack(worn))).Logits, fixture["logits/" + key], tolerance);
            Check("a", a);
            Check("b", b);
            // Where the reference's pair is not what it merges, the merged one is right: its case says so in its notes.
            bool sound = !((double?)fixture.Json["merged_max_abs_diff_to_active"] > 1e-3);
            Check(sound ? "a+b" : "merged a, then b", a, b);
            if (sound) Check("b+a", b, a);
            using var off = no_grad();
            var merged = new Dictionary<Site, (Tensor, Tensor?)>();
            foreach ((Site site, Patch patch) in HfBases.Stacked(a, b))
                merged[site] = ((WeightPatch)patch).Rewrite(((WeightSite)site).Weight, ((WeightSite)site).Bias, null);
            using Backbone folded = tiny.Backbone.With(merged);
            deviations.Add("logits of merged", fixture.Name, batch.Forward(folded, tiny.Head, new Pass()).Logits, fixture["logits/merged a, then b"], tolerance);
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} cases run: {string.Join(", ", done)}");
        deviations.Report();
    }

    /// <summary>Folders of further cases (hot swapping, mixed batches): each adapter on its own.</summary>
    [TestMethod]
    public void AdaptersOfOtherCasesAloneEqualPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!Directory.Exists(fixture.PathOf("adapters")) || Later(fixture) is not null) continue;
            foreach (string path in Directory.GetDirectories(fixture.PathOf("adapters")))
            {
                string key = "logits/" + Path.GetFileName(path);
                if (!fixture.Has(key) || fixture[key].dim() != 2 || LaterAdapter(path) is not null) continue;
                using var scope = NewDisposeScope();
                using TinyBase tiny = HfBases.Load(fixture);
                using AdapterFolder file = AdapterFolder.Open(path);
                using PeftAdaptation adaptation = file.Attach(tiny.Backbone, tiny.Head);
                deviations.Add("logits", $"{fixture.Name}/{Path.GetFileName(path)}",
                    new FixtureBatch(fixture).Forward(tiny.Backbone, tiny.Head, new Pass(adaptation.Table())).Logits, fixture[key], (double)fixture.Json["tolerance"]!["logits"]!);
                count++;
            }
        }
        Console.WriteLine($"{count} adapters read");
        deviations.Report();
    }

    [TestMethod]
    public void ConversionsToPlainLoraEqualPeft()
    {
        var deviations = new Deviations();
        List<string> done = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Has("logits_converted")) continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            var batch = new FixtureBatch(fixture);
            double tolerance = (double)fixture.Json["tolerance"]!["logits"]!;
            Tensor Run(PeftAdaptation worn) => batch.Forward(tiny.Backbone, tiny.Head, new Pass(worn.Table())).Logits;

            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("converted"));
            using PeftAdaptation converted = file.Attach(tiny.Backbone, tiny.Head);
            deviations.Add("logits of the converted file", fixture.Name, Run(converted), fixture["logits_converted"], tolerance);
            if (Later(fixture) is { } reason)
            {
                string message = Assert.ThrowsExactly<CheckpointFormatException>(() => AdapterFolder.Open(fixture.PathOf("adapter"))).Message;
                StringAssert.Contains(message, reason.Split(' ')[1]);
                done.Add($"{fixture.Name} (converted file only: {reason})");
                continue;
            }
            using AdapterFolder trained = AdapterFolder.Open(fixture.PathOf("adapter"));
            if (trained.Method is LoraOptions { DataStart: not null })
                StringAssert.Contains(Assert.ThrowsExactly<CheckpointFormatException>(() => trained.Attach(tiny.Backbone, tiny.Head).Dispose()).Message, "AdapterLoadOptions.Initial");
            using PeftAdaptation original = trained.Attach(tiny.Backbone, tiny.Head,
                Directory.Exists(fixture.PathOf("initial")) ? new AdapterLoadOptions { Initial = fixture.PathOf("initial") } : null);
            deviations.Add("logits of the trained file", fixture.Name, Run(original), fixture["logits"], tolerance);

            // Of another kind: cut to the rank that the call names. There the targets are written in more than one way.
            double? rank = Regex.Match(fixture.Text("call") ?? "", @"^save_as_lora\(.*\brank=([0-9.]+)\)$") is { Success: true } cut
                ? double.Parse(cut.Groups[1].Value, CultureInfo.InvariantCulture) : null;
            using PeftAdaptation? plain = rank is null ? null : LoraConversion.ToLora(original, rank.Value);
            if (plain is not null) CompareDeltas(fixture, deviations, plain, converted);
            string saved = HfBases.Temporary();
            AdapterFolder.Save(saved, plain ?? original, null, new AdapterSaveOptions { LoadedFrom = trained.Config });
            using AdapterFolder ours = AdapterFolder.Open(saved);
            using PeftAdaptation again = ours.Attach(tiny.Backbone);
            deviations.Add("logits of our conversion", fixture.Name, Run(again), fixture["logits_converted"], tolerance);
            string[] fields = ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights", "use_rslora", .. rank is null ? ["target_modules"] : (string[])[]];
            foreach (string field in fields)
                if (!HfBases.Same(ours.Config[field], file.Config[field]))
                    deviations.Fail($"{fixture.Name}: our converted field {field} is {ours.Config[field]?.ToJsonString()}, expected {file.Config[field]?.ToJsonString()}");
            if (!ours.Names.SequenceEqual(file.Names)) deviations.Fail($"{fixture.Name}: converted keys differ");
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} conversions: {string.Join(", ", done)}");
        deviations.Report();
    }

    // Signs of singular vectors are free: products are compared.
    private static void CompareDeltas(Fixture fixture, Deviations deviations, PeftAdaptation ours, PeftAdaptation theirs)
    {
        double tolerance = (double)fixture.Json["tolerance"]!["delta"]!;
        foreach ((Site site, Patch patch) in theirs.Patches)
        {
            if (!ours.Patches.TryGetValue(site, out Patch? same)) deviations.Fail($"{fixture.Name}: {site} is converted there only");
            else deviations.Add("converted change", $"{fixture.Name} {site.Name}", Delta(same), Delta(patch), tolerance);
        }
        static Tensor Delta(Patch patch) => ((WeightPatch)patch).Terms(null)[0].Delta();
    }

    [TestMethod]
    public void OptimizersEqualPeft()
    {
        var deviations = new Deviations();
        List<string> done = [], later = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Text("optimizer") is not { } call || !fixture.Names.Any(n => n.StartsWith("after1/", StringComparison.Ordinal))) continue;
            bool plus = call.StartsWith("create_loraplus_optimizer", StringComparison.Ordinal), fa = call.StartsWith("create_lorafa_optimizer", StringComparison.Ordinal);
            bool curved = call.StartsWith("create_riemannian_optimizer", StringComparison.Ordinal);
            if (!plus && !fa && !curved)
            {
                later.Add(fixture.Name);
                continue;
            }
            double Number(string name) => double.Parse(Regex.Match(call, $@"\b{name}=([0-9.eE+-]+)").Groups[1].Value, CultureInfo.InvariantCulture);
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            var method = (LoraOptions)file.Method;
            if (plus) method.LoraPlusRatio = Number("loraplus_lr_ratio");
            if (curved) method.RiemannianDamping = Number("reg");
            if (fa) method.LoraFa = LoraFaMode.Project;
            using PeftAdaptation adaptation = file.Attach(tiny.Backbone, tiny.Head);
            adaptation.Attached(tiny.Head!);
            var optimizer = new PlainAdamW(Number("lr"), Number(plus ? "loraplus_weight_decay" : "weight_decay"), fa ? 1e-6 : 1e-8) { FaForm = fa };
            if (fa) foreach (NamedParameter parameter in tiny.Head!.Parameters) parameter.Decay = true;
            SingleAdapterCase.Train(fixture, deviations, adaptation, tiny, optimizer, (double)fixture.Json["tolerance"]!["losses"]!, tiny.Head);
            HfBases.CompareValues(fixture, deviations, "after/", adaptation, tiny, (double)fixture.Json["tolerance"]!["after"]!);
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} optimizers: {string.Join(", ", done)}; later: {string.Join(", ", later)}");
        deviations.Report();
    }
}
