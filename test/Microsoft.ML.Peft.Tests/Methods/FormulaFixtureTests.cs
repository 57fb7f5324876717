// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// SSF and LoFiT against values that were computed from their formulas: outputs, gradients, eight AdamW steps, merged weights,
/// head rankings, preference pairs. What a case holds says which method it is of.
/// </summary>
[TestClass]
[TestCategory("Fixtures")]
public class FormulaFixtureTests
{
    private readonly Deviations _deviations = new();

    private static IEnumerable<Fixture> Cases(Func<Fixture, bool> wanted)
    {
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (wanted(fixture)) yield return fixture;
        }
    }

    private void Each(Func<Fixture, bool> wanted, Action<Fixture, Backbone> check)
    {
        List<string> done = [], later = [];
        foreach (Fixture fixture in Cases(wanted))
        {
            string folder = Path.Combine(Path.GetDirectoryName(fixture.Folder)!, fixture.Text("base")!);
            string type = (string)JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "config.json")))!["model_type"]!;
            if (!BackboneLoader.ModelTypes.Contains(type))
            {
                later.Add($"{fixture.Name} (base {type})");
                continue;
            }
            using var scope = NewDisposeScope();
            using CheckpointFolder checkpoint = CheckpointFolder.Open(folder);
            using Backbone backbone = BackboneLoader.Load(checkpoint, languageHead: type is "gpt2" or "llama");
            check(fixture, backbone);
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} cases run: {string.Join(", ", done)}\nlater: {string.Join(", ", later)}");
        _deviations.Report();
        if (Shared.Cases("adapterhub").Count > 0) Assert.AreNotEqual(0, done.Count);
    }

    private static BackboneOutput Run(Fixture fixture, Backbone backbone, PeftAdaptation? worn, string ids = "input_ids") => Run(fixture, backbone, new Pass(worn?.Table() ?? PatchTable.Empty), ids);

    private static BackboneOutput Run(Fixture fixture, Backbone backbone, Pass pass, string ids = "input_ids") => backbone.Forward(
        fixture.Has("pixel_values") ? TokenBatch.OfImages(fixture["pixel_values"])
            : new TokenBatch(fixture[ids], fixture["attention_mask"], fixture.Has("token_type_ids") ? fixture["token_type_ids"] : null)
            {
                DecoderIds = fixture.Has("decoder_input_ids") ? fixture["decoder_input_ids"] : null,
            }, pass);

    private static Tensor Loss(Fixture fixture, Backbone backbone, PeftAdaptation worn)
    {
        var pass = new Pass(worn.Table());
        BackboneOutput output = Run(fixture, backbone, pass);
        Tensor loss;
        if ((fixture.Text("loss_text") ?? (string)fixture.Json["train"]!["loss"]!).StartsWith("mse", StringComparison.Ordinal))
        {
            Tensor mask = fixture["loss_mask"].to_type(ScalarType.Float32).unsqueeze(-1);
            loss = (mask * (output.Last - fixture["target"]).square()).sum() / (mask.sum() * output.Last.shape[^1]);
        }
        else loss = CausalLanguageHead.Loss(backbone.VocabularyScores(output.Last, pass), fixture["labels"]);
        return worn.ExtraLoss(pass) is { } extra ? loss + extra : loss;
    }

    // Eight steps, with the names of the case for the parameters, and the gradients of the first.
    private void Train(Fixture fixture, PeftAdaptation worn, Func<Tensor> lossOf, Func<string, Tensor?> gradientOf, Func<string, Tensor?> valueOf)
    {
        JsonNode train = fixture.Json["train"]!, tolerances = fixture.Json["tolerances"]!;
        var unstable = fixture.Json["not_compared"]?["tensors"]?.AsArray().Select(n => (string)n!).ToHashSet() ?? [];
        JsonArray losses = train["losses"]!.AsArray();
        var optimizer = new PlainAdamW((double)train["lr"]!, (double)train["weight_decay"]!, (double)train["eps"]!);
        for (int step = 0; step < losses.Count; step++)
        {
            using var scope = NewDisposeScope();
            Tensor loss = lossOf();
            _deviations.Add("loss", $"{fixture.Name} step {step}", Math.Abs(loss.item<float>() - (double)losses[step]!), (double)tolerances["losses"]!);
            if (step == losses.Count - 1) break;
            PlainAdamW.ZeroGradients(worn.Parameters);
            loss.backward();
            if (step == 0)
                foreach ((string key, Tensor expected) in fixture.Under("grad/"))
                    if (gradientOf(key) is { } gradient) _deviations.Add("gradient", $"{fixture.Name} {key}", gradient, expected, (double)tolerances["grad"]!);
                    else _deviations.Fail($"{fixture.Name}: no gradient for {key}");
            optimizer.Step(worn.Parameters);
        }
        foreach ((string key, Tensor expected) in fixture.Under("final/"))
            if (unstable.Contains("final/" + key)) continue;
            else if (valueOf(key) is { } value) _deviations.Add("after training", $"{fixture.Name} {key}", value, expected, (double)tolerances["final"]!);
            else _deviations.Fail($"{fixture.Name}: no parameter {key}");
        optimizer.Dispose();
    }

    private void CompareMerged(Fixture fixture, Backbone folded, double tolerance)
    {
        _deviations.Add("merged output", fixture.Name, Run(fixture, folded, (PeftAdaptation?)null).Last, fixture["out/merged.last_hidden_state"], tolerance);
        foreach ((string name, Tensor expected) in fixture.Under("merged/"))
        {
            var site = (WeightSite)folded.FindSite(name[..name.LastIndexOf('.')])!;
            bool bias = name.EndsWith(".bias", StringComparison.Ordinal);
            Tensor found = bias ? site.Bias! : site is Projection { StoredTransposed: true } ? site.Weight.t() : site.Weight;
            _deviations.Add("merged weight", $"{fixture.Name} {name}", found, expected, 1e-5);
        }
    }

    [TestMethod]
    public void ScalesAndShiftsEqualTheFormula() => Each(
        f => f.Json["config"]?["sites"] is not null && f.Names.Any(n => n.EndsWith(".gamma", StringComparison.Ordinal)), (fixture, backbone) =>
        {
            double tolerance = (double)fixture.Json["tolerance"]!;
            using PeftAdaptation worn = new SsfOptions { IdentityInit = true }.Attach(backbone, 0);
            Assert.AreEqual((long)fixture.Json["trainable"]!["count"]!, worn.TrainableCount, fixture.Name);
            Assert.AreEqual(worn.TrainableCount, worn.Method.CountTrainable(backbone));
            _deviations.Add("identity", fixture.Name, Run(fixture, backbone, worn).Last, fixture["out/identity.last_hidden_state"], tolerance);
            NamedParameter? Find(string key) => worn.Find(backbone.PathOf(backbone.FindSite(key[..key.LastIndexOf('.')])!) + ".ssf_" + key[(key.LastIndexOf('.') + 1)..]);
            foreach ((string key, Tensor value) in fixture.Under("param/")) Find(key)!.Load(value);
            _deviations.Add("output", fixture.Name, Run(fixture, backbone, worn).Last, fixture["out/last_hidden_state"], tolerance);
            using (Backbone folded = Merging.Merge(worn)) CompareMerged(fixture, folded, tolerance);
            Train(fixture, worn, () => Loss(fixture, backbone, worn), key => Find(key)?.Value.grad, key => Find(key)?.Value);
        });

    private static string Head(string key) => string.Join(':', key.Split('.')[1..]);                // v.1.3 -> 1:3

    private static NamedParameter? Offset(PeftAdaptation worn, Backbone backbone, string key)
    {
        string[] parts = key.Split('.');
        AttentionCore core = backbone.Sites.OfType<AttentionCore>().ElementAt(int.Parse(parts[1], System.Globalization.CultureInfo.InvariantCulture));
        return worn.Find($"{backbone.PathOf(core)}.lofit_offset.{parts[2]}");
    }

    private static PeftAdaptation Offsets(Fixture fixture, Backbone backbone)
    {
        PeftAdaptation worn = new LofitOptions { Stage = LofitStage.Tune, Heads = [.. fixture.Under("param/v.").Select(p => Head("v." + p.Name))] }.Attach(backbone, 0);
        foreach ((string key, Tensor value) in fixture.Under("param/")) Offset(worn, backbone, key)!.Load(value);
        return worn;
    }

    private static PeftAdaptation Scales(Backbone backbone, Tensor all, double penalty)
    {
        PeftAdaptation worn = new LofitOptions { Penalty = penalty }.Attach(backbone, 0);
        for (int i = 0; i < worn.Parameters.Count; i++) worn.Parameters[i].Load(all.select(0, i));
        return worn;
    }

    [TestMethod]
    public void OffsetsOfHeadsEqualTheFormula() => Each(f => f.Json["config"]?["heads"] is not null && f.Has("scaling"), (fixture, backbone) =>
    {
        double tolerance = (double)fixture.Json["tolerance"]!;
        using PeftAdaptation worn = Offsets(fixture, backbone), scales = Scales(backbone, fixture["scaling"], 0);
        Assert.AreEqual((long)fixture.Json["trainable"]!["count"]!, worn.TrainableCount, fixture.Name);
        CollectionAssert.AreEquivalent(fixture.Json["config"]!["heads"]!.AsArray().Select(h => $"{h![0]}:{h[1]}").ToArray(), ((LofitOptions)worn.Method).Heads);
        BackboneOutput output = Run(fixture, backbone, worn);
        _deviations.Add("output", fixture.Name, output.Last, fixture["out/last_hidden_state"], tolerance);
        if (fixture.Has("out/logits")) _deviations.Add("logits", fixture.Name, backbone.VocabularyScores(output.Last, new Pass()), fixture["out/logits"], tolerance);
        // Scaled first, shifted after: the offsets are the inner patch, whose input is the projection's own.
        if (fixture.Has("out/scaled_and_offset.last_hidden_state"))
            _deviations.Add("scaled and shifted", fixture.Name, Run(fixture, backbone, new Pass(HfBases.Stack(worn, scales))).Last, fixture["out/scaled_and_offset.last_hidden_state"], tolerance);
        using (Backbone folded = Merging.Merge(worn)) CompareMerged(fixture, folded, tolerance);
        Train(fixture, worn, () => Loss(fixture, backbone, worn), key => Offset(worn, backbone, key)?.Value.grad, key => Offset(worn, backbone, key)?.Value);
    });

    [TestMethod]
    public void SelectionOfHeadsEqualsTheFormula() => Each(f => f.Json["config"]?["lambda"] is not null && f.Has("param/a"), (fixture, backbone) =>
    {
        using PeftAdaptation worn = Scales(backbone, fixture["param/a"], (double)fixture.Json["config"]!["lambda"]!);
        Assert.AreEqual((long)fixture.Json["trainable"]!["count"]!, worn.TrainableCount, fixture.Name);
        _deviations.Add("output", fixture.Name, Run(fixture, backbone, worn).Last, fixture["out/last_hidden_state"], (double)fixture.Json["tolerance"]!);
        // Recorded without its factor.
        if (fixture.Has("out/penalty")) _deviations.Add("penalty", fixture.Name, worn.ExtraLoss(new Pass())!.reshape(1) / (double)fixture.Json["config"]!["lambda"]!, fixture["out/penalty"], 1e-5);
        Tensor? All(Func<NamedParameter, Tensor?> of) => worn.Parameters.All(p => of(p) is not null) ? stack([.. worn.Parameters.Select(p => of(p)!.detach())]) : null;
        Train(fixture, worn, () => Loss(fixture, backbone, worn), _ => All(p => p.Value.grad), _ => All(p => p.Value));
        IReadOnlyList<LofitHead> ranking = LofitOptions.Ranking(worn);
        string expected = string.Join(" ", fixture.Json["ranking_after_training"]!.AsArray().Select(h => $"{h![0]}:{h[1]}"));
        Assert.AreEqual(expected, string.Join(" ", ranking.Select(h => h.Name)), fixture.Name);
        foreach (LofitHead head in ranking)
            _deviations.Add("score", $"{fixture.Name} {head.Name}", Math.Abs(head.Score - fixture["out/scores_after_training"][head.Attention, head.Head].item<float>()), 1e-4);
        CollectionAssert.AreEqual(ranking.Take(2).Select(h => h.Name).ToArray(), LofitOptions.Best(worn, 2).Heads);
    });

    [TestMethod]
    public void OffsetsTrainOnPreferencePairs() => Each(f => f.Json["config"]?["beta"] is not null && f.Has("chosen.input_ids") && f.Has("out/margin"), (fixture, backbone) =>
    {
        double beta = (double)fixture.Json["config"]!["beta"]!, tolerance = (double)fixture.Json["tolerance"]!;
        using PeftAdaptation worn = Offsets(fixture, backbone);
        Tensor LogProbability(string side, PeftAdaptation? with)
        {
            Tensor scores = backbone.VocabularyScores(Run(fixture, backbone, with, side + ".input_ids").Last, new Pass()), labels = fixture[side + ".labels"];
            Tensor next = labels.narrow(1, 1, labels.shape[1] - 1), counts = next.ne(-100);
            Tensor all = nn.functional.log_softmax(scores.narrow(1, 0, next.shape[1]), -1);
            return (all.gather(2, next.clamp_min(0).unsqueeze(-1)).squeeze(-1) * counts.to_type(ScalarType.Float32)).sum(1L);
        }
        Tensor chosenReference, rejectedReference;
        using (no_grad()) (chosenReference, rejectedReference) = (LogProbability("chosen", null), LogProbability("rejected", null));
        Tensor Margin() => LogProbability("chosen", worn) - chosenReference - (LogProbability("rejected", worn) - rejectedReference);
        _deviations.Add("reference", fixture.Name, chosenReference, fixture["out/chosen.reference_logp"], tolerance);
        _deviations.Add("margin", fixture.Name, Margin(), fixture["out/margin"], tolerance);
        Train(fixture, worn, () => nn.functional.softplus(Margin() * -beta).mean(), key => Offset(worn, backbone, key)?.Value.grad, key => Offset(worn, backbone, key)?.Value);
        using (no_grad())
            foreach (NamedParameter parameter in worn.Parameters) parameter.Value.fill_(0);
        _deviations.Add("loss without offsets", fixture.Name, Math.Abs(nn.functional.softplus(Margin() * -beta).mean().item<float>() - Math.Log(2)), 1e-6);
    });

    [TestMethod]
    public void ScalesEqualAdapterHub() => Each(f => f.Json["config"] is JsonObject config && Ia3AdapterHub.Describes(config) && f.Has("on.last_hidden_state"), (fixture, backbone) =>
    {
        double tolerance = (double)fixture.Json["tolerance"]!;
        string folder = fixture.PathOf("adapter");
        using PeftAdaptation worn = AdapterHubFolder.Attach(folder, backbone);
        Assert.AreEqual((long)fixture.Json["trainable"]!["count"]!, worn.TrainableCount, fixture.Name);
        _deviations.Add("output", fixture.Name, Run(fixture, backbone, worn).Last, fixture["on.last_hidden_state"], tolerance);
        using (PeftAdaptation fresh = worn.Method.Attach(backbone, 3))
            _deviations.Add("fresh", fixture.Name, Run(fixture, backbone, fresh).Last, fixture["base.last_hidden_state"], tolerance);
        // The package forgets the bias in merging; what is right is what the adapter gives unmerged.
        using (Backbone folded = Merging.Merge(worn)) _deviations.Add("merged output", fixture.Name, Run(fixture, folded, (PeftAdaptation?)null).Last, fixture["on.last_hidden_state"], tolerance);

        var root = JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "adapter_config.json")))!.AsObject();
        using SafetensorsFile theirs = SafetensorsFile.Open(Path.Combine(folder, AdapterHubFolder.WeightsFile));
        string saved = HfBases.Temporary(), key = theirs.Names[0], name = (string)root["name"]!;
        string prefix = new[] { "", "bert.", "transformer.", "roberta.", "vit.", "model." }.First(p => key.StartsWith(p, StringComparison.Ordinal) && backbone.FindSite(key[p.Length..key.IndexOf(".loras.", StringComparison.Ordinal)]) is { } site && p + site.Name == key[..key.IndexOf(".loras.", StringComparison.Ordinal)]);
        Ia3AdapterHub.Save(saved, worn, name, root, prefix);
        Assert.AreEqual(File.ReadAllText(Path.Combine(folder, "adapter_config.json")).TrimEnd(), File.ReadAllText(Path.Combine(saved, "adapter_config.json")).TrimEnd(), fixture.Name);
        using SafetensorsFile ours = SafetensorsFile.Open(Path.Combine(saved, AdapterHubFolder.WeightsFile));
        CollectionAssert.AreEqual(theirs.Names.ToArray(), ours.Names.ToArray(), fixture.Name);
        Assert.IsTrue(theirs.Names.All(n => theirs.Bytes(n).SequenceEqual(ours.Bytes(n))), fixture.Name);

        foreach (NamedParameter parameter in worn.Parameters) parameter.Decay = true;            // that recipe decays everything
        NamedParameter? Find(string of) => worn.Parameters.FirstOrDefault(p => of.EndsWith(p.Name[(backbone.Prefix.Length == 0 ? 0 : backbone.Prefix.Length + 1)..^".ia3_l".Length] + $".loras.{name}.lora_B", StringComparison.Ordinal));
        Train(fixture, worn, () => Loss(fixture, backbone, worn), of => Find(of)?.Value.grad, of => Find(of)?.Value);
    });
}
