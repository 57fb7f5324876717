// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>What every method promises, one row a method or variant. A new method adds its rows to <see cref="MatrixRows"/> and nothing else.</summary>
[TestClass]
public class MethodMatrixTests
{
    private static readonly IReadOnlyDictionary<string, Func<PeftMethod>> _rows = MatrixRows.All;

    public static IEnumerable<object[]> Rows => _rows.Keys.Select(key => new object[] { key });

    /// <summary>Rows by device: the CPU, and a CUDA device where there is one.</summary>
    public static IEnumerable<object[]> RowsByDevice =>
        _rows.Keys.SelectMany(key => (cuda.is_available() ? new[] { "cpu", "cuda" } : ["cpu"]).Select(device => new object[] { key, device }));

    private static int _threads;

    [ClassInitialize]
    public static void Prepare(TestContext context)
    {
        _ = context;
        PeftMethods.Register<ToyScale>();
        // A model this small gains nothing from threads, and waiting ones cost much where other work runs.
        _threads = torch.get_num_threads();
        torch.set_num_threads(1);
    }

    [ClassCleanup]
    public static void RestoreThreads() => torch.set_num_threads(_threads);

    private static MatrixModel Model(string row, long seed = 1, Device? device = null, ScalarType dtype = ScalarType.Float32) =>
        new(_rows[row](), seed, device, dtype);

    private static float Distance(float[] a, float[] b) => a.Zip(b).Max(p => Math.Abs(p.First - p.Second));

    [TestMethod]
    [DynamicData(nameof(RowsByDevice))]
    public void TrainingLeavesTheBaseBitIdentical(string row, string device)
    {
        using MatrixModel model = Model(row, device: new Device(device));
        List<byte[]> before = model.FrozenBytes();
        Dictionary<string, byte[]> trained = model.TrainedBytes();
        // What a method freezes on the way has moved before.
        string[] never = [.. model.Adaptation!.Parameters.Where(p => !p.Trainable && !p.Learned).Select(p => p.Name)];
        float[] bare = model.Score(bare: true);
        model.Train(3);
        List<byte[]> after = model.FrozenBytes();
        Assert.IsTrue(before.Zip(after).All(p => p.First.AsSpan().SequenceEqual(p.Second)), "a frozen number changed");
        foreach (NamedParameter parameter in model.Adaptation!.Parameters)
            if (!parameter.Trainable && never.Contains(parameter.Name)) Assert.IsTrue(trained[parameter.Name].AsSpan().SequenceEqual(model.TrainedBytes()[parameter.Name]), $"{parameter.Name} is not trained and changed");
        foreach (WeightSite site in model.Backbone.Sites.OfType<WeightSite>())
        {
            Assert.IsFalse(site.Weight.requires_grad);
            Assert.IsNull(site.Weight.grad);
        }
        if (model.Adaptation.TrainableCount > 0) Assert.AreNotEqual(0, Distance(bare, model.Score()), "training changed nothing");
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void DetachingRestoresTheBaseExactly(string row)
    {
        using MatrixModel bare = new(null), model = Model(row);
        model.Train(2);
        // The head trains too: it is put back before the comparison.
        foreach ((NamedParameter ours, NamedParameter fresh) in model.Model.Head.Parameters.Zip(bare.Model.Head.Parameters)) ours.Load(fresh.Value);
        CollectionAssert.AreEqual(bare.Score(), model.Score(bare: true));
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void TrainedNumbersAreAsManyAsTheFormulaSays(string row)
    {
        using MatrixModel model = Model(row);
        Assert.AreEqual(model.Adaptation!.Method.CountTrainable(model.Backbone), model.Adaptation.TrainableCount);
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void EveryTrainedTensorAndNoOtherHasAGradient(string row)
    {
        using MatrixModel model = Model(row);
        model.Train(1);
        foreach (NamedParameter parameter in model.Model.Parameters)
            Assert.AreEqual(parameter.Trainable, parameter.Value.grad is not null, parameter.ToString());
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void AFreshAdaptationIsTheBaseWherePromised(string row)
    {
        using MatrixModel model = Model(row);
        float distance = Distance(model.Score(bare: true), model.Score());
        bool decomposed = model.Adaptation!.Parameters.Any(p => !p.Exchanged);
        if (model.Adaptation.Method.ExactAtStart) Assert.IsLessThanOrEqualTo(decomposed ? 1e-4f : 1e-6f, distance);
        else Assert.IsGreaterThan(1e-6f, distance, "ExactAtStart could be promised");
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void SavingAndLoadingGivesTheSameOutputBitForBit(string row)
    {
        using MatrixModel model = Model(row);
        model.Train(3);
        string folder = HfBases.Temporary();
        AdapterFolder.Save(folder, model.Adaptation!, model.Model.Head, new AdapterSaveOptions { KeepInitialisation = true });
        using var again = new MatrixModel(null);
        using AdapterFolder file = AdapterFolder.Open(folder);
        using PeftAdaptation loaded = file.Attach(again.Backbone, again.Model.Head);
        // A start by random numbers is not in exchanged files; model files keep it.
        foreach (NamedParameter start in model.Adaptation!.Parameters.Where(p => !p.Exchanged)) loaded.Find(start.Name)!.Load(start.Value);
        CollectionAssert.AreEqual(model.Score(), again.Score(loaded.Table(), of: loaded));
        Assert.AreEqual(0, file.Warnings.Count, string.Join("\n", file.Warnings));
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void ExchangedFilesGiveTheSameOutput(string row)
    {
        using MatrixModel model = Model(row);
        model.Train(3);
        string folder = HfBases.Temporary();
        if (model.Adaptation!.Method is LoraOptions { UseDora: true, Init: "pissa" })
        {
            Assert.ThrowsExactly<NotSupportedException>(() => AdapterFolder.Save(folder, model.Adaptation));
            return;
        }
        AdapterFolder.Save(folder, model.Adaptation!, model.Model.Head);
        using var again = new MatrixModel(null);
        using AdapterFolder file = AdapterFolder.Open(folder);
        using PeftAdaptation loaded = file.Attach(again.Backbone, again.Model.Head);
        Assert.IsLessThanOrEqualTo(1e-5f, Distance(model.Score(), again.Score(loaded.Table(), of: loaded)));
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void OptionsAndParametersRebuildTheModel(string row)
    {
        using MatrixModel model = Model(row);
        model.Train(2);
        PeftMethod read = PeftMethods.FromJson(PeftMethods.ToJson(model.Adaptation!.Method));
        Assert.AreEqual(PeftMethods.ToJson(model.Adaptation.Method), PeftMethods.ToJson(read));
        using var again = new MatrixModel(read, seed: 99);
        foreach (NamedParameter parameter in again.Model.Parameters) parameter.Load(model.Model.Parameters.Single(p => p.Name == parameter.Name).Value);
        CollectionAssert.AreEqual(model.Score(), again.Score());
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void MergedEqualsUnmerged(string row)
    {
        using MatrixModel model = Model(row);
        model.Train(3);
        if (!model.Adaptation!.Method.Mergeable)
        {
            Assert.ThrowsExactly<NotSupportedException>(() => Merging.Merge(model.Adaptation));
            return;
        }
        List<byte[]> before = model.FrozenBytes();
        float[] worn = model.Score();
        using var scope = NewDisposeScope();
        using (MergeReport report = Merging.Merge(model.Adaptation, MethodProbe.AnyTokens(model.Backbone)))
            Assert.IsTrue(report.MaxDifference < 1e-5 && report.MeanDifference <= report.MaxDifference && report.MaxValue > 0.1 && report.Bytes >= 0, report.ToString());
        using (Backbone merged = Merging.Merge(model.Adaptation)) Assert.IsLessThanOrEqualTo(1e-5f, Distance(worn, model.Score(bare: true, merged)));
        Assert.IsTrue(before.Zip(model.FrozenBytes()).All(p => p.First.AsSpan().SequenceEqual(p.Second)), "merging changed the base");
        CollectionAssert.AreEqual(worn, model.Score());
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void TheSameSeedGivesTheSameWeights(string row)
    {
        using MatrixModel a = Model(row, seed: 4), b = Model(row, seed: 4);
        a.Train(3);
        torch.random.manual_seed(12345);             // the state of the global generator must not matter
        b.Train(3);
        Dictionary<string, byte[]> first = a.TrainedBytes(), second = b.TrainedBytes();
        foreach ((string name, byte[] bytes) in first) Assert.IsTrue(bytes.AsSpan().SequenceEqual(second[name]), name);
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void NoTensorLeaks(string row)
    {
        Once(row);
        long before = LiveTensors.Count();
        Once(row);
        Assert.AreEqual(before, LiveTensors.Count());

        static void Once(string row)
        {
            using MatrixModel model = Model(row);
            model.Train(2);
            model.Score();
            string folder = HfBases.Temporary();
            AdapterFolder.Save(folder, model.Adaptation!, model.Model.Head, new AdapterSaveOptions { KeepInitialisation = true });
            using AdapterFolder file = AdapterFolder.Open(folder);
            file.Attach(model.Backbone, model.Model.Head).Dispose();
            if (model.Adaptation!.Method.Mergeable) Merging.Merge(model.Adaptation).Dispose();
        }
    }

    [TestMethod]
    [DynamicData(nameof(RowsByDevice))]
    public void ABfloat16BackboneRunsAndTrains(string row, string device)
    {
        using MatrixModel full = Model(row, device: new Device(device)), half = Model(row, device: new Device(device), dtype: ScalarType.BFloat16);
        Assert.IsLessThan(0.15f, Distance(full.Score(), half.Score()), "bfloat16 is too far from float32");
        List<float> losses = half.Train(3);
        Assert.IsTrue(losses.All(float.IsFinite), string.Join(", ", losses));
        foreach (NamedParameter parameter in half.Model.Parameters)
            if (parameter.Trainable || parameter.Value.is_floating_point()) Assert.AreEqual(ScalarType.Float32, parameter.Value.dtype, parameter.Name);
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void TheLossFalls(string row)
    {
        using MatrixModel model = Model(row);
        List<float> losses = model.Train(40, model.Adaptation!.Method.DefaultLearningRate <= 2e-5 ? 2e-3 : 1e-2);
        float start = losses.Take(3).Average(), end = losses.TakeLast(3).Average();
        Assert.IsLessThan(0.8f * start, end, string.Create(CultureInfo.InvariantCulture, $"{start} -> {end}"));
    }

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void RowsDoNotDependOnTheirBatch(string row)
    {
        using MatrixModel model = Model(row);
        model.Train(2);
        float[] all = model.Score();
        float[] distances = [.. Enumerable.Range(0, model.Rows).Select(i => Distance(all[(3 * i)..(3 * i + 3)], model.ScoreAlone(i)))];
        if (model.Adaptation!.Method.RowsAreIndependent) Assert.IsLessThanOrEqualTo(2e-5f, distances.Max(), string.Join(", ", distances));
        else Assert.IsGreaterThan(2e-5f, distances.Max(), "RowsAreIndependent could be promised");
    }
}

/// <summary>A method of another assembly: scales the outputs of the first feed-forward projection.</summary>
public sealed class ToyScale : PeftMethod
{
    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "toy-scale";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "toys";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Sites(backbone).Sum(site => (long)site.Out);

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        using var scope = NewDisposeScope();
        var adaptation = new PeftAdaptation(this, backbone);
        foreach (Projection site in Sites(backbone))
            adaptation.Attach(site, new Scale(adaptation.Add($"{backbone.PathOf(site)}.toy_scale", ones([site.Out], device: backbone.Device))));
        return adaptation;
    }

    private static IEnumerable<Projection> Sites(Backbone backbone) =>
        backbone.Sites.OfType<Projection>().Where(site => site.Role == SiteRole.FeedForwardUp);

    private sealed class Scale(NamedParameter scale) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Weight;

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
        {
            Tensor s = scale.Value.to_type(weight.dtype);
            return (weight * s.unsqueeze(1), bias is null ? null : bias * s);
        }
    }
}
