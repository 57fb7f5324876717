// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>One case of hf-peft with one adapter, compared in everything that it records.</summary>
internal sealed class SingleAdapterCase(Fixture fixture, Deviations deviations)
{
    private double Tolerance(string kind) => (double)fixture.Json["tolerance"]![kind]!;

    // A method that starts at the base, but not in the reference, whose merged weight says otherwise: its forward is wrong there.
    private bool FollowsMerged { get; set; }

    public void Run()
    {
        using TinyBase tiny = HfBases.Load(fixture);
        using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
        GiveRows(file);
        FollowsMerged = file.Method.ExactAtStart && (double?)fixture.Json["init"]?["max_abs_diff_to_base"] > 0.01
            && (double?)fixture.Json["merge"]?["max_abs_diff_to_adapter"] > 0.01;
        var batch = new FixtureBatch(fixture);
        Head? head = AdapterConfig.Get<string?>(file.Config, "task_type", null) == "FEATURE_EXTRACTION" ? null : tiny.Head;

        PeftMethod method = Trainable(file);
        bool restacked;
        using (no_grad())
        {
            deviations.Add("base logits", fixture.Name, batch.Forward(tiny.Backbone, head, new Pass()).Logits, fixture["logits_base"], Tolerance("logits"));
            restacked = tiny.Restack(file.Method);
            Fresh(tiny, head, method, file, batch);
        }

        using PeftAdaptation adaptation = file.Attach(tiny.Backbone, head, Reading(file));
        using PeftAdaptation? whole = Whole(method, tiny, head, file);
        PeftAdaptation trained = whole ?? adaptation;
        CompareTrainable(trained, head, tiny.Backbone);
        CompareFiles(adaptation, head, file);
        using (no_grad())
        {
            (Tensor logits, Tensor hidden) = batch.Forward(tiny.Backbone, head, new Pass(adaptation.Table()), adaptation);
            deviations.Add("logits", fixture.Name, logits, fixture[FollowsMerged ? "logits_merged" : "logits"], Tolerance("logits"));
            if (fixture.Has("hidden") && !FollowsMerged) deviations.Add("hidden", fixture.Name, hidden, fixture["hidden"], Tolerance("logits"));
            Merged(adaptation, tiny, head, batch);
        }
        Assert.IsTrue(trained.Parameters.Sum(p => p.Value.numel()) > 0);
        if (trained.Parameters.Any(p => p.TurnedCopies.Count > 0)) SharedTwice(trained, tiny, head);
        else if (!FollowsMerged)
        {
            Train(fixture, deviations, trained, tiny, new PlainAdamW(0.01, 0), Tolerance("losses"), head);
            using PeftAdaptation? folded = whole is null ? null : method.ToExchange(whole);
            HfBases.CompareValues(fixture, deviations, "after/", trained, tiny, Tolerance("after"), folded);
        }

        // Detached, the base is what it was; the case's disabled output is that of the reference, which is not always the base.
        tiny.ResetHead();
        using (no_grad())
        {
            Tensor off = batch.Forward(tiny.Backbone, head, new Pass()).Logits;
            if (!restacked) deviations.Add("detached logits", fixture.Name, off, fixture["logits_base"], Tolerance("logits"));
            if (restacked || (double?)fixture.Json["disabled_equals_base_max_abs_diff"] < 1e-5)
                deviations.Add("disabled logits", fixture.Name, off, fixture["logits_disabled"], Tolerance("logits"));
        }
    }

    // There the optimizer moves both names of a shared tensor, so that it steps twice; what comes before the first step is compared.
    private void SharedTwice(PeftAdaptation adaptation, TinyBase tiny, Head? head)
    {
        using var scope = NewDisposeScope();
        var batch = new FixtureBatch(fixture);
        var pass = new Pass(adaptation.Table());
        (Tensor logits, _) = batch.Forward(tiny.Backbone, head, pass, adaptation);
        Tensor loss = batch.Loss(logits, adaptation, pass);
        deviations.Add("loss", $"{fixture.Name} step 0", Math.Abs(loss.item<float>() - (double)fixture.Json["losses"]![0]!), Tolerance("losses"));
        loss.backward();
        HfBases.CompareGradients(fixture, deviations, adaptation, tiny, Tolerance("grad"));
        using (no_grad())
        {
            using Backbone folded = Merging.Merge(adaptation);
            deviations.Add("merged logits", fixture.Name, batch.Forward(folded, head, new Pass()).Logits, logits, Tolerance("logits"));
        }
        Console.WriteLine($"{fixture.Name}: losses after step 0 and after/* are left out: the reference's optimizer steps the shared tensor twice, once under each name");
    }

    // Some files hold a folded form that is not trained; what the configuration alone says is.
    private PeftMethod Trainable(AdapterFolder file)
    {
        if (!Unfolded().Any()) return file.Method;
        PeftMethod method = PeftMethods.Create(file.Method.Id);
        method.ReadHuggingFace(file.Config);
        return method;
    }

    // Tensors before folding, by their keys in files; those of prompt encoders are named by themselves.
    private IEnumerable<(string Key, Tensor Value)> Unfolded() =>
        fixture.Under("full/").Concat(fixture.Under("encoder/").Select(t => ("prompt_encoder." + t.Name, t.Value)));

    // The adapter before it was folded: the same output, and the same file once saved for others.
    private PeftAdaptation? Whole(PeftMethod method, TinyBase tiny, Head? head, AdapterFolder file)
    {
        if (ReferenceEquals(method, file.Method)) return null;
        PeftAdaptation whole = method.Attach(tiny.Backbone, seed: 0);
        using SafetensorsFile theirs = SafetensorsFile.Open(fixture.PathOf("adapter", "adapter_model.safetensors"));
        foreach (string key in theirs.Names)
            if (HfBases.Find(key, whole, tiny) is { } kept) kept.Load(Fixture.Read(theirs, key));
        foreach ((string key, Tensor value) in Unfolded())
        {
            if (HfBases.Find(key, whole, tiny) is { } parameter) parameter.Load(value);
            else deviations.Fail($"{fixture.Name}: no parameter for the unfolded {key}");
        }
        using (no_grad())
        {
            Tensor logits = new FixtureBatch(fixture).Forward(tiny.Backbone, head, new Pass(whole.Table())).Logits;
            deviations.Add("logits before folding", fixture.Name, logits, fixture["logits"], Tolerance("logits"));
        }
        string saved = HfBases.Temporary();
        AdapterFolder.Save(saved, whole, head, new AdapterSaveOptions { LoadedFrom = file.Config });
        using AdapterFolder folded = AdapterFolder.Open(saved);
        if (!folded.Names.SequenceEqual(file.Names)) deviations.Fail($"{fixture.Name}: keys of the folded file differ");
        using SafetensorsFile ours = SafetensorsFile.Open(Path.Combine(saved, "adapter_model.safetensors"));
        foreach (string name in folded.Names.Intersect(file.Names))
            deviations.Add("folded file", $"{fixture.Name} {name}", Fixture.Read(ours, name), Fixture.Read(theirs, name), 1e-5);
        return whole;
    }

    private void Fresh(TinyBase tiny, Head? head, PeftMethod method, AdapterFolder file, FixtureBatch batch)
    {
        using PeftAdaptation fresh = method.Attach(tiny.Backbone, seed: 7);
        PeftAdaptation[] others = [.. Enumerable.Range(8, 5).Select(seed => method.Attach(tiny.Backbone, seed))];
        Tensor logits = batch.Forward(tiny.Backbone, head, new Pass(fresh.Table()), fresh).Logits;
        double promised = file.Method is LoraOptions { Init: "default" or "gaussian" } ? 1e-6 : 1e-4;
        if (method.ExactAtStart) deviations.Add("fresh logits", fixture.Name, logits, batch.Forward(tiny.Backbone, head, new Pass()).Logits, promised);
        if (method.CountTrainable(tiny.Backbone) != fresh.TrainableCount)
            deviations.Fail($"{fixture.Name}: the formula says {method.CountTrainable(tiny.Backbone)} trained numbers, there are {fresh.TrainableCount}");
        foreach ((string key, JsonNode? stats) in fixture.Json["init"]!["parameters"]!.AsObject())
        {
            if (HfBases.Find(key, fresh, tiny) is not { } parameter) deviations.Fail($"{fixture.Name}: no parameter for the initial values of {key}");
            else if (!tiny.Head?.Parameters.Contains(parameter) ?? true) CompareStart(parameter, [.. others.Select(o => HfBases.Find(key, o, tiny)!)], stats!.AsObject(), key, file);
        }
        foreach (PeftAdaptation other in others) other.Dispose();
        if (file.Method is FrodOptions) CompareBasis(fresh, tiny);
        if (file.Method is LoraOptions { Init: "pissa" or "olora" or "mica" } lora) CompareDecompositions(lora, fresh, tiny);
    }

    // Directions of the shared basis that are equally strong may turn into each other; how strong they are is the same.
    private void CompareBasis(PeftAdaptation fresh, TinyBase tiny)
    {
        foreach ((string key, Tensor expected) in fixture.Under("init/").Where(t => t.Name.EndsWith(".frod_lambda_l", StringComparison.Ordinal)))
            deviations.Add("start of lambda", $"{fixture.Name} {key}", HfBases.Find(key, fresh, tiny)!.Value, expected, 5e-3);
    }

    // Signs of singular vectors are free: products and magnitudes are compared.
    private void CompareDecompositions(LoraOptions lora, PeftAdaptation fresh, TinyBase tiny)
    {
        foreach ((string key, Tensor a) in fixture.Under("init/").Where(t => t.Name.EndsWith(".lora_A.weight", StringComparison.Ordinal)))
        {
            string keyB = key.Replace("lora_A", "lora_B", StringComparison.Ordinal);
            Tensor oursA = HfBases.Find(key, fresh, tiny)!.Value, oursB = HfBases.Find(keyB, fresh, tiny)!.Value, b = fixture["init/" + keyB];
            string path = key["base_model.model.".Length..^".lora_A.weight".Length];
            deviations.Add("start s B A", $"{fixture.Name} {key}", oursB.matmul(oursA) * lora.ScaleAt(path), b.matmul(a) * lora.ScaleAt(path), 2e-5);
            deviations.Add("start |B|", $"{fixture.Name} {keyB}", oursB.abs(), b.abs(), 1e-4);
            if (!fixture.Has($"init_base/{path}.weight")) continue;
            var site = (WeightSite)tiny.Backbone.FindSite(path)!;
            Tensor rest = site.Weight - oursB.matmul(oursA) * lora.ScaleAt(path);
            deviations.Add("changed base", $"{fixture.Name} {path}", AsStored(site, rest), fixture[$"init_base/{path}.weight"], 2e-5);
        }
    }

    // Random values have other numbers here; their spread must be the same.
    private void CompareStart(NamedParameter parameter, IReadOnlyList<NamedParameter> others, JsonObject stats, string key, AdapterFolder file)
    {
        Tensor value = parameter.Value.detach();
        if ((double?)stats["constant"] is { } constant)
        {
            deviations.Add("constant start", $"{fixture.Name} {key}", value, full_like(value, constant), 1e-6);
            return;
        }
        if (value.numel() < 16) return;                                          // the spread of a few numbers says nothing
        double spread = value.std().item<float>(), expected = (double)stats["std"]!;
        // Values that are computed from the base are the same up to signs; the spread of n random ones is known to about 1/√(2n).
        if (file.Config["init_lora_weights"] is JsonValue init && init.TryGetValue(out string? data) && data is "eva" or "lora_ga" or "corda") return;   // made of data
        bool random = key.Contains("lora_A", StringComparison.Ordinal) || key.Contains("embedding", StringComparison.Ordinal) || file.Method is not LoraOptions { Init: "pissa" or "olora" };
        // Values that follow from fewer random numbers than they are (a projected weight) vary more: as much as over seeds.
        double[] logs = [.. others.Select(o => Math.Log(o.Value.detach().std().item<float>()))];
        double mean = logs.Average(), varies = Math.Sqrt(logs.Sum(l => (l - mean) * (l - mean)) / (logs.Length - 1));
        deviations.Add("spread of the start", $"{fixture.Name} {key}", Math.Abs(Math.Log(spread / expected)), (random ? 4 / Math.Sqrt(value.numel()) : 0.05) + 4 * varies);
    }

    // A start by random numbers or by data cannot be repeated: the untrained adapter is written from the case.
    private AdapterLoadOptions Reading(AdapterFolder file)
    {
        if (file.Method is not LoraOptions lora || !(lora.Init.StartsWith("pissa_niter_", StringComparison.Ordinal) || lora.DataStart is { ChangesBase: true }))
            return new AdapterLoadOptions();
        string folder = HfBases.Temporary();
        var writer = new SafetensorsWriter();
        foreach ((string key, Tensor value) in fixture.Under("init/")) AdapterTensors.Add(writer, key, value);
        writer.Save(Path.Combine(folder, AdapterFolder.WeightsFile));
        return new AdapterLoadOptions { Initial = folder };
    }

    // Rows of clusters that the file does not hold and the case records, by module and number.
    private void GiveRows(AdapterFolder file)
    {
        if (file.Method is not AdamssOptions options) return;
        foreach (var module in fixture.Under("rows/").GroupBy(r => r.Name[..r.Name.LastIndexOf('.')]))
            options.Rows[module.Key] = [.. module.OrderBy(r => r.Name.Length).ThenBy(r => r.Name, StringComparer.Ordinal).Select(r => r.Value.to_type(ScalarType.Int32).data<int>().ToArray())];
    }

    private void CompareTrainable(PeftAdaptation adaptation, Head? head, Backbone backbone)
    {
        bool bare = head is null;
        // Prompts go by their own names, which are not those of the folded file.
        string prefix = adaptation.Method.FilePrefix;
        string Key(NamedParameter p) => prefix == "base_model." && p.FileKey is not null ? p.Name
            : p.FileKey?.Replace(".default", "", StringComparison.Ordinal) ?? prefix + (bare && p.Name.StartsWith(backbone.Prefix + ".", StringComparison.Ordinal) ? p.Name[(backbone.Prefix.Length + 1)..] : p.Name);
        Dictionary<string, long[]> ours = adaptation.Parameters.Concat(head?.Parameters ?? []).Where(p => p.Trainable).ToDictionary(Key, p => p.Value.shape);
        // A tensor that two modules use, one of them turned, is two parameters over one storage there.
        foreach (NamedParameter p in adaptation.Parameters.Where(p => p.Trainable))
            foreach (string copy in p.TurnedCopies) ours[prefix + copy] = [.. p.Value.shape.Reverse()];
        var config = JsonNode.Parse(File.ReadAllText(fixture.PathOf("adapter", "adapter_config.json")))!.AsObject();
        IReadOnlyList<string> whole = AdapterConfig.List<string>(config, "modules_to_save");
        if (AdapterConfig.Get<string?>(config, "task_type", null) is null)
            foreach (NamedParameter p in head?.Parameters ?? [])
                if (!whole.Any(module => TargetMatcher.Names(module, p.Name[..p.Name.LastIndexOf('.')]))) ours.Remove(Key(p));
        long count = 0;
        foreach (JsonNode? entry in fixture.Json["trainable"]!.AsArray())
        {
            string name = ((string)entry![0]!).Replace(".modules_to_save.default", "", StringComparison.Ordinal).Replace(".default", "", StringComparison.Ordinal);
            if (name.EndsWith(".lora_magnitude_vector.weight", StringComparison.Ordinal)) name = name[..^".weight".Length];
            name = ModuleNames.ToCheckpoint(backbone.Config.ModelType, name);
            long[] shape = [.. entry[1]!.AsArray().Select(n => (long)n!)];
            count += shape.Aggregate(1L, (a, b) => a * b);
            // A tensor that modules share goes by the name of the first.
            if (!ours.ContainsKey(name)) name = ours.Keys.FirstOrDefault(key => !key.StartsWith("base_model.model.", StringComparison.Ordinal) && name.EndsWith(key[key.IndexOf('.')..], StringComparison.Ordinal)) ?? name;
            if (!ours.Remove(name, out long[]? found)) deviations.Fail($"{fixture.Name}: {name} should be trained");
            else if (!found.SequenceEqual(shape)) deviations.Fail($"{fixture.Name}: {name} has shape [{string.Join(", ", found)}], expected [{string.Join(", ", shape)}]");
        }
        if (ours.Count > 0) deviations.Fail($"{fixture.Name}: trained here only: {string.Join(", ", ours.Keys)}");
        if (count != (long)fixture.Json["trainable_parameters"]!) deviations.Fail($"{fixture.Name}: count of the trained numbers");
    }

    private void CompareFiles(PeftAdaptation adaptation, Head? head, AdapterFolder file)
    {
        bool withHead = file.Names.Any(n => head?.Parameters.Any(p => n == adaptation.Method.FilePrefix + p.Name) == true);
        var options = new AdapterSaveOptions { KeepInitialisation = true, LoadedFrom = file.Config };
        string once = HfBases.Temporary(), twice = HfBases.Temporary();
        AdapterFolder.Save(once, adaptation, withHead ? head : null, options);
        string expectedConfig = File.ReadAllText(fixture.PathOf("adapter", "adapter_config.json"));
        if (File.ReadAllText(Path.Combine(once, "adapter_config.json")) != expectedConfig) deviations.Fail($"{fixture.Name}: saved adapter_config.json differs from the loaded one");
        using AdapterFolder again = AdapterFolder.Open(once);
        string[] expected = [.. file.Names.Where(n => !n.Contains(".original_module.", StringComparison.Ordinal) && !n.Contains(".modules_to_save.", StringComparison.Ordinal))];
        if (!again.Names.SequenceEqual(expected))
            deviations.Fail($"{fixture.Name}: keys differ: {string.Join(", ", again.Names.Except(expected).Concat(expected.Except(again.Names)))}");
        if (expected.Length == file.Names.Count && !File.ReadAllBytes(Path.Combine(once, "adapter_model.safetensors")).AsSpan()
            .SequenceEqual(File.ReadAllBytes(fixture.PathOf("adapter", "adapter_model.safetensors"))))
            deviations.Fail($"{fixture.Name}: saved adapter_model.safetensors differs from the loaded one");
        GiveRows(again);
        using PeftAdaptation reloaded = again.Attach(adaptation.Backbone, withHead ? head : null, Reading(file));
        AdapterFolder.Save(twice, reloaded, withHead ? head : null, new AdapterSaveOptions { KeepInitialisation = true, LoadedFrom = again.Config });
        foreach (string name in (string[])["adapter_config.json", "adapter_model.safetensors"])
            if (!File.ReadAllBytes(Path.Combine(once, name)).AsSpan().SequenceEqual(File.ReadAllBytes(Path.Combine(twice, name))))
                deviations.Fail($"{fixture.Name}: {name} is not stable over saving and loading");

        // A configuration of our own says the same, field by field.
        var own = new JsonObject();
        adaptation.Method.WriteHuggingFace(own, adaptation.Backbone);
        foreach ((string field, JsonNode? value) in own)
            if (field is not "modules_to_save" && !HfBases.Same(value, file.Config[field]) && !AboutTheStart(field, file))
                deviations.Fail($"{fixture.Name}: our field {field} is {value?.ToJsonString()}, expected {file.Config[field]?.ToJsonString()}");
    }

    // A start that only mattered when the adapter was fresh is not carried on.
    private static bool AboutTheStart(string field, AdapterFolder file) =>
        (field is "init_lora_weights" or "eva_config" && (string?)file.Config["init_lora_weights"] == "eva")
        || (field is "layers_pattern" or "layers_to_transform" && HfBases.Same(file.Config[field] is JsonArray { Count: 1 } one ? one[0] : file.Config[field], null));

    private void Merged(PeftAdaptation adaptation, TinyBase tiny, Head? head, FixtureBatch batch)
    {
        if (fixture.Json["merge"] is not JsonObject { } merge || !(bool)merge["supported"]!) return;
        using Backbone folded = Merging.Merge(adaptation);
        deviations.Add("merged logits", fixture.Name, batch.Forward(folded, head, new Pass()).Logits, fixture["logits_merged"], Tolerance("logits"));
        foreach ((string name, Tensor expected) in fixture.Under("merged/"))
        {
            bool bias = name.EndsWith(".bias", StringComparison.Ordinal);
            var site = (WeightSite?)(folded.FindSite(name[..name.LastIndexOf('.')]) ?? folded.FindSite(name));
            if (site is null) deviations.Fail($"{fixture.Name}: no site for merged/{name}");
            else deviations.Add("merged weight", $"{fixture.Name} {name}", bias ? site.Bias! : AsStored(site, site.Weight), expected, Tolerance("merged"));
        }
    }

    private static Tensor AsStored(WeightSite site, Tensor weight) => site is Projection { StoredTransposed: true } ? weight.t() : weight;

    /// <summary>Eight steps on the batch of the case, with the losses before each and after the last, and the first gradients.</summary>
    public static void Train(Fixture fixture, Deviations deviations, PeftAdaptation adaptation, TinyBase tiny, PlainAdamW optimizer, double tolerance, Head? head)
    {
        bool headTrained = head is not null && fixture.Names.Any(n => head.Parameters.Any(p => n == $"after/{adaptation.Method.FilePrefix}{p.Name}"));
        NamedParameter[] parameters = [.. adaptation.Parameters, .. headTrained ? head!.Parameters : []];
        var batch = new FixtureBatch(fixture);
        JsonArray losses = fixture.Json["losses"]!.AsArray();
        for (int step = 0; step < losses.Count; step++)
        {
            using var scope = NewDisposeScope();
            var pass = new Pass(adaptation.Table());
            Tensor loss = batch.Loss(batch.Forward(tiny.Backbone, head, pass, adaptation).Logits, adaptation, pass);
            // The reference adds a method's own term where the model's output has a loss to add it to.
            if (tiny.Backbone is not PlainBase && adaptation.ExtraLoss(pass) is { } extra) loss = loss + extra;
            deviations.Add("loss", $"{fixture.Name} step {step}", Math.Abs(loss.item<float>() - (double)losses[step]!), tolerance);
            if (step == losses.Count - 1) break;
            PlainAdamW.ZeroGradients(parameters);
            loss.backward();
            if (step == 0 && (double?)fixture.Json["tolerance"]!["grad"] is { } gradTolerance) HfBases.CompareGradients(fixture, deviations, adaptation, tiny, gradTolerance);
            adaptation.BeforeStep(step);
            optimizer.Step(parameters);
            // The plain trajectories of AdaLoRA and AdaMSS were run without their allocators.
            if (adaptation.Method is not (AdaLoraOptions or AdamssOptions)) adaptation.AfterStep(step);
            if (step == 0) HfBases.CompareValues(fixture, deviations, "after1/", adaptation, tiny, (double?)fixture.Json["tolerance"]!["after1"] ?? 1e-5);
        }
        optimizer.Dispose();
    }
}
