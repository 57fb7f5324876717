// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>Compositions as values: what may stand where, what they promise, and that nothing leaks.</summary>
[TestClass]
public class CompositionTests
{
    private static AdapterSet Set(Backbone backbone, params string[] names)
    {
        var set = new AdapterSet(backbone);
        long seed = 0;
        foreach (string name in names) set.Add(name, new PfeifferOptions { Name = name, ReductionFactor = 4 }.Attach(backbone, ++seed));
        return set;
    }

    private static TokenBatch Batch()
    {
        var draws = new Draws(5, "rows");
        return new TokenBatch(tensor(Enumerable.Range(0, 24).Select(_ => 1 + (long)(draws.Next() * 90)).ToArray(), [4, 6]), ones([4, 6], ScalarType.Int64), Padded: false);
    }

    private static Tensor Run(Backbone backbone, PeftAdaptation worn) => backbone.Forward(Batch(), new Pass(worn.Table())).Last;

    [TestMethod]
    public void TheSheetsPromisesHold()
    {
        using var model = new MatrixModel(null);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using AdapterSet set = Set(model.Backbone, "a", "b");
        set.Add("a again", new PfeifferOptions { Name = "again", ReductionFactor = 4 }.Attach(model.Backbone, 1));
        foreach ((NamedParameter copy, NamedParameter from) in set["a again"].Parameters.Zip(set["a"].Parameters)) copy.Load(from.Value);
        Tensor a = Run(model.Backbone, set.Compose("a")), b = Run(model.Backbone, set.Compose("b"));
        Assert.AreEqual(0, Deviations.Distance(a, Run(model.Backbone, set["a"])), "one name is the adapter itself");
        Assert.IsLessThan(1e-5, Deviations.Distance(a, Run(model.Backbone, set.Compose(Composition.Average("a", "a")))));
        Tensor both = Run(model.Backbone, set.Compose(Composition.Parallel("a", "b")));
        Assert.AreEqual(8, both.shape[0]);
        Assert.IsLessThan(1e-5, Deviations.Distance(both.narrow(0, 0, 4), a));
        Assert.IsLessThan(1e-5, Deviations.Distance(both.narrow(0, 4, 4), b));
        Tensor rows = Run(model.Backbone, set.Compose(Composition.BatchSplit([1, 3], "b", "a")));
        Assert.IsLessThan(1e-5, Deviations.Distance(rows.narrow(0, 0, 1), b.narrow(0, 0, 1)));
        Assert.IsLessThan(1e-5, Deviations.Distance(rows.narrow(0, 1, 3), a.narrow(0, 1, 3)));
        // Identical children: the mix is the child, up to what is beside the diagonal of the value map.
        var fusion = set.AddFusion(new FusionOptions(), ["a", "a again"], seed: 2);
        Tensor Fused() => Run(model.Backbone, set.Compose(Composition.Fuse("a", "a again")));
        Assert.IsLessThan(1e-3, Deviations.Distance(a, Fused()));
        foreach (NamedParameter value in fusion.Parameters.Where(p => p.Name.EndsWith("value.weight", StringComparison.Ordinal))) value.Load(eye(value.Value.shape[0]));
        Assert.IsLessThan(1e-5, Deviations.Distance(a, Fused()));
    }

    /// <summary>A hook that comes later must not be forgotten where several adaptations run as one.</summary>
    [TestMethod]
    public void EveryHookIsPassedOnToTheParts()
    {
        string[] left = [nameof(PeftAdaptation.Dispose)];
        string[] hooks = [.. typeof(PeftAdaptation).GetMethods().Where(m => m.IsVirtual && !m.IsFinal && m.DeclaringType == typeof(PeftAdaptation)).Select(m => m.Name.Replace("get_", "", StringComparison.Ordinal)).Except(left)];
        string[] passed = [.. typeof(JoinedAdaptation).GetMethods().Where(m => m.DeclaringType == typeof(JoinedAdaptation)).Select(m => m.Name.Replace("get_", "", StringComparison.Ordinal))];
        Assert.IsGreaterThan(8, hooks.Length);
        Assert.AreEqual("", string.Join(", ", hooks.Except(passed)), "not passed on by JoinedAdaptation");
    }

    [TestMethod]
    public void CountsOfFusionsFollowTheFormula()
    {
        using Backbone backbone = MatrixModel.ShapesOnly(768, 12, 3072);
        using AdapterSet set = Set(backbone, "a", "b");
        Assert.AreEqual(21_252_096, set.AddFusion(new FusionOptions(), ["a", "b"]).TrainableCount);
    }

    [TestMethod]
    public void WhatCannotStandIsRefused()
    {
        using var model = new MatrixModel(null);
        using AdapterSet set = Set(model.Backbone, "a", "b");
        void Refused(Func<object> make, params string[] parts)
        {
            string message = Assert.ThrowsExactly<ArgumentException>(() => make()).Message;
            foreach (string part in parts) StringAssert.Contains(message, part);
        }
        Refused(() => Composition.Stack("a", Composition.Stack("a", "b")), "Stack[a, b] cannot stand inside");
        Refused(() => Composition.Fuse("a"), "two or more");
        Refused(() => Composition.Parallel("a", Composition.Fuse("a", "b")), "cannot stand inside");
        Refused(() => Composition.Stack("a", Composition.Parallel(Composition.BatchSplit([1], "a", "b"), "b")), "too deep");
        Refused(() => Composition.Average([1], true, "a", "b"), "1 weights for 2 children");
        Refused(() => Composition.Average([1, -1], true, "a", "b"), "sum to 0");
        Refused(() => Composition.Split([1, 2, 3], "a", "b"), "do not fit 2 children");
        Refused(() => set.Compose(Composition.Stack("a", "nobody")), "no adapter 'nobody'", "a");
        Refused(() => set.Compose(Composition.Fuse("a", "b")), "needs a fusion of 'a,b'");
        Refused(() => set.Compose("a", ["b"]), "'b' shall be trained");
        Refused(() => set.Compose("a", skipLayers: [7]), "layer 7");
        Refused(() => set.AddFusion(new FusionOptions(), ["a"]), "two names or more");
        set.Add("terms", new LoraOptions().Attach(model.Backbone, 1));
        set.Add("from data", new LoraOptions { DataStart = new EvaStart() }.Attach(model.Backbone, 1));
        StringAssert.Contains(Assert.ThrowsExactly<NotSupportedException>(() => set.Compose(Composition.Stack("a", "from data"), ["from data"])).Message, "'from data' makes its start");
        using (PeftAdaptation frozen = set.Compose(Composition.Stack("a", "from data"), ["a"])) Assert.AreEqual(0, frozen.CalibrationBatches);
        set.Remove("from data");
        Refused(() => set.AddFusion(new FusionOptions(), ["a", "terms"]), "different residual connections");
        Refused(() => { set.Define("pair", Composition.Parallel("a", "b")); return 0; }, "repeats the batch");
        set.Define("mix", Composition.Stack("a", "b"));
        Refused(() => { set.Remove("a"); return 0; }, "composition 'mix' needs");
        using var scope = NewDisposeScope();
        Refused(() => Run(model.Backbone, set.Compose(Composition.BatchSplit([1, 1], "a", "b"))), "4 rows", "sum to 2");
        Refused(() => Run(model.Backbone, set.Compose(Composition.Split([3, 4], "a", "b"))), "6 tokens", "sum to 7");
    }

    [TestMethod]
    public void JsonKeepsTheTree()
    {
        foreach (Composition tree in (Composition[])["a", Composition.Stack("a", Composition.Average([0.25, 0.75], false, "b", "c")),
            Composition.Fuse("a", Composition.Stack("b", "c")), Composition.Average([0.5, 0.5], true, "a", Composition.Split([2, 4], "c", "d")), Composition.BatchSplit([1, 3], "a", "b"), Composition.Parallel("a", "b")])
            Assert.AreEqual(tree.ToString(), Composition.FromJson(System.Text.Json.Nodes.JsonNode.Parse(tree.ToJson().ToJsonString())!).ToString());
        Assert.ThrowsExactly<ArgumentException>(() => Composition.FromJson(System.Text.Json.Nodes.JsonNode.Parse("""{"kind":"Stick","children":["a"]}""")!));
    }

    [TestMethod]
    public void OnlyWhatIsNamedIsTrainedAndNothingLeaks()
    {
        void Once()
        {
            using var model = new MatrixModel(null);
            using var scope = NewDisposeScope();
            using AdapterSet set = Set(model.Backbone, "a", "b");
            set.AddFusion(new FusionOptions(), ["a", "b"]);
            PeftAdaptation worn = set.Compose(Composition.Fuse("a", "b"));
            Assert.IsTrue(worn.Parameters.All(p => p.Trainable && p.Name.Contains("adapter_fusion_layer", StringComparison.Ordinal)));
            Assert.IsFalse(set["a"].Parameters.Any(p => p.Trainable));
            Tensor loss = Run(model.Backbone, worn).square().mean() + worn.ExtraLoss(new Pass())!;
            loss.backward();
            foreach (NamedParameter p in worn.Parameters) Assert.IsNotNull(p.Value.grad, p.Name);
            Assert.IsTrue(set["a"].Parameters.All(p => p.Value.grad is null));
            using var off = no_grad();
            Run(model.Backbone, set.Compose(Composition.Parallel("a", "b")));
            Run(model.Backbone, set.Compose(Composition.Stack("a", Composition.BatchSplit([1, 3], "a", "b"))));
        }

        Once();
        long before = LiveTensors.Count();
        Once();
        Assert.AreEqual(before, LiveTensors.Count());
    }
}
