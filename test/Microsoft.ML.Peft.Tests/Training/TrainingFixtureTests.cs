// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Training;
using Microsoft.VisualStudio.TestTools.UnitTesting;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Training;

/// <summary>Every case of the area <c>training</c>, told apart by what its case.json says.</summary>
[TestClass]
public partial class TrainingFixtureTests
{
    public TestContext TestContext { get; set; } = null!;

    /// <summary>Which part of the library answers a case, or why none does yet.</summary>
    private static (Action<TrainingCase>? Run, string Later) Kind(TrainingCase item)
    {
        JsonElement config = item.Config;
        string text = config.ValueKind == JsonValueKind.Object ? config.GetRawText() : "";
        if (config.ValueKind == JsonValueKind.Object && config.TryGetProperty("variants", out JsonElement variants) && variants.ValueKind == JsonValueKind.Object)
        {
            string[] calls = [.. variants.EnumerateObject().Select(v => Call(v.Value))];
            if (calls.Length > 0 && calls.All(c => Regex.IsMatch(c, @"^torch\.optim\.(AdamW|Adam|SGD)\("))) return (Optimizers, "");
            if (calls.Length > 0 && calls.All(c => Regex.IsMatch(c, @"torch\.nn\.utils\.clip_grad_"))) return (Clipping, "");
            if (calls.Any(c => c.Contains("optim", StringComparison.OrdinalIgnoreCase))) return (null, "optimizer of a later version");
        }
        if (text.Contains("transformers.get_scheduler(name", StringComparison.Ordinal)) return (Schedules, "");
        if (Has(config, "losses") && config.GetProperty("losses").ValueKind == JsonValueKind.Object)
        {
            string[] calls = [.. config.GetProperty("losses").EnumerateObject().Select(l => Call(l.Value))];
            int entropies = calls.Count(c => Regex.IsMatch(c, @"^F\.cross_entropy\((logits|token_logits)\b"));
            if (item.Has("in.labels") && 2 * entropies > calls.Length) return (CrossEntropies, "");
            if (item.Has("in.targets") && calls.Any(c => c.StartsWith("F.binary_cross_entropy_with_logits(logits", StringComparison.Ordinal))) return (BinaryLosses, "");
            if (item.Has("in.pred") && calls.Any(c => c.StartsWith("F.mse_loss", StringComparison.Ordinal))) return (Regressions, "");
            return (null, "loss of a later version");
        }
        if (item.Has("joint/grad.W")) return (Accumulation, "");
        if (Has(item.Values, "groups") && text.Contains("create_optimizer()", StringComparison.Ordinal)) return (Groups, "");
        if (Has(item.Values, "grouped")) return (Orders, "");
        if (Has(config, "lora") && item.Has("batch0.input_ids") && item.Has("losses") && config.GetProperty("lora").TryGetProperty("task_type", out JsonElement task)
            && task.GetString() == "SEQ_CLS")
            return (WholeRun, "");
        return (null, "not a part of the first training loop");
    }

    private static string Call(JsonElement entry) =>
        entry.ValueKind == JsonValueKind.Object && entry.TryGetProperty("call", out JsonElement call) && call.ValueKind == JsonValueKind.String ? call.GetString()! : "";

    private static bool Has(JsonElement element, string name) => element.ValueKind == JsonValueKind.Object && element.TryGetProperty(name, out _);

    [TestMethod]
    [TestCategory("Fixtures")]
    public void Cases()
    {
        var later = new List<string>();
        var failures = new List<string>();
        int ran = 0;
        foreach (string folder in Shared.Cases("training"))
        {
            if (Path.GetFileName(folder).StartsWith('_')) continue;
            using var item = new TrainingCase(folder);
            (Action<TrainingCase>? run, string reason) = Kind(item);
            if (run is null)
            {
                later.Add($"{item.Name}: {reason}");
                continue;
            }
            using var scope = NewDisposeScope();
            try
            {
                run(item);
                TestContext.WriteLine(FormattableString.Invariant($"{item.Name}: worst {item.Worst:0.000} of the tolerance {item.Tolerance:0e+0} ({item.WorstAt})"));
            }
            catch (Exception e)
            {
                failures.Add(e is AssertFailedException ? e.Message : $"{item.Name}: {e}");
            }
            if (item.Later.Count > 0) TestContext.WriteLine($"  {item.Name}, parts of a later version: {string.Join(", ", item.Later)}");
            ran++;
        }
        TestContext.WriteLine($"Later: {string.Join("; ", later)}");
        if (Shared.Cases("training").Count > 0) Assert.AreNotEqual(0, ran, "No training case was recognised.");
        if (failures.Count > 0) Assert.Fail(string.Join('\n', failures));
    }

    private static void Optimizers(TrainingCase item)
    {
        using var source = new TrainingCase(item.Base);
        var missing = new Dictionary<string, int[]>();
        if (source.Config.TryGetProperty("no_gradient", out JsonElement none))
            foreach (JsonProperty p in none.EnumerateObject()) missing[p.Name] = [.. p.Value.EnumerateArray().Select(v => v.GetInt32())];
        foreach (JsonProperty variant in item.Config.GetProperty("variants").EnumerateObject())
        {
            double[]? factors = variant.Value.TryGetProperty("lr_factor_by_step", out JsonElement f) ? [.. f.EnumerateArray().Select(v => v.GetDouble())] : null;
            foreach (bool separate in (bool[])[false, true])
                Trajectory(item, source, missing, variant.Name, variant.Value.GetProperty("call").GetString()!, factors, separate);
        }
    }

    private static void Trajectory(
        TrainingCase item, TrainingCase source, Dictionary<string, int[]> missing, string key, string call, double[]? factors, bool separate)
    {
        string[] names = [.. source.Under("init.")];
        bool grouped = call.Contains("ndim > 1", StringComparison.Ordinal);
        NamedParameter[] parameters =
            [.. names.Select(n => new NamedParameter(n, source["init." + n].clone()) { Decay = !grouped || source["init." + n].dim() > 1 })];
        using Optimizer optimizer = Make(call, parameters, separate);
        // With groups, the first rate named is a group's decay; the rate stands after the list.
        double rate = TrainingCase.Argument(call, "lr")!.Value;
        long steps = item[$"{key}/param.{names[0]}"].shape[0];
        for (int step = 0; step < steps; step++)
        {
            foreach (NamedParameter p in parameters)
                p.Value.grad = missing.GetValueOrDefault(p.Name)?.Contains(step) == true ? null : source["grad." + p.Name][step].clone();
            optimizer.Step(rate * (factors?[step] ?? 1));
            foreach (NamedParameter p in parameters)
                item.Near($"{key} {p.Name} after step {step}", item[$"{key}/param.{p.Name}"][step], p.Value);
        }
        IReadOnlyDictionary<string, Tensor> state = optimizer.SaveState();
        foreach (string entry in item.Under($"{key}/state."))
            item.Near($"{key} state {entry}", item[$"{key}/state.{entry}"].reshape(-1), state[entry].reshape(-1).to_type(ScalarType.Float32), relative: true);
        foreach (NamedParameter p in parameters) p.Dispose();
    }

    private static Optimizer Make(string call, NamedParameter[] parameters, bool separate)
    {
        Match betas = Regex.Match(call, @"betas=\(([^,]+),\s*([^)]+)\)");
        double Beta(int group, double otherwise) => betas.Success ? double.Parse(betas.Groups[group].Value, System.Globalization.CultureInfo.InvariantCulture) : otherwise;
        double Get(string name, double otherwise) => TrainingCase.Argument(call, name) ?? otherwise;
        bool maximize = TrainingCase.Flag(call, "maximize"), amsgrad = TrainingCase.Flag(call, "amsgrad");
        if (call.StartsWith("torch.optim.AdamW", StringComparison.Ordinal))
            return new AdamW(parameters, Get("weight_decay", 0.01), Beta(1, 0.9), Beta(2, 0.999), Get("eps", 1e-8), amsgrad, maximize) { Separate = separate };
        if (call.StartsWith("torch.optim.Adam", StringComparison.Ordinal))
            return new Adam(parameters, Get("weight_decay", 0), Beta(1, 0.9), Beta(2, 0.999), Get("eps", 1e-8), amsgrad, maximize) { Separate = separate };
        return new Sgd(parameters, Get("weight_decay", 0), Get("momentum", 0), Get("dampening", 0), TrainingCase.Flag(call, "nesterov"), maximize) { Separate = separate };
    }

    private static void Clipping(TrainingCase item)
    {
        string[] names = [.. item.Under("grad.")];
        foreach (JsonProperty variant in item.Config.GetProperty("variants").EnumerateObject())
        {
            string call = variant.Value.GetProperty("call").GetString()!;
            double limit = double.Parse(Regex.Match(call, @",\s*([0-9.e+-]+)").Groups[1].Value, System.Globalization.CultureInfo.InvariantCulture);
            Tensor flat = cat([.. names.Select(n => item["grad." + n].reshape(-1))]);
            if (call.Contains("clip_grad_norm_", StringComparison.Ordinal))
                item.Near($"{variant.Name} norm", variant.Value.GetProperty("total_norm").GetDouble(), GradientClip.ByNorm(flat, limit, TrainingCase.Argument(call, "norm_type") ?? 2));
            else
                GradientClip.ByValue(flat, limit);
            long offset = 0;
            foreach (string name in names)
            {
                Tensor expected = item[$"{variant.Name}/{name}"];
                item.Near($"{variant.Name} {name}", expected.reshape(-1), flat.narrow(0, offset, expected.numel()));
                offset += expected.numel();
            }
        }
    }

    private static void Schedules(TrainingCase item)
    {
        double[] rates = [.. item.Config.GetProperty("lr").EnumerateArray().Select(v => v.GetDouble())];
        foreach (JsonProperty setting in item.Config.GetProperty("settings").EnumerateObject())
        {
            JsonElement arguments = setting.Value.GetProperty("kwargs");
            double? Get(string name) => arguments.TryGetProperty(name, out JsonElement v) ? v.GetDouble() : null;
            RampShape Shape(string name, RampShape otherwise) => !arguments.TryGetProperty(name, out JsonElement v) ? otherwise
                : v.GetString() switch { "linear" => RampShape.Linear, "cosine" => RampShape.Cosine, "1-sqrt" => RampShape.OneMinusSquareRoot, var s => throw new AssertFailedException($"ramp {s}") };
            ScheduleKind? kind = setting.Value.GetProperty("name").GetString() switch
            {
                "constant" or "constant_with_warmup" => ScheduleKind.Constant,
                "linear" => ScheduleKind.Linear,
                "cosine" => ScheduleKind.Cosine,
                "cosine_with_restarts" => ScheduleKind.CosineWithRestarts,
                "cosine_with_min_lr" => ScheduleKind.CosineWithFloor,
                "cosine_warmup_with_min_lr" => ScheduleKind.CosineWarmupWithFloor,
                "polynomial" => ScheduleKind.Polynomial,
                "inverse_sqrt" => ScheduleKind.InverseSquareRoot,
                "warmup_stable_decay" => ScheduleKind.WarmupStableDecay,
                _ => null,
            };
            if (kind is null || (Get("min_lr") is not null && Get("min_lr_rate") is not null))
            {
                item.Later.Add($"{setting.Name} (our options cannot say this)");
                continue;
            }
            var schedule = new LearningRateSchedule
            {
                Kind = kind.Value,
                Total = setting.Value.GetProperty("total").GetInt64(),
                Warmup = setting.Value.GetProperty("name").GetString() == "constant" ? 0 : setting.Value.GetProperty("warmup").GetInt64(),
                Cycles = Get("num_cycles"),
                Floor = Get("min_lr_rate") ?? Get("min_lr_ratio") ?? Get("min_lr") / rates[0] ?? 0,
                Power = Get("power") ?? 1,
                EndRate = Get("lr_end") ?? 1e-7,
                BaseRate = rates[0],
                TimeScale = (long?)Get("timescale"),
                WarmupStart = Get("warmup_lr_rate"),
                DecaySteps = (long)(Get("num_decay_steps") ?? 0),
                StableSteps = (long?)Get("num_stable_steps"),
                WarmupShape = Shape("warmup_type", RampShape.Linear),
                DecayShape = Shape("decay_type", RampShape.Cosine),
            };
            if (setting.Value.TryGetProperty("raises", out _))
            {
                Assert.ThrowsExactly<ArgumentException>(schedule.Validate, $"{item.Name}: {setting.Name} should be refused.");
                continue;
            }
            if (schedule.Warmup <= schedule.Total) schedule.Validate();
            double[] expected = item[setting.Name].to_type(ScalarType.Float64).reshape(-1).data<double>().ToArray();
            for (int i = 0; i < expected.Length; i++)
                item.Near($"{setting.Name} step {i / rates.Length}", expected[i], rates[i % rates.Length] * schedule.Factor(i / rates.Length));
        }
    }

    private static void Accumulation(TrainingCase item)
    {
        int count = item.Config.GetProperty("micro_batches").GetInt32();
        Tensor w = item["W"].clone().requires_grad_(), b = item["b"].clone().requires_grad_();
        var objective = new CrossEntropyObjective((int)w.shape[0]);
        double counted = Enumerable.Range(0, count).Sum(i => objective.Count(item[$"y{i}"]));
        item.Near("counted", item.Values.GetProperty("counted_tokens").EnumerateArray().Sum(v => v.GetInt32()), counted, 0);
        double total = 0;
        for (int i = 0; i < count; i++)
        {
            Tensor loss = objective.Sum(item[$"x{i}"].matmul(w.t()) + b, item[$"y{i}"]) / counted;
            item.Near($"micro loss {i}", item.Values.GetProperty("micro_losses")[i].GetDouble(), loss.item<float>());
            total += loss.item<float>();
            loss.backward();
        }
        item.Near("joint loss", item.Values.GetProperty("joint_loss").GetDouble(), total);
        item.Near("joint gradient of W", item["joint/grad.W"], w.grad!);
        item.Near("joint gradient of b", item["joint/grad.b"], b.grad!);
    }

    // The library decays tensors of two or more dimensions; the reference, all but biases and norms. They agree for the
    // weights that this version trains, and the case says where they do not.
    private static void Groups(TrainingCase item)
    {
        int agreed = 0;
        foreach (JsonProperty model in item.Values.GetProperty("groups").EnumerateObject())
        {
            foreach ((string group, bool decay) in ((string, bool)[])[("decay", true), ("no_decay", false)])
            {
                foreach (string name in model.Value.GetProperty(group).EnumerateArray().Select(v => v.GetString()!))
                {
                    bool lora = name.Contains("lora_A", StringComparison.Ordinal) || name.Contains("lora_B", StringComparison.Ordinal);
                    bool head = name.Contains("classifier", StringComparison.Ordinal) || name.Contains("score.", StringComparison.Ordinal);
                    bool bias = name.EndsWith("bias", StringComparison.Ordinal);
                    if (!lora && !head && !bias)
                    {
                        item.Later.Add($"{model.Name} {name}");
                        continue;
                    }
                    using var parameter = new NamedParameter(name, bias ? zeros(3) : zeros(3, 2));
                    Assert.AreEqual(decay, parameter.Decay, $"{item.Name}: {name}");
                    agreed++;
                }
            }
        }
        Assert.AreNotEqual(0, agreed, $"{item.Name}: no parameter was compared.");
    }

    private static void Orders(TrainingCase item)
    {
        static int[] Ints(JsonElement e) => [.. e.EnumerateArray().Select(v => v.GetInt32())];
        foreach (JsonElement entry in item.Values.GetProperty("grouped").EnumerateArray())
        {
            int[] lengths = Ints(entry.GetProperty("lengths")), permutation = Ints(entry.GetProperty("permutation"));
            int batch = entry.GetProperty("batch").GetInt32();
            JsonElement mega = entry.GetProperty("mega_batch_mult");
            int[] order = RowOrder.GroupByLength(permutation, lengths, batch, mega.ValueKind == JsonValueKind.Null ? null : mega.GetInt32());
            CollectionAssert.AreEqual(Ints(entry.GetProperty("order")), order, $"{item.Name}: order of {lengths.Length} rows");
            Assert.AreEqual(entry.GetProperty("padding_share").GetDouble(), RowOrder.PaddingShare(order, lengths, batch), 1e-12);
            Assert.AreEqual(entry.GetProperty("padding_share_of_permutation").GetDouble(), RowOrder.PaddingShare(permutation, lengths, batch), 1e-12);
        }
        foreach (JsonElement entry in item.Values.GetProperty("sharded").EnumerateArray())
        {
            int rows = entry.GetProperty("rows").GetInt32(), world = entry.GetProperty("world").GetInt32();
            int rank = 0;
            foreach (JsonElement shard in entry.GetProperty("shards").EnumerateArray())
                CollectionAssert.AreEqual(Ints(shard), RowOrder.Shard([.. Enumerable.Range(0, rows)], rank++, world, entry.GetProperty("drop_last").GetBoolean()));
        }
    }
}
