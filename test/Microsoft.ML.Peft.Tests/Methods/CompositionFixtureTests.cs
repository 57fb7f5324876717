// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Compositions of AdapterHub: outputs of every tree, refused trees, fusions with their training and files.</summary>
[TestClass]
[TestCategory("Fixtures")]
public class CompositionFixtureTests
{
    private readonly Deviations _deviations = new();
    private readonly List<string> _left = [];

    [TestMethod]
    public void CompositionsEqualAdapterHub()
    {
        int count = 0;
        List<string> done = [];
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["compositions"] is not JsonObject trees || Base(fixture) is not { } at) continue;
            using var scope = NewDisposeScope();
            using var off = no_grad();
            using var tiny = new TinyBase(at);
            using AdapterSet set = Load(fixture, tiny.Backbone);
            double tolerance = (double)fixture.Json["tolerance"]!;
            foreach ((string key, JsonNode? entry) in trees)
            {
                Composition tree = Parse(entry!["tree"]!);
                if (Reason(fixture, set, tree) is { } reason)
                {
                    _left.Add($"{fixture.Name} {key} ({reason})");
                    continue;
                }
                try
                {
                    _deviations.Add("output of a composition", $"{fixture.Name} {key}", Run(fixture, tiny.Backbone, set.Compose(tree, skipLayers: Skipped(entry))), fixture[$"out/{key}"], tolerance);
                }
                catch (Exception e) when (e is ArgumentException or NotSupportedException or InvalidOperationException)
                {
                    _deviations.Fail($"{fixture.Name} {key}: {e}");
                }
                count++;
            }
            foreach ((string key, JsonNode? entry) in fixture.Json["refused"]?.AsObject() ?? []) Refuses(fixture, tiny.Backbone, set, key, entry!);
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{count} compositions of {done.Count} cases: {string.Join(", ", done)}\nnot compared: {string.Join("; ", _left)}");
        _deviations.Report();
    }

    private static string? Base(Fixture fixture)
    {
        string folder = Path.Combine(Path.GetDirectoryName(fixture.Folder)!, fixture.Text("base") ?? ""), config = Path.Combine(folder, "config.json");
        return File.Exists(config) && BackboneLoader.ModelTypes.Contains((string)JsonNode.Parse(File.ReadAllText(config))!["model_type"]!) ? folder : null;
    }

    private AdapterSet Load(Fixture fixture, Backbone backbone)
    {
        var set = new AdapterSet(backbone);
        foreach (string path in Directory.GetDirectories(fixture.PathOf("adapters")).Order(StringComparer.Ordinal))
        {
            try
            {
                set.Add(Path.GetFileName(path), AdapterHubFolder.Attach(path, backbone));
            }
            catch (CheckpointFormatException e) when (e.Message.Contains("'architecture'", StringComparison.Ordinal))
            {
                _left.Add($"{fixture.Name}: adapter {Path.GetFileName(path)} of a method that does not exist here yet");
            }
        }
        string fusion = fixture.PathOf("fusion");
        string[] folders = !Directory.Exists(fusion) ? [] : File.Exists(Path.Combine(fusion, FusionFolder.ConfigFile)) ? [fusion] : Directory.GetDirectories(fusion);
        foreach (string path in folders) LoadFusion(fixture, set, path);
        return set;
    }

    // Read, written, read: the same bytes.
    private void LoadFusion(Fixture fixture, AdapterSet set, string path)
    {
        JsonObject config = JsonNode.Parse(File.ReadAllText(Path.Combine(path, FusionFolder.ConfigFile)))!.AsObject();
        string[] names = [.. config["adapter_names"]!.AsArray().Select(n => (string)n!)];
        if (!names.All(set.Names.Contains)) return;
        PeftAdaptation made = FusionFolder.Load(path, set);
        string saved = HfBases.Temporary();
        FusionFolder.Save(saved, made, names, (string?)config["model_class"], (string?)config["model_name"]);
        using SafetensorsFile weights = SafetensorsFile.Open(Path.Combine(path, FusionFolder.WeightsFile));
        bool alone = weights.Names.All(n => made.Find(n) is not null);          // the package may write another fusion's tensors along
        foreach (string file in alone ? [FusionFolder.ConfigFile, FusionFolder.WeightsFile] : (string[])[FusionFolder.ConfigFile])
            if (!File.ReadAllBytes(Path.Combine(saved, file)).AsSpan().SequenceEqual(File.ReadAllBytes(Path.Combine(path, file))))
                _deviations.Fail($"{fixture.Name}: {file} of the fusion {string.Join(",", names)} is not written as it was read");
    }

    private static Composition Parse(JsonNode tree)
    {
        if (tree is JsonValue) return (string)tree!;
        Composition[] children = [.. tree["children"]!.AsArray().Select(c => c is JsonValue v ? (Composition)(string)v! : Parse(c!))];
        JsonNode? settings = tree["kwargs"];
        double[] Numbers(string name) => settings?[name] is JsonArray list ? [.. list.Select(n => (double)n!)] : [(double)settings![name]!];
        return (string)tree["type"]! switch
        {
            "single" => children[0],
            "Stack" => Composition.Stack(children),
            "Fuse" => Composition.Fuse(children),
            "Parallel" => Composition.Parallel(children),
            // The package takes the mean of outputs that are weighted already; here the weights are all there is.
            "Average" => Composition.Average([.. Numbers("weights").Select(w => w / children.Length)], false, children),
            "Split" => Composition.Split([.. Numbers("splits").Select(n => (long)n)], children),
            "BatchSplit" => Composition.BatchSplit([.. Numbers("batch_sizes").Select(n => (long)n)], children),
            string other => throw new NotSupportedException(other),
        };
    }

    private static int[] Skipped(JsonNode entry) => [.. entry["skip_layers"]?.AsArray().Select(n => (int)n!) ?? []];

    // What the notes of the cases call no target, by what the adapters are.
    private static string? Reason(Fixture fixture, AdapterSet set, Composition tree)
    {
        if (tree.Names.FirstOrDefault(n => !set.Names.Contains(n)) is { } unknown) return $"adapter {unknown} is not there";
        JsonObject configs = fixture.Json["config"]!["adapters"]!.AsObject();
        T?[] Fields<T>(string field) => [.. tree.Names.Select(n => configs[n]?[field]).OfType<JsonNode>().Select(n => n.GetValue<T>()).Distinct()];
        if (tree.Kind == CompositionKind.Stack && Fields<string>("composition_mode").Length > 1) return "an update and a factor in one stack: no sensible combination there";
        if (tree.Kind is CompositionKind.Parallel or CompositionKind.BatchSplit && Fields<int>("prefix_length").Length > 1) return "prefixes of other lengths see padding there";
        return null;
    }

    private static Tensor Run(Fixture fixture, Backbone backbone, PeftAdaptation worn)
    {
        TokenBatch tokens = AdapterHubBatch.Of(fixture);
        var pass = new Pass(worn.Table());
        worn.BeforePass(pass, tokens);
        return backbone.Forward(tokens, pass).Last;
    }

    // What the package refuses with a reason is refused here; where it breaks by accident, a clear exception or a result is right.
    private void Refuses(Fixture fixture, Backbone backbone, AdapterSet set, string key, JsonNode entry)
    {
        string error = (string)entry["error"]!;
        string where = $"{fixture.Name} {key}: {entry["expression"]}";
        try
        {
            Composition tree = CompositionExpression.Parse((string)entry["expression"]!);
            if (error != "ValueError" && !tree.Names.All(set.Names.Contains)) return;
            Tensor output = Run(fixture, backbone, set.Compose(tree));
            if (error == "ValueError") _deviations.Fail($"{where} should be refused");
            else if (!output.isfinite().all().item<bool>()) _deviations.Fail($"{where} gives numbers that are not finite");
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException)
        {
            if (e.Message.Length < 20) _deviations.Fail($"{where}: {e.Message}");
        }
    }

    [TestMethod]
    public void TrainedCompositionsEqualAdapterHub()
    {
        List<string> done = [];
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["train"]?["losses"] is not JsonArray losses || !Directory.Exists(fixture.PathOf("adapters")) || Base(fixture) is not { } at || !fixture.Has("on.last_hidden_state")) continue;
            string? call = fixture.Json["api"]!.AsArray().Select(a => CompositionExpression.In((string)a!)).FirstOrDefault(a => a is not null);
            if (call is null) continue;
            using var scope = NewDisposeScope();
            using var tiny = new TinyBase(at);
            using AdapterSet set = Load(fixture, tiny.Backbone);
            Composition tree = CompositionExpression.Parse(call);
            string[] trained = [.. fixture.Json["trainable"]!["shapes"]!.AsObject().Select(s => Regex.Match(s.Key, @"\.(?:adapters|adapter_fusion_layer)\.([^.]+)\.").Groups[1].Value).Distinct()];
            PeftAdaptation worn = set.Compose(tree, trained);
            if (worn.TrainableCount != (long)fixture.Json["trainable"]!["count"]!) _deviations.Fail($"{fixture.Name}: {worn.TrainableCount} trained numbers, expected {fixture.Json["trainable"]!["count"]}");
            Train(fixture, tiny.Backbone, worn, tree, losses);
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} cases: {string.Join(", ", done)}\n{string.Join("; ", _left)}");
        _deviations.Report();
    }

    private void Train(Fixture fixture, Backbone backbone, PeftAdaptation worn, Composition tree, JsonArray losses)
    {
        JsonNode train = fixture.Json["train"]!, tolerances = fixture.Json["tolerances"]!;
        using (no_grad()) _deviations.Add("output", fixture.Name, Run(fixture, backbone, worn), fixture["on.last_hidden_state"], (double)fixture.Json["tolerance"]!);
        var optimizer = new PlainAdamW((double)train["lr"]!, (double)train["weight_decay"]!, (double)train["eps"]!);
        foreach (NamedParameter parameter in worn.Parameters) parameter.Decay = true;
        HashSet<string> unstable = fixture.Json["not_compared"]?["tensors"]?.AsArray().Select(n => (string)n!).ToHashSet() ?? [];
        for (int step = 0; step < losses.Count; step++)
        {
            using var scope = NewDisposeScope();
            Tensor loss = Loss(fixture, Run(fixture, backbone, worn), tree.Copies);
            if (worn.ExtraLoss(new Pass(worn.Table())) is { } extra) loss = loss + extra;
            _deviations.Add("loss", $"{fixture.Name} step {step}", Math.Abs(loss.item<float>() - (double)losses[step]!), (double)tolerances["losses"]!);
            if (step == losses.Count - 1) break;
            PlainAdamW.ZeroGradients(worn.Parameters);
            loss.backward();
            if (step == 0)
                foreach ((string key, Tensor expected) in fixture.Under("grad/"))
                    if (worn.Find(key)?.Value.grad is { } gradient) _deviations.Add("gradient", $"{fixture.Name} {key}", gradient, expected, (double)tolerances["grad"]!);
                    else _deviations.Fail($"{fixture.Name}: no gradient for {key}");
            optimizer.Step(worn.Parameters);
        }
        foreach ((string key, Tensor expected) in fixture.Under("final/"))
            if (!unstable.Contains("final/" + key))
                _deviations.Add("after training", $"{fixture.Name} {key}", worn.Find(key)!.Value, expected, (double)tolerances["final"]!);
        optimizer.Dispose();
    }

    // Copies of the batch have targets of their own: the second one those of the rows in the other order.
    private static Tensor Loss(Fixture fixture, Tensor hidden, int copies)
    {
        Tensor mask = fixture["loss_mask"].to_type(ScalarType.Float32).unsqueeze(-1), target = fixture["target"];
        Tensor One(Tensor h, Tensor goal) => (mask * (h - goal)).square().sum() / (mask.sum() * h.shape[^1]);
        if (copies == 1) return One(hidden, target);
        Tensor reversed = target.flip(0);
        return One(hidden.narrow(0, 0, target.shape[0]), target) + One(hidden.narrow(0, target.shape[0], target.shape[0]), reversed);
    }

    [TestMethod]
    public void FusionSwitchesEqualAdapterHub()
    {
        int count = 0;
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (Base(fixture) is not { } at || !fixture.Names.Any(n => n.StartsWith("weights/", StringComparison.Ordinal) && n.Contains(".adapter_fusion_layer.", StringComparison.Ordinal))) continue;
            string name = Regex.Match(fixture.Names.First(n => n.Contains(".adapter_fusion_layer.", StringComparison.Ordinal)), @"adapter_fusion_layer\.([^.]+)\.").Groups[1].Value;
            foreach ((string key, JsonNode? config) in fixture.Json["config"]!.AsObject())
            {
                using var scope = NewDisposeScope();
                using var off = no_grad();
                using var tiny = new TinyBase(at);
                using AdapterSet set = Load(fixture, tiny.Backbone);
                var options = FusionFolder.Read(config!.AsObject());
                var fusion = (FusionAdaptation)set.AddFusion(options, name.Split(','));
                foreach ((string parameter, Tensor value) in fixture.Under("weights/")) fusion.Find(parameter)?.Load(value);
                Composition tree = Composition.Fuse([.. name.Split(',').Select(n => (Composition)n)]);
                double tolerance = (double)fixture.Json["tolerance"]!;
                _deviations.Add("output of a fusion", $"{fixture.Name} {key}", Run(fixture, tiny.Backbone, set.Compose(tree)), fixture[$"out/{key}"], tolerance);
                count++;
                if (!fixture.Has($"out/{key}_second_call")) continue;
                // There each forward cools; here each step of training does.
                fusion.AfterStep(0);
                _deviations.Add("output of a fusion", $"{fixture.Name} {key} cooler", Run(fixture, tiny.Backbone, set.Compose(tree)), fixture[$"out/{key}_second_call"], tolerance);
            }
        }
        Console.WriteLine($"{count} switches");
        _deviations.Report();
    }

    /// <summary>Each child of a Parallel or a BatchSplit with a head of its own: scores, losses, gradients.</summary>
    [TestMethod]
    public void HeadsOfCompositionsEqualAdapterHub()
    {
        List<string> done = [];
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Has("labels") || fixture.Json["losses"] is not JsonObject losses || !Directory.Exists(fixture.PathOf("adapters")) || Base(fixture) is not { } at) continue;
            using var scope = NewDisposeScope();
            using var tiny = new TinyBase(at);
            using var set = new AdapterSet(tiny.Backbone);
            string[] names = [.. Directory.GetDirectories(fixture.PathOf("adapters")).Select(p => Path.GetFileName(p)!).Order(StringComparer.Ordinal)];
            foreach (string name in names)
                set.Add(name, AdapterHubFolder.Attach(fixture.PathOf("adapters", name), tiny.Backbone), AdapterHubFolder.AttachHead(fixture.PathOf("adapters", name), tiny.Backbone));
            Composition[] children = [.. names.Select(n => (Composition)n)];
            foreach ((string key, JsonNode? loss) in losses)
            {
                long[] sizes = [.. names.Select(n => fixture[$"out/{key}/{n}"].shape[0])];
                Composition tree = key == "parallel" ? Composition.Parallel(children) : Composition.BatchSplit(sizes, children);
                PeftAdaptation worn = set.Compose(tree, names);
                foreach (NamedParameter p in names.SelectMany(set.ParametersOf)) p.SetTrainable(true);
                var pass = new Pass(worn.Table());
                Tensor labels = fixture["labels"];
                Tensor? total = null;
                long row = 0;
                foreach ((string name, Tensor scores) in set.Heads(tree, tiny.Backbone.Forward(AdapterHubBatch.Of(fixture), pass), pass))
                {
                    _deviations.Add("scores of a head", $"{fixture.Name} {key}/{name}", scores, fixture[$"out/{key}/{name}"], (double)fixture.Json["tolerance"]!);
                    Tensor wanted = tree.Copies > 1 ? labels : labels.narrow(0, row, scores.shape[0]);
                    row += scores.shape[0];
                    Tensor part = nn.functional.cross_entropy(scores, wanted);
                    total = total is null ? part : total + part;
                }
                _deviations.Add("loss of heads", $"{fixture.Name} {key}", Math.Abs(total!.item<float>() - (double)loss!), 5e-5);
                if (tree.Copies == 1) continue;
                PlainAdamW.ZeroGradients(names.SelectMany(set.ParametersOf));
                total.backward();
                foreach ((string name, Tensor expected) in fixture.Under("grad/"))
                    if (names.SelectMany(set.ParametersOf).FirstOrDefault(p => p.Name == name)?.Value.grad is { } gradient) _deviations.Add("gradient", $"{fixture.Name} {name}", gradient, expected, 1e-5);
                    else _deviations.Fail($"{fixture.Name}: no gradient for {name}");
            }
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} cases: {string.Join(", ", done)}");
        _deviations.Report();
    }

    [TestMethod]
    public void AveragedAdaptersEqualAdapterHub()
    {
        int count = 0;
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["averages"] is not JsonObject averages || Base(fixture) is not { } at) continue;
            using var scope = NewDisposeScope();
            using var off = no_grad();
            using var tiny = new TinyBase(at);
            using AdapterSet set = Load(fixture, tiny.Backbone);
            double tolerance = (double)fixture.Json["tolerance"]!;
            foreach ((string key, JsonNode? entry) in averages)
            {
                using PeftAdaptation made = Average(set, entry!);
                _deviations.Add("output of an average", $"{fixture.Name} {key}", Run(fixture, tiny.Backbone, made), fixture[$"out/{key}"], tolerance);
                foreach ((string name, Tensor expected) in fixture.Under($"new/{key}/"))
                    if ((made.Find(name) ?? Renamed(made, name)) is { } parameter) _deviations.Add("averaged tensor", $"{fixture.Name} {key} {name}", parameter.Value.reshape(expected.shape), expected, tolerance);
                    else _deviations.Fail($"{fixture.Name} {key}: no parameter {name}");
                foreach ((string path, Tensor expected) in fixture.Under($"delta/{key}/"))
                    _deviations.Add("averaged update", $"{fixture.Name} {key} {path}", made.Find(path + ".lora_B")!.Value.matmul(made.Find(path + ".lora_A")!.Value), expected, tolerance);
                count++;
            }
            foreach ((string key, JsonNode? entry) in fixture.Json["refused"]?.AsObject() ?? [])
            {
                if (!Enum.IsDefined(Strategy(entry!))) continue;                // a name that no value of the enumeration has
                if (Assert.ThrowsExactly<ArgumentException>(() => Average(set, entry!).Dispose()).Message.Length < 20) _deviations.Fail($"{fixture.Name} {key}: no clear message");
            }
        }
        Console.WriteLine($"{count} averages");
        _deviations.Report();
    }

    // (IA)³ has its Hugging Face names here.
    private static NamedParameter? Renamed(PeftAdaptation made, string name)
    {
        int at = name.IndexOf(".loras.", StringComparison.Ordinal);
        return at < 0 ? null : made.Parameters.FirstOrDefault(p => p.Name.StartsWith(name[..(at + 1)], StringComparison.Ordinal));
    }

    private static AveragingStrategy Strategy(JsonNode entry) => (string?)entry["combine_strategy"] switch
    {
        null or "linear" => AveragingStrategy.Linear,
        "lora_linear_only_negate_b" => AveragingStrategy.NegateB,
        "lora_delta_w_svd" => AveragingStrategy.DeltaSvd,
        _ => (AveragingStrategy)(-1),
    };

    private static PeftAdaptation Average(AdapterSet set, JsonNode entry) => AdapterAveraging.Average(
        [.. entry["adapters"]!.AsArray().Select(n => set[(string)n!])], entry["weights"]?.AsArray().Select(w => (double)w!).ToArray(),
        (bool?)entry["normalize_weights"] ?? true, Strategy(entry), (int?)entry["svd_rank"], "new");
}
