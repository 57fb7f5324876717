// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Many threads share one transformer's weights.</summary>
public abstract class ThreadsTests : OneThread
{
    private const int Threads = 8, Predictions = 1000;
    private readonly MLContext _ml = new(1);

    private protected abstract TinyTask Tiny { get; }

    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    public void EightThreadsPredictWhatOneDoes()
    {
        using ClassificationTransformer model = Tiny.Train(_ml, TinyTexts.View(_ml));
        Review[] rows = TinyTexts.Rows(100, seed: 4);
        float[][] expected = Predict(model, rows, rows.Length);
        Run(model, rows, expected, 100);
        long live = LiveTensors.Count(), memory = Resident();
        Run(model, rows, expected, Predictions);
        long grown = Resident() - memory;
        TestContext.WriteLine($"{Threads} threads x {Predictions} predictions: {grown / 1024.0:0.0} MiB more resident memory after {memory / 1024.0:0.0} MiB");
        Assert.AreEqual(live, LiveTensors.Count());
        Assert.IsLessThan(32 * 1024, grown);   // KiB: four a prediction
    }

    [TestMethod]
    public void ThreadsTransformViewsOfOneTransformer()
    {
        using ClassificationTransformer model = Tiny.Train(_ml, TinyTexts.View(_ml));
        float[][] expected = TinyTexts.Scores(model, TinyTexts.View(_ml, 60));
        Parallel.For(0, Threads, new ParallelOptions { MaxDegreeOfParallelism = Threads }, _ =>
        {
            var ml = new MLContext();
            for (int i = 0; i < 5; i++) TinyTexts.AreSame(expected, TinyTexts.Scores(model, TinyTexts.View(ml, 60)));
        });
    }

    [TestMethod]
    public void ThreadsTrainAtOnce()
    {
        SortedDictionary<string, float[]> Weights()
        {
            var ml = new MLContext(3);
            using ClassificationTransformer model = Tiny.Train(ml, TinyTexts.View(ml, 24));
            return TinyTexts.Parameters(model);
        }

        SortedDictionary<string, float[]> expected = Weights();
        Parallel.For(0, 3, new ParallelOptions { MaxDegreeOfParallelism = 3 }, i => Assert.IsTrue(TinyTexts.Same(expected, Weights()), $"thread {i}"));
        // Threads on which libtorch ran with another number of its own threads: it remembers that for each.
        foreach (int threads in (int[])[2, 4])
            OnAnotherThread(() =>
            {
                set_num_threads(threads);
                Assert.AreEqual(threads, get_num_threads());   // from here on this thread remembers
                OnAnotherThread(() => set_num_threads(1));
                Assert.AreEqual(threads, get_num_threads());
                Assert.IsTrue(TinyTexts.Same(expected, Weights()), $"a thread that had {threads}");
                Assert.AreEqual(1, get_num_threads());
            });
    }

    [TestMethod]
    public void CoresShareTheBatchesOfAScoring()
    {
        using ClassificationTransformer model = Tiny.Train(_ml, TinyTexts.View(_ml));
        Review[] rows = TinyTexts.Rows(200, seed: 5);
        float[][] Scores() => TinyTexts.Scores(model, _ml.Data.LoadFromEnumerable(rows));
        float[][] expected = Scores();
        int before = get_num_threads();
        try
        {
            set_num_threads(3);
            Assert.IsLessThan(1e-5, TinyTexts.Gap(expected, Scores()));
            long live = LiveTensors.Count();
            for (int i = 0; i < 5; i++) Assert.IsLessThan(1e-5, TinyTexts.Gap(expected, Scores()));
            // Fewer where an earlier test's are collected meanwhile.
            Assert.IsLessThanOrEqualTo(live, LiveTensors.Count());
            Assert.AreEqual(3, get_num_threads());
            OnAnotherThread(() => Assert.AreEqual(3, get_num_threads(), "the process' number"));
        }
        finally
        {
            set_num_threads(before);
        }
    }

    private static void OnAnotherThread(Action run)
    {
        Exception? thrown = null;
        var thread = new Thread(() =>
        {
            try
            {
                run();
            }
            catch (Exception e)
            {
                thrown = e;
            }
        });
        thread.Start();
        thread.Join();
        if (thrown is not null) throw new AssertFailedException(thrown.Message, thrown);
    }

    private void Run(ClassificationTransformer model, Review[] rows, float[][] expected, int predictions)
    {
        var errors = new List<Exception>();
        Thread[] threads = [.. Enumerable.Range(0, Threads).Select(_ => new Thread(() =>
        {
            try
            {
                float[][] made = Predict(model, rows, predictions);
                for (int i = 0; i < made.Length; i++) CollectionAssert.AreEqual(expected[i % rows.Length], made[i], $"prediction {i}");
            }
            catch (Exception e)
            {
                lock (errors) errors.Add(e);
            }
        }))];
        foreach (Thread thread in threads) thread.Start();
        foreach (Thread thread in threads) thread.Join();
        if (errors.Count > 0) throw new AggregateException(errors);
    }

    private float[][] Predict(ClassificationTransformer model, Review[] rows, int predictions)
    {
        using var engine = _ml.Model.CreatePredictionEngine<Review, Answer>(model, new PredictionEngineOptions { OwnsTransformer = false });
        var made = new float[predictions][];
        for (int i = 0; i < predictions; i++) made[i] = engine.Predict(rows[i % rows.Length]).Score;
        return made;
    }

    private static long Resident()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
        if (!File.Exists("/proc/self/status")) return Environment.WorkingSet / 1024;
        string line = File.ReadLines("/proc/self/status").First(l => l.StartsWith("VmRSS:", StringComparison.Ordinal));
        return long.Parse(line["VmRSS:".Length..].Replace("kB", "", StringComparison.Ordinal).Trim(), CultureInfo.InvariantCulture);
    }

    private sealed class Answer
    {
        public float[] Score { get; set; } = [];
    }
}
