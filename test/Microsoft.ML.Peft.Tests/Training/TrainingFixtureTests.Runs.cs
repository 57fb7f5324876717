// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Training;

public partial class TrainingFixtureTests
{
    private static string Ours(string name) => name.Replace(".modules_to_save.", ".", StringComparison.Ordinal);

    // A whole training by the trainer as users call it, over the stored batches in the stored order.
    private static void WholeRun(TrainingCase item)
    {
        JsonElement config = item.Config;
        using CheckpointFolder folder = CheckpointFolder.Open(item.Base);
        using Backbone backbone = BackboneLoader.Load(folder);
        PeftMethod method = PeftMethods.Create("lora");
        method.ReadHuggingFace(JsonNode.Parse(config.GetProperty("lora").GetRawText())!.AsObject());
        string classifier = item.Names.First(n => n.StartsWith("init.classifier", StringComparison.Ordinal) && n.EndsWith("weight", StringComparison.Ordinal));
        int classes = (int)item[classifier].shape[0];
        using var model = new AdaptedModel(backbone, method.Attach(backbone, 1), new SequenceClassificationHead(backbone, classes));
        Dictionary<string, NamedParameter> parameters = model.Parameters.Where(p => p.Trainable).ToDictionary(p => p.Name);
        CollectionAssert.AreEquivalent(
            item.Under("init.").Select(Ours).ToArray(), parameters.Keys, $"{item.Name}: trained parameters");
        foreach (string name in item.Under("init.")) parameters[Ours(name)].Load(item["init." + name]);

        List<Example[]> batches = [], held = [];
        for (int i = 0; item.Has($"batch{i}.input_ids"); i++) batches.Add(Rows(item, $"batch{i}."));
        for (int i = 0; item.Has($"held{i}.input_ids"); i++) held.Add(Rows(item, $"held{i}."));
        TrainingOptions options = OptionsOf(config, held.Count > 0);
        var objective = new CrossEntropyObjective(classes, options);
        Optimizer? optimizer = null;
        void Compare(string prefix, double factor = 1)
        {
            foreach (string name in item.Under(prefix))
            {
                if (!name.StartsWith("state.", StringComparison.Ordinal)) item.Near(prefix + name, item[prefix + name], parameters[Ours(name)].Value, factor);
                else item.Near(prefix + name, item[prefix + name].reshape(-1), optimizer!.SaveState()[Ours(name["state.".Length..])].reshape(-1).to_type(ScalarType.Float32), factor, relative: true);
            }
        }
        double first = Math.Min(1, 1e-5 / item.Tolerance);
        var trainer = new Trainer(options)
        {
            PlanBatches = (rows, o) => new FixedPlan(batches, o),
            BeforeStep = (step, o) =>
            {
                optimizer = o;
                if (step > 0) return;
                foreach (string name in item.Under("first_gradient."))
                    item.Near("first gradient of " + name, item["first_gradient." + name], parameters[Ours(name)].Value.grad!, first);
            },
            AfterStep = step =>
            {
                using var scope = NewDisposeScope();
                Compare($"after{step}.", step <= 2 ? first : 1);
                if (item.Has("losses") && step == item["losses"].numel()) Compare("last.");
            },
        };
        TrainingResult result = trainer.Fit(model, [.. batches.SelectMany(b => b)], held.Count > 0 ? [.. held.SelectMany(b => b)] : null, objective);
        Series(item, "losses", result.Losses, first);
        Series(item, "grad_norms", result.GradientNorms, first);
        Series(item, "learning_rates", result.LearningRates, first);
        Compare(held.Count > 0 ? "best." : "final.");
        if (item.Has("eval_logits")) item.Near("eval_logits", item["eval_logits"], Logits(item, model));
        if (Has(item.Values, "history")) CompareHistory(item, result);
    }

    private static void Series(TrainingCase item, string name, IReadOnlyList<double> found, double first)
    {
        if (!item.Has(name)) return;
        double[] expected = item[name].to_type(ScalarType.Float64).data<double>().ToArray();
        Assert.AreEqual(expected.Length, found.Count, $"{item.Name}: number of {name}");
        for (int i = 0; i < expected.Length; i++) item.Near($"{name} of step {i}", expected[i], found[i], i < 2 ? first : 1);
    }

    private static void CompareHistory(TrainingCase item, TrainingResult result)
    {
        JsonElement[] history = [.. item.Values.GetProperty("history").EnumerateArray()];
        Assert.AreEqual(history.Length, result.Evaluations.Count, $"{item.Name}: evaluations");
        for (int i = 0; i < history.Length; i++)
        {
            EvaluationPoint point = result.Evaluations[i];
            Assert.AreEqual(history[i].GetProperty("step").GetInt64(), point.Step);
            Assert.AreEqual(history[i].GetProperty("better").GetBoolean(), point.Better, $"{item.Name}: evaluation {i}");
            Assert.AreEqual(history[i].GetProperty("counter").GetInt32(), point.Counter, $"{item.Name}: evaluation {i}");
            item.Near($"held-out loss {i}", history[i].GetProperty("eval_loss").GetDouble(), point.Evaluation.Loss);
            item.Near($"held-out accuracy {i}", history[i].GetProperty("eval_accuracy").GetDouble(), point.Evaluation.Metrics["accuracy"]);
        }
        Assert.AreEqual(item.Values.GetProperty("best_step").GetInt64(), result.BestStep);
        Assert.AreEqual(item.Values.GetProperty("stopped_at").GetInt64(), result.Steps);
        Assert.AreEqual(StopReason.EarlyStopped, result.Stopped);
    }

    private static Tensor Logits(TrainingCase item, AdaptedModel model)
    {
        using var off = no_grad();
        var batch = new TokenBatch(item["batch0.input_ids"], item["batch0.attention_mask"], item["batch0.token_type_ids"]);
        return model.Forward(batch, new Pass(model.Patches));
    }

    private static TrainingOptions OptionsOf(JsonElement config, bool evaluates)
    {
        int Int(string name, int otherwise) => config.TryGetProperty(name, out JsonElement v) ? v.GetInt32() : otherwise;
        double Number(string name, double otherwise) => config.TryGetProperty(name, out JsonElement v) ? v.GetDouble() : otherwise;
        string schedule = config.GetProperty("schedule").GetString()!;
        return new TrainingOptions
        {
            LearningRate = config.GetProperty("lr").GetDouble(),
            WeightDecay = Number("weight_decay", 0),
            MaxGradNorm = Number("clip", 0),
            MaxSteps = Int("steps", Int("limit", 0)),
            WarmupSteps = Int("warmup", 0),
            Schedule = schedule switch
            {
                "linear" => ScheduleKind.Linear,
                "cosine" => ScheduleKind.Cosine,
                "constant" or "constant_with_warmup" => ScheduleKind.Constant,
                _ => throw new AssertFailedException($"Schedule {schedule} of a run is not known to this test."),
            },
            Accumulation = Int("micro_batches", 1),
            PadToMultiple = 1,
            EvaluateEvery = Int("evaluate_every", 0),
            EarlyStoppingPatience = evaluates ? Int("patience", 0) : 0,
            EarlyStoppingMinDelta = Number("min_delta", 0),
            BestMetric = config.TryGetProperty("metric", out JsonElement metric) ? metric.GetString()! : "loss",
        };
    }

    private static Example[] Rows(TrainingCase item, string prefix)
    {
        long[] Flat(string name) => item[prefix + name].reshape(-1).data<long>().ToArray();
        long[] ids = Flat("input_ids"), mask = Flat("attention_mask"), labels = Flat("labels");
        long[] types = item.Has(prefix + "token_type_ids") ? Flat("token_type_ids") : new long[ids.Length];
        int tokens = (int)item[prefix + "input_ids"].shape[1];
        return
        [
            .. Enumerable.Range(0, labels.Length).Select(r =>
            {
                int length = (int)mask.AsSpan(r * tokens, tokens).ToArray().Sum();
                return new Example
                {
                    Ids = [.. ids.AsSpan(r * tokens, length).ToArray().Select(i => (int)i)],
                    TypeIds = [.. types.AsSpan(r * tokens, length).ToArray().Select(i => (int)i)],
                    Label = (int)labels[r],
                };
            }),
        ];
    }

    /// <summary>The whole run as one epoch over given batches, round and round.</summary>
    private sealed class FixedPlan(List<Example[]> batches, TrainingOptions options) : BatchPlan([.. batches.SelectMany(b => b)], options)
    {
        private readonly int _count = (int)(options.MaxSteps * options.Accumulation);

        public override int MicroBatchesAnEpoch => _count;

        public override IReadOnlyList<int[]> Epoch(int epoch)
        {
            int[] starts = new int[batches.Count];
            for (int i = 1; i < starts.Length; i++) starts[i] = starts[i - 1] + batches[i - 1].Length;
            return [.. Enumerable.Range(0, _count).Select(i => i % batches.Count).Select(b => Enumerable.Range(starts[b], batches[b].Length).ToArray())];
        }
    }
}
