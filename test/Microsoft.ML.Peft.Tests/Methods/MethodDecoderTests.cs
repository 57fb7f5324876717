// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// What the method matrix asks of BERT and <see cref="MethodBackboneTests"/> does not, on the decoder that every row runs on: one
/// test a row, which trains as little as it can.
/// </summary>
[TestClass]
public class MethodDecoderTests
{
    private static readonly MatrixBackbone _llama = MatrixBackbone.All.Single(kind => kind.Name == "llama");
    private static readonly IReadOnlyDictionary<string, Func<PeftMethod>> _rows = MatrixRows.All;
    private static int _threads;

    public TestContext TestContext { get; set; } = null!;

    public static IEnumerable<object[]> Rows => _rows.Keys.Where(row => !MatrixRows.NotOn.ContainsKey("llama: " + row)).Select(row => new object[] { row });

    [ClassInitialize]
    public static void Prepare(TestContext context)
    {
        _ = context;
        PeftMethods.Register<ToyScale>();
        _threads = get_num_threads();
        set_num_threads(1);
    }

    [ClassCleanup]
    public static void RestoreThreads() => set_num_threads(_threads);

    private static MatrixModel Model(string row, long seed = 4, ScalarType dtype = ScalarType.Float32) =>
        new(_llama.Spelled(_rows[row]()), seed, dtype: dtype, kind: _llama);

    private static float Distance(float[] a, float[] b) => a.Zip(b).Max(p => Math.Abs(p.First - p.Second));

    [TestMethod]
    [DynamicData(nameof(Rows))]
    public void TheRowKeepsItsOtherPromises(string row)
    {
        MatrixModel trained;
        try
        {
            trained = Model(row);
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException)
        {
            TestContext.WriteLine($"refused: {e.Message}");
            return;
        }
        using MatrixModel model = trained, twin = Model(row), bare = new(null, kind: _llama);
        HalfPrecision(row, model.Score());
        List<float> losses = model.Train(3);
        random.manual_seed(12345);                       // the state of the global generator must not matter
        twin.Train(3);
        Dictionary<string, byte[]> first = model.TrainedBytes(), second = twin.TrainedBytes();
        foreach ((string name, byte[] bytes) in first) Assert.IsTrue(bytes.AsSpan().SequenceEqual(second[name]), $"{name} differs with the same seed");
        Rebuilt(model);
        RowsStandAlone(model);
        float start = losses.Average(), end = start;
        for (int round = 0; round < 5 && end >= 0.8f * start; round++)
            end = twin.Train(10, twin.Adaptation!.Method is FullFineTuningOptions ? 2e-3 : 1e-2).TakeLast(3).Average();
        Assert.IsLessThan(0.8f * start, end, string.Create(CultureInfo.InvariantCulture, $"the loss does not fall: {start} -> {end}"));
        // The head trains too: it is put back before the comparison.
        foreach ((NamedParameter ours, NamedParameter fresh) in twin.Model.Head.Parameters.Zip(bare.Model.Head.Parameters)) ours.Load(fresh.Value);
        CollectionAssert.AreEqual(bare.Score(), twin.Score(bare: true), "detached");
    }

    private static void HalfPrecision(string row, float[] full)
    {
        using MatrixModel half = Model(row, dtype: ScalarType.BFloat16);
        Assert.IsLessThan(0.15f, Distance(full, half.Score()), "bfloat16 is too far from float32");
        Assert.IsTrue(half.Train(2).All(float.IsFinite), "bfloat16 losses");
        foreach (NamedParameter parameter in half.Model.Parameters)
            if (parameter.Trainable || parameter.Value.is_floating_point()) Assert.AreEqual(ScalarType.Float32, parameter.Value.dtype, parameter.Name);
    }

    private static void Rebuilt(MatrixModel model)
    {
        PeftMethod read = PeftMethods.FromJson(PeftMethods.ToJson(model.Adaptation!.Method));
        using var again = new MatrixModel(read, seed: 99, kind: _llama);
        foreach (NamedParameter parameter in again.Model.Parameters) parameter.Load(model.Model.Parameters.Single(p => p.Name == parameter.Name).Value);
        CollectionAssert.AreEqual(model.Score(), again.Score(), "rebuilt from options and parameters");
    }

    private static void RowsStandAlone(MatrixModel model)
    {
        if (!model.Adaptation!.Method.RowsAreIndependent) return;
        float[] all = model.Score();
        for (int i = 0; i < model.Rows; i += 3)
            Assert.IsLessThanOrEqualTo(2e-5f, Distance(all[(3 * i)..(3 * i + 3)], model.ScoreAlone(i)), $"row {i} by itself");
    }
}
