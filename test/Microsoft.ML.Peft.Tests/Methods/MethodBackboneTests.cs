// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// The rows of the method matrix on other networks than BERT, one short test a row and network. A row either holds or is
/// refused in words when it is attached; what is not to be tried at all says why in <see cref="MatrixRows.NotOn"/>.
/// </summary>
[TestClass]
public class MethodBackboneTests
{
    private static readonly IReadOnlyDictionary<string, Func<PeftMethod>> _rows = MatrixRows.All;

    private static int _threads;

    public TestContext TestContext { get; set; } = null!;

    public static IEnumerable<object[]> Pairs => MatrixBackbone.All.SelectMany(kind => Tried(kind).Select(row => new object[] { kind.Name, row }));

    // All rows, or one a method, to be quick: the first that is said to apply.
    private static IEnumerable<string> Tried(MatrixBackbone kind) => kind.EveryRow ? _rows.Keys
        : _rows.Keys.GroupBy(row => _rows[row]().Id).Where(rows => kind.Few?.Contains(rows.Key) != false).Select(rows => rows.FirstOrDefault(row => !MatrixRows.NotOn.ContainsKey($"{kind.Name}: {row}")) ?? rows.First());

    public static IEnumerable<object[]> Kinds => MatrixBackbone.All.Select(kind => new object[] { kind.Name });

    private static MatrixBackbone Kind(string name) => MatrixBackbone.All.Single(kind => kind.Name == name);

    [ClassInitialize]
    public static void Prepare(TestContext context)
    {
        _ = context;
        PeftMethods.Register<ToyScale>();
        _threads = torch.get_num_threads();
        torch.set_num_threads(1);
        // What the process keeps from a first run is no leak.
        foreach (MatrixBackbone kind in MatrixBackbone.All) Holds(kind, new LoraOptions { Targets = ["FeedForwardUp"] });
    }

    [ClassCleanup]
    public static void RestoreThreads() => torch.set_num_threads(_threads);

    private static float Distance(float[] a, float[] b) => a.Zip(b).Max(p => Math.Abs(p.First - p.Second));

    [TestMethod]
    [DynamicData(nameof(Pairs))]
    public void TheRowHoldsOrIsRefused(string network, string row)
    {
        MatrixBackbone kind = Kind(network);
        if (MatrixRows.NotOn.TryGetValue($"{network}: {row}", out string? reason))
        {
            TestContext.WriteLine($"does not apply: {reason}");
            return;
        }
        long before = LiveTensors.Count();
        if (Refused(kind, row) is { } words) TestContext.WriteLine($"refused: {words}");
        else Holds(kind, kind.Spelled(_rows[row]()));
        Assert.AreEqual(before, LiveTensors.Count(), "tensors leak");
    }

    /// <summary>Every method has a row that holds on every network, or says why not.</summary>
    [TestMethod]
    [DynamicData(nameof(Kinds))]
    public void EveryMethodIsThere(string network)
    {
        MatrixBackbone kind = Kind(network);
        foreach (string known in MatrixRows.NotOn.Keys.Where(key => key.StartsWith(network + ": ", StringComparison.Ordinal)))
            Assert.IsTrue(_rows.ContainsKey(known[(network.Length + 2)..]), $"there is no row for '{known}'");
        var refusals = new List<string>();
        foreach (IGrouping<string, string> method in _rows.Keys.GroupBy(row => _rows[row]().Id).Where(rows => kind.Few?.Contains(rows.Key) != false))
        {
            string[] tried = [.. method.Where(row => !MatrixRows.NotOn.ContainsKey($"{network}: {row}"))];
            string?[] words = [.. tried.Select(row => Refused(kind, row))];
            foreach ((string row, string? text) in tried.Zip(words))
                if (text is not null) TestContext.WriteLine($"{row}: {text}");
            if (tried.Length > 0 && words.All(text => text is not null)) refusals.Add($"{method.Key}: {words[0]}");
        }
        Assert.IsEmpty(refusals, string.Join(Environment.NewLine, refusals));
    }

    /// <summary>The matrix as one table: for every method the rows that hold on each network, out of those that there are.</summary>
    [TestMethod]
    public void TheTableOfMethodsAndNetworks()
    {
        MatrixBackbone[] kinds = [.. MatrixBackbone.All.Where(kind => kind.Few is null)];
        TestContext.WriteLine($"{"method",-24} {"bert",8} {string.Join(' ', kinds.Select(k => $"{k.Name,8}"))}   reasons");
        foreach (IGrouping<string, string> method in _rows.Keys.GroupBy(row => _rows[row]().Id).OrderBy(g => g.Key, StringComparer.Ordinal))
        {
            var cells = new List<string> { $"{method.Count()}/{method.Count()}" };
            var reasons = new SortedSet<string>(StringComparer.Ordinal);
            foreach (MatrixBackbone kind in kinds)
            {
                int holds = 0;
                foreach (string row in method)
                    if (MatrixRows.NotOn.TryGetValue($"{kind.Name}: {row}", out string? reason)) reasons.Add($"{kind.Name}: {reason}");
                    else if (Refused(kind, row) is null) holds++;
                cells.Add($"{holds}/{method.Count()}");
                // A method that no network but BERT takes, and no reason for it, is a hole in the matrix.
                if (holds == 0) Assert.IsTrue(reasons.Any(r => r.StartsWith(kind.Name + ":", StringComparison.Ordinal)), $"{method.Key} on {kind.Name}: no row holds and no reason is given");
            }
            TestContext.WriteLine($"{method.Key,-24} {string.Join(' ', cells.Select(c => $"{c,8}"))}   {string.Join("; ", reasons)}");
        }
    }

    /// <summary>bfloat16 networks run near the float32 ones and train.</summary>
    [TestMethod]
    [DynamicData(nameof(Kinds))]
    public void ABfloat16NetworkRunsAndTrains(string network)
    {
        MatrixBackbone kind = Kind(network);
        var method = new LoraOptions { Targets = ["AttentionOutput", "FeedForwardUp", "FeedForwardDown"] };
        using MatrixModel full = new(method, kind: kind), half = new(method, dtype: ScalarType.BFloat16, kind: kind);
        Assert.IsLessThan(0.15f, Distance(full.Score(), half.Score()), "bfloat16 is too far from float32");
        Assert.IsTrue(half.Train(3).All(float.IsFinite));
    }

    // The words in which the method refuses the network, or null where it attaches.
    private static string? Refused(MatrixBackbone kind, string row)
    {
        try
        {
            using var model = new MatrixModel(kind.Spelled(_rows[row]()), kind: kind);
            return null;
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException)
        {
            Assert.IsGreaterThan(20, e.Message.Length, $"{row} is refused without words: {e}");
            return e.Message;
        }
    }

    internal static void Holds(MatrixBackbone kind, PeftMethod method)
    {
        using MatrixModel model = new(method, kind: kind), again = new(null, kind: kind);
        PeftAdaptation adaptation = model.Adaptation!;
        Assert.AreEqual(method.CountTrainable(model.Backbone), adaptation.TrainableCount, "the formula's count");
        float[] bare = model.Score(bare: true);
        if (method.ExactAtStart) Assert.IsLessThanOrEqualTo(adaptation.Parameters.Any(p => !p.Exchanged) ? 1e-4f : 2e-6f, Distance(bare, model.Score()), "a fresh adaptation");
        RunAgainIsTheSame(model);
        List<byte[]> frozen = model.FrozenBytes();
        string[] trainable = [.. model.Model.Parameters.Where(p => p.Trainable).Select(p => p.Name)];
        List<float> losses = model.Train(3);
        Assert.IsTrue(losses.All(float.IsFinite), string.Join(", ", losses));
        Assert.IsTrue(frozen.Zip(model.FrozenBytes()).All(p => p.First.AsSpan().SequenceEqual(p.Second)), "a frozen number changed");
        // What a method froze on the way had a gradient before, what it thawed has one since.
        foreach (NamedParameter parameter in model.Model.Parameters.Where(p => p.Trainable == trainable.Contains(p.Name)))
            Assert.AreEqual(parameter.Trainable, parameter.Value.grad is not null, parameter.ToString());
        float[] worn = model.Score();
        SavedIsTheSame(model, again, worn);
        if (!method.Mergeable) return;
        using Backbone merged = Merging.Merge(adaptation);
        Assert.IsLessThanOrEqualTo(2e-5f, Distance(worn, model.Score(bare: true, merged)), "merged");
    }

    // Layers that run again in the backward pass give the gradients of those that keep their activations.
    private static void RunAgainIsTheSame(MatrixModel model)
    {
        Dictionary<string, float[]> kept = model.Gradients(checkpointing: false), again;
        try
        {
            again = model.Gradients(checkpointing: true);
        }
        catch (NotSupportedException e) when (e.Message.Contains("GradientCheckpointing", StringComparison.Ordinal))
        {
            return;       // the method says that its layers cannot run twice
        }
        foreach ((string name, float[] gradient) in kept)
        {
            Assert.AreEqual(gradient.Length, again[name].Length, $"gradient of {name} by checkpointing");
            if (gradient.Length > 0)
                Assert.IsLessThanOrEqualTo(1e-5f + 1e-4f * gradient.Max(Math.Abs), Distance(gradient, again[name]), $"gradient of {name} by checkpointing");
        }
    }

    private static void SavedIsTheSame(MatrixModel model, MatrixModel again, float[] worn)
    {
        if (model.Adaptation!.Method is LoraOptions { UseDora: true, Init: "pissa" }) return;       // has no exchanged form
        string folder = HfBases.Temporary();
        AdapterFolder.Save(folder, model.Adaptation, model.Model.Head);
        using AdapterFolder file = AdapterFolder.Open(folder);
        using PeftAdaptation loaded = file.Attach(again.Backbone, again.Model.Head);
        Assert.IsLessThanOrEqualTo(1e-5f, Distance(worn, again.Score(loaded.Table(), of: loaded)), "saved and loaded");
    }
}
