// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// Methods that no package carries, against values that were computed from their formulas: hypercomplex products, stochastic
/// depth, ladders, query tokens; and MTL-LoRA's tasks in one batch. What a case's configuration holds says which it is of.
/// </summary>
[TestClass]
[TestCategory("Fixtures")]
public class AdapterHubFormulaTests
{
    private readonly Deviations _deviations = new();

    private void Each(string[] fields, Action<Fixture, Backbone?> check)
    {
        int count = 0;
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["config"] is not JsonObject config || !fields.All(config.ContainsKey) || File.Exists(fixture.PathOf("adapter", "adapter_config.json"))) continue;
            using var scope = NewDisposeScope();
            if (fixture.Text("base") is null) check(fixture, null);
            else
            {
                using CheckpointFolder checkpoint = CheckpointFolder.Open(AdapterHubCase.BaseOf(fixture)!);
                using Backbone backbone = BackboneLoader.Load(checkpoint, languageHead: fixture.Has("out/logits") && !fixture.Has("pixel_values"));
                check(fixture, backbone);
            }
            Console.WriteLine($"run: {fixture.Name}");
            count++;
        }
        _deviations.Report();
        if (Shared.Cases("adapterhub").Count > 0) Assert.AreNotEqual(0, count);
    }

    // Eight AdamW steps; parameters by the case's names.
    private void Train(Fixture fixture, IReadOnlyDictionary<string, NamedParameter> parameters, Func<Tensor> lossOf)
    {
        JsonNode train = fixture.Json["train"]!, tolerances = fixture.Json["tolerances"]!;
        JsonArray losses = train["losses"]!.AsArray();
        var unstable = fixture.Json["not_compared"]?["tensors"]?.AsArray().Select(n => (string)n!).ToHashSet() ?? [];
        var optimizer = new PlainAdamW((double)train["lr"]!, (double)train["weight_decay"]!, (double)train["eps"]!);
        foreach (NamedParameter parameter in parameters.Values) parameter.Decay = true;
        for (int step = 0; step < losses.Count; step++)
        {
            using var scope = NewDisposeScope();
            Tensor loss = lossOf();
            _deviations.Add("loss", $"{fixture.Name} step {step}", Math.Abs(loss.item<float>() - (double)losses[step]!), (double)tolerances["losses"]!);
            if (step == losses.Count - 1) break;
            PlainAdamW.ZeroGradients(parameters.Values);
            loss.backward();
            if (step == 0) Gradients(fixture, parameters);
            optimizer.Step(parameters.Values);
        }
        foreach ((string key, Tensor expected) in fixture.Under("final/"))
            if (unstable.Contains("final/" + key)) continue;
            else if (!parameters.TryGetValue(key, out NamedParameter? parameter)) _deviations.Fail($"{fixture.Name}: no parameter {key}");
            else _deviations.Add("after training", $"{fixture.Name} {key}", parameter.Value, expected.reshape(parameter.Value.shape), (double)tolerances["final"]!);
        optimizer.Dispose();
    }

    private void Gradients(Fixture fixture, IReadOnlyDictionary<string, NamedParameter> parameters)
    {
        foreach ((string key, Tensor expected) in fixture.Under("grad/"))
            if (parameters.TryGetValue(key, out NamedParameter? parameter) && parameter.Value.grad is { } gradient)
                _deviations.Add("gradient", $"{fixture.Name} {key}", gradient, expected.reshape(gradient.shape), (double)fixture.Json["tolerances"]!["grad"]!);
            else _deviations.Fail($"{fixture.Name}: no gradient for {key}");
    }

    private void Counted(Fixture fixture, PeftAdaptation adaptation, long beside = 0)
    {
        long expected = (long)fixture.Json["trainable"]!["count"]!;
        if (adaptation.TrainableCount + beside != expected || adaptation.Method.CountTrainable(adaptation.Backbone) + beside != expected)
            _deviations.Fail($"{fixture.Name}: {adaptation.TrainableCount} + {beside} trained, by formula {adaptation.Method.CountTrainable(adaptation.Backbone)}, expected {expected}");
    }

    // The values of a case, under its names.
    private static Dictionary<string, NamedParameter> Filled(Fixture fixture, IEnumerable<NamedParameter> parameters, Func<string, string> nameOf)
    {
        Dictionary<string, NamedParameter> named = parameters.ToDictionary(p => nameOf(p.Name));
        foreach ((string key, Tensor value) in fixture.Under("param/")) named[key].Load(value.reshape(named[key].Value.shape));
        Assert.AreEqual(fixture.Under("param/").Count(), named.Count, $"{fixture.Name}: parameters {string.Join(", ", named.Keys)}");
        return named;
    }

    [TestMethod]
    public void HypercomplexProductsAreKroneckerSums() => EachProduct((fixture, key, layer) =>
    {
        double tolerance = (double)fixture.Json["tolerance"]!;
        Tensor Trained(string name) => fixture[$"param/{key}.{name}"].requires_grad_();
        Tensor rule = Trained("rule"), left = Trained("left"), right = Trained("right"), bias = Trained("bias");
        Tensor weights = left.matmul(right), y = PhmProduct.Apply(fixture[$"{key}.x"], rule, weights, bias);
        _deviations.Add("weight", $"{fixture.Name} {key}", PhmProduct.Weight(rule, weights), fixture[$"out/{key}.weight"], tolerance);
        _deviations.Add("product", $"{fixture.Name} {key}", y, fixture[$"out/{key}.y"], tolerance);
        Tensor loss = (y * fixture[$"{key}.upstream"]).sum();
        loss.backward();
        foreach ((string name, Tensor value) in new[] { ("rule", rule), ("left", left), ("right", right), ("bias", bias) })
            _deviations.Add("gradient", $"{fixture.Name} {key} {name}", value.grad!, fixture[$"grad/{key}.{name}"], (double)fixture.Json["tolerances"]!["grad"]!);
        return loss.item<float>();
    });

    private void EachProduct(Func<Fixture, string, JsonObject, float> check)
    {
        int count = 0;
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Json.ContainsKey("matrix_rank_of_weight")) continue;
            using var scope = NewDisposeScope();
            float loss = fixture.Json["config"]!.AsObject().Sum(layer => check(fixture, layer.Key, layer.Value!.AsObject()));
            _deviations.Add("loss", fixture.Name, Math.Abs(loss - (double)fixture.Json["loss_at_stored_weights"]!), 1e-4);
            count++;
        }
        _deviations.Report();
        if (Shared.Cases("adapterhub").Count > 0) Assert.AreNotEqual(0, count);
    }

    [TestMethod]
    public void StochasticDepthDropsWholeRows() => Each(["stochastic_depth", "bottleneck"], (fixture, backbone) =>
    {
        JsonNode config = fixture.Json["config"]!;
        var method = new AdapterPlusOptions
        {
            ReductionFactor = (double)backbone!.Config.HiddenSize / (int)config["bottleneck"]!,
            Scaling = (string)config["scaling"]!,
            StochasticDepth = (double)config["stochastic_depth"]!,
        };
        using PeftAdaptation adaptation = method.Attach(backbone, 0);
        // …layer.1.….adapter_down.0.weight is down.1.weight there.
        Dictionary<string, NamedParameter> named = Filled(fixture, adaptation.Parameters, name =>
        {
            string[] parts = name.Split('.');
            string layer = parts.First(p => int.TryParse(p, out _)), rest = name[(name.IndexOf(".default.", StringComparison.Ordinal) + 9)..];
            return rest == "scaling" ? $"scale.{layer}" : $"{(rest.StartsWith("adapter_down", StringComparison.Ordinal) ? "down" : "up")}.{layer}.{rest.Split('.')[^1]}";
        });
        Counted(fixture, adaptation);
        Tensor keep = fixture["keep"];                                          // [layers, rows]
        Tensor Run(bool training)
        {
            int layer = 0;
            var pass = new Pass(adaptation.Table(), training)
            {
                DropWith = (x, p) => p == method.StochasticDepth && x.shape[^1] == 1 ? x * keep[layer++].view(-1, 1, 1) / (1 - p) : x,
            };
            return backbone.Forward(AdapterHubCase.Batch(fixture), pass).Last;
        }
        double tolerance = (double)fixture.Json["tolerance"]!;
        _deviations.Add("output", $"{fixture.Name} scoring", Run(false), fixture["out/eval.last_hidden_state"], tolerance);
        _deviations.Add("output", $"{fixture.Name} training", Run(true), fixture["out/train.last_hidden_state"], tolerance);
        Train(fixture, named, () => AdapterHubCase.MeanSquare(fixture, new BackboneOutput(Run(true), new Layout(fixture["loss_mask"]), null)));
    });

    [TestMethod]
    public void LaddersReadEveryLayer() => Each(["reduction", "gate_temperature", "layers"], (fixture, backbone) =>
    {
        JsonNode config = fixture.Json["config"]!;
        int[] Numbers(string field) => [.. config[field]?.AsArray().Select(n => (int)n!) ?? []];
        var method = new LadderSideOptions
        {
            Reduction = (int)config["reduction"]!,
            Layers = Numbers("layers"),
            DecoderLayers = Numbers("decoder_layers"),
            GateTemperature = (double)config["gate_temperature"]!,
        };
        using PeftAdaptation adaptation = method.Attach(backbone!, 0);
        Dictionary<string, NamedParameter> named = Filled(fixture, adaptation.Parameters, name => name["side.".Length..]);
        Counted(fixture, adaptation);
        double tolerance = (double)fixture.Json["tolerance"]!;
        Tensor Loss(bool compare)
        {
            var pass = new Pass(adaptation.Table());
            BackboneOutput output = backbone!.Forward(AdapterHubCase.Batch(fixture), pass);
            if (compare) _deviations.Add("output", fixture.Name, output.Last, fixture["out/output"], tolerance);
            if (!fixture.Has("labels")) return AdapterHubCase.MeanSquare(fixture, output);
            Tensor logits = backbone.VocabularyScores(output.Last, pass), labels = fixture["labels"];
            if (compare) _deviations.Add("logits", fixture.Name, logits, fixture["out/logits"], tolerance);
            return nn.functional.cross_entropy(logits.narrow(1, 0, logits.shape[1] - 1).reshape(-1, logits.shape[2]), labels.narrow(1, 1, labels.shape[1] - 1).reshape(-1));
        }
        Loss(compare: true);
        Train(fixture, named, () => Loss(compare: false));
    });

    [TestMethod]
    public void QueryTokensAskEveryLayer() => Each(["tokens", "classes"], (fixture, backbone) =>
    {
        int tokens = (int)fixture.Json["config"]!["tokens"]!, classes = (int)fixture.Json["config"]!["classes"]!;
        using PeftAdaptation adaptation = new VisualQueryOptions { Tokens = tokens, Reading = QueryReading.Tokens }.Attach(backbone!, 0);
        using VisualQueryHead head = new(backbone!, tokens, classes), pooled = new(backbone!, tokens, classes, QueryFeatures.Mean), mixed = new(backbone!, tokens, classes, QueryFeatures.Mixed);
        Dictionary<string, NamedParameter> named = Filled(fixture, [.. adaptation.Parameters, .. head.Parameters, mixed.Parameters.Single(p => p.Name == "mix")],
            name => name.Replace("vqt.", "", StringComparison.Ordinal));
        Counted(fixture, adaptation, named.Values.Sum(p => p.Value.numel()) - adaptation.TrainableCount);
        double tolerance = (double)fixture.Json["tolerance"]!;
        TokenBatch batch = AdapterHubCase.Batch(fixture);
        void Compare(string kind, Tensor found) => _deviations.Add(kind, fixture.Name, found, fixture["out/" + kind], tolerance);
        Tensor Loss(bool compare)
        {
            var pass = new Pass(adaptation.Table());
            Tensor states = backbone!.Forward(batch, pass).Last, logits = head.FromFeatures(states, pass), sparsity = head.ColumnNorms().sum(), mix = mixed.Blocks(states);
            if (compare)
            {
                Compare("features", head.Blocks(states));
                Compare("pooled_features", pooled.Blocks(states));
                Compare("mixed_features", mix);
                Compare("logits", logits);
                Compare("column_norms", head.ColumnNorms());
                Compare("group_sparsity", sparsity.view(1));
                for (int layer = 0; layer < backbone.Config.LayerCount; layer++)
                    _deviations.Add("queries", $"{fixture.Name} {layer}", states.narrow(1, 1 + layer * tokens, tokens), fixture[$"out/queries.{layer}"], tolerance);
                Tensor bare = backbone.Forward(batch, new Pass()).Last.select(1, 0);
                _deviations.Add("first token", fixture.Name, states.select(1, 0), bare, 1e-12);
            }
            return nn.functional.cross_entropy(logits, fixture["labels"]) + 1e-4 * sparsity
                + 0.1 * (mix.square() * linspace(0, 1, (int)mix.shape[1], ScalarType.Float32)).sum();
        }
        Loss(compare: true);
        long[] kept = fixture["selected"].data<long>().ToArray();
        CollectionAssert.AreEqual(kept, head.Select((double)kept.Length / head.ColumnNorms().shape[0]));
        Train(fixture, named, () => Loss(compare: false));
    });

    private static readonly Dictionary<string, Func<UnifiedViewOptions>> _points = new()
    {
        ["ffn_sequential"] = () => new() { Insertion = UnifiedInsertion.Sequential },
        ["ffn_parallel"] = () => new(),
        ["ffn_parallel_scaled"] = () => new() { Composition = UnifiedComposition.ScaledAdd, Scale = 2 },
        ["ffn_parallel_learned"] = () => new() { Composition = UnifiedComposition.ScaledAdd, LearnedScale = true },
        ["ffn_parallel_normalised"] = () => new() { ReadsNormed = true },
        ["attention_sequential"] = () => new() { Insertion = UnifiedInsertion.Sequential, Target = UnifiedTarget.AttentionOutput },
        ["attention_parallel"] = () => new() { Target = UnifiedTarget.AttentionOutput },
        ["multi_head"] = () => new() { Target = UnifiedTarget.HeadAttention, NormBefore = true },
        ["multi_head_roberta"] = () => new() { Target = UnifiedTarget.HeadAttention, ScaledQueries = true },
        ["prefix"] = () => new() { Function = UnifiedFunction.SoftmaxKv, Target = UnifiedTarget.HeadAttention, Composition = UnifiedComposition.Gated },
        ["prefix_concat"] = () => new() { Function = UnifiedFunction.SoftmaxKv, Target = UnifiedTarget.HeadAttention, Composition = UnifiedComposition.Gated },
        ["prefix_added"] = () => new() { Function = UnifiedFunction.SoftmaxKv, Target = UnifiedTarget.HeadAttention },
    };

    // The prefix's share of the attention, told in passing.
    private sealed class ShareProbe(AttentionCore core, NamedParameter key, Action<int, Tensor> tell) : AttentionPatch
    {
        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
        {
            tell(core.Layer, HeadPatch.Share(input, input.Query.matmul(key.Value.transpose(1, 2)) * core.Scale, core.Scale));
            return next(input);
        }
    }

    [TestMethod]
    public void EveryPointOfTheUnifiedView() => Each(["bottleneck", "length"], (fixture, backbone) =>
    {
        double tolerance = (double)fixture.Json["tolerance"]!, sum = 0;
        Dictionary<string, Tensor> gradients = [];
        foreach (string name in fixture.Names.Where(n => n.EndsWith(".last_hidden_state", StringComparison.Ordinal)).Select(n => n["out/".Length..^".last_hidden_state".Length]))
        {
            if (!_points.TryGetValue(name, out Func<UnifiedViewOptions>? make))
            {
                _deviations.Fail($"{fixture.Name}: no such point: {name}");
                continue;
            }
            UnifiedViewOptions method = make();
            method.Bottleneck = (int)fixture.Json["config"]![method.Target == UnifiedTarget.HeadAttention ? "length" : "bottleneck"]!;
            using PeftAdaptation adaptation = method.Attach(backbone!, 0);
            Assert.AreEqual(method.CountTrainable(backbone!), adaptation.TrainableCount, name);
            // ….0.….unified.down.weight is down.0.weight there; the trained scale is one for all layers.
            Dictionary<NamedParameter, string> named = adaptation.Parameters.ToDictionary(p => p, p =>
            {
                string layer = p.Name.Split('.').First(part => int.TryParse(part, out _)), rest = p.Name[(p.Name.IndexOf(".unified.", StringComparison.Ordinal) + 9)..];
                return rest == "scale" ? rest : rest.Contains('.') ? rest.Insert(rest.IndexOf('.'), "." + layer) : $"{rest}.{layer}";
            });
            foreach ((NamedParameter parameter, string key) in named) parameter.Load(fixture["param/" + key]);
            BackboneOutput output = AdapterHubCase.Run(fixture, backbone!, adaptation.Table());
            _deviations.Add("output", $"{fixture.Name} {name}", output.Last, fixture[$"out/{name}.last_hidden_state"], tolerance);
            if (fixture.Has($"out/{name}.lambda.0")) CompareShares(fixture, backbone!, adaptation, name, tolerance);
            Tensor loss = AdapterHubCase.MeanSquare(fixture, output);
            loss.backward();
            // The concatenated form is another way to the same numbers; the sum of losses may hold it or not.
            sum += loss.item<float>();
            foreach ((NamedParameter parameter, string key) in named)
                gradients[key] = gradients.TryGetValue(key, out Tensor? before) ? before + parameter.Value.grad! : parameter.Value.grad!.clone();
        }
        _deviations.Add("loss", fixture.Name, Math.Abs(sum - (double)fixture.Json["loss_at_stored_weights"]!), 2e-5 * sum);
        foreach ((string key, Tensor expected) in fixture.Under("grad/"))
            if (gradients.TryGetValue(key, out Tensor? found)) _deviations.Add("gradient", $"{fixture.Name} {key}", found.reshape(expected.shape), expected, (double)fixture.Json["tolerances"]!["grad"]!);
            else _deviations.Fail($"{fixture.Name}: no gradient for {key}");
    });

    private void CompareShares(Fixture fixture, Backbone backbone, PeftAdaptation adaptation, string name, double tolerance)
    {
        using var off = no_grad();
        var patches = adaptation.Patches.ToDictionary(p => p.Key, p => p.Value);
        foreach (AttentionCore core in backbone.Sites.OfType<AttentionCore>())
        {
            NamedParameter key = adaptation.Parameters.Single(p => p.Name.EndsWith(".unified.key", StringComparison.Ordinal) && p.Name.Split('.').Contains(core.Layer.ToString(System.Globalization.CultureInfo.InvariantCulture)));
            patches[core] = PatchStack.Of(core, patches[core], new ShareProbe(core, key, (layer, share) =>
                _deviations.Add("share", $"{fixture.Name} {name} {layer}", share, fixture[$"out/{name}.lambda.{layer}"], tolerance)));
        }
        AdapterHubCase.Run(fixture, backbone, new PatchTable(patches));
    }

    [TestMethod]
    public void TasksShareOneBatch()
    {
        int count = 0;
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Has("task_ids")) continue;
            using var scope = NewDisposeScope();
            using var tiny = new TinyBase(AdapterHubCase.BaseOf(fixture)!);
            // Children in the order of their tasks: the first is the one that holds what is shared.
            string[] names = [.. fixture.Json["trainable"]!["shapes"]!.AsObject().Select(s => s.Key).Where(k => k.EndsWith(".weights", StringComparison.Ordinal)).Select(k => k.Split('.')[^2]).Distinct()];
            string first = fixture.Json["trainable"]!["shapes"]!.AsObject().First(s => s.Key.EndsWith(".lora_A", StringComparison.Ordinal)).Key.Split('.')[^2];
            string[] tasks = [first, .. names.Where(n => n != first)];
            using PeftAdaptation adaptation = AdapterHubFolder.AttachTasks([.. tasks.Select(t => fixture.PathOf("adapters", t))], tiny.Backbone);
            Counted(fixture, adaptation);
            Tensor Run() => AdapterHubCase.Run(fixture, tiny.Backbone, adaptation.Table()).Last;
            _deviations.Add("output", fixture.Name, Run(), fixture["on.last_hidden_state"], (double)fixture.Json["tolerance"]!);
            Train(fixture, adaptation.Parameters.ToDictionary(p => p.Name), () => AdapterHubCase.MeanSquare(fixture, AdapterHubCase.Run(fixture, tiny.Backbone, adaptation.Table())));
            count++;
        }
        _deviations.Report();
        if (Shared.Cases("adapterhub").Count > 0) Assert.AreNotEqual(0, count);
    }
}
