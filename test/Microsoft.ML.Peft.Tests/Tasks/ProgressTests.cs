// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>A run's progress reaches the context's log, the progress channel and the callback, with the same numbers.</summary>
[TestClass]
public sealed class ProgressTests : OneThread
{
    [TestMethod]
    public void TheLogTellsPlanStepsAndWarnings()
    {
        var ml = new MLContext(1);
        var log = new List<LoggingEventArgs>();
        var seen = new List<TrainingProgress>();
        ml.Log += (_, e) => log.Add(e);
        Review[] rows = TinyTexts.Rows(36);
        rows[3].Text = "";
        rows[4].Text = string.Join(' ', Enumerable.Repeat("film", 100));
        using TextClassificationTransformer model = TinyTexts.Train(ml, ml.Data.LoadFromEnumerable(rows), o =>
        {
            o.ValidationSet = TinyTexts.Keyed(ml, ml.Data.LoadFromEnumerable(TinyTexts.Rows(12)));
            o.Training.LogEvery = 1;
            o.Training.Progress = seen.Add;
        });
        LoggingEventArgs[] own = [.. log.Where(e => e.Source.StartsWith(nameof(TextClassificationTrainer), StringComparison.Ordinal))];
        string[] info = [.. own.Where(e => e.Kind == ChannelMessageKind.Info).Select(e => e.RawMessage)];
        CollectionAssert.IsSubsetOf(seen.Select(p => p.ToString()).ToArray(), info);
        Assert.HasCount(10, seen);
        CollectionAssert.AreEqual(model.Training!.Losses.ToArray(), seen.Select(p => p.Loss).ToArray());
        CollectionAssert.AreEqual(model.Training.LearningRates.ToArray(), seen.Select(p => p.LearningRate).ToArray());
        Assert.AreEqual((10L, 10L, 2.0), (seen[^1].Step, seen[^1].TotalSteps, seen[^1].Epoch));
        Assert.AreEqual(2, seen.Count(p => p.Validation is not null));
        foreach (string word in (string[])["epoch 1.00/2", "step 5/10", "loss ", "rate ", "tokens/s", "rows/s", "left", "validation: loss"])
            Assert.IsTrue(info.Any(m => m.Contains(word, StringComparison.Ordinal)), word);
        Assert.IsTrue(info.Any(m => m.Contains("1 of 36 texts have 32 tokens or more and are cut there", StringComparison.Ordinal)));
        Assert.IsTrue(own.Any(e => e.Kind == ChannelMessageKind.Warning && e.RawMessage == "1 of 36 texts are empty."));
        Assert.IsTrue(info.Any(m => m.Contains("trainable", StringComparison.OrdinalIgnoreCase)), "the plan");
    }

    [TestMethod]
    public void TheProgressChannelHasTheNumbers()
    {
        var ml = new MLContext(1);
        var host = new WatchingHost(((IHostEnvironment)ml).Register("Watched"));
        var trainer = new TextClassificationTrainer(host, TinyTexts.Options(o => o.Training.LogEvery = 1));
        using TextClassificationTransformer model = trainer.Fit(TinyTexts.Keyed(ml, TinyTexts.View(ml)));
        WatchingProgress progress = host.Channels.Single();
        Assert.IsTrue(progress.Disposed);
        CollectionAssert.AreEqual(new[] { "Loss", "Learning rate", "Tokens/s" }, progress.Header!.MetricNames.ToArray());
        CollectionAssert.AreEqual(model.Training!.Losses.ToArray(), progress.Checkpoints.Select(c => c[0]!.Value).ToArray());
        CollectionAssert.AreEqual(Enumerable.Range(1, 10).Select(i => (double?)i).ToArray(), progress.Checkpoints.Select(c => c[3]).ToArray());
        var entry = new Entry();
        progress.Fill!(entry);
        Assert.AreEqual((10.0, 10.0), entry.Progress);
        Assert.AreEqual(model.Training.Losses[^1], entry.Metrics[0]);
    }

    private sealed class Entry : IProgressEntry
    {
        public (double, double) Progress { get; private set; }

        public Dictionary<int, double> Metrics { get; } = [];

        public void SetProgress(int index, double value) => Progress = (value, double.NaN);

        public void SetProgress(int index, double value, double lim) => Progress = (value, lim);

        public void SetMetric(int index, double value) => Metrics[index] = value;
    }

    private sealed class WatchingProgress(List<WatchingProgress> all) : IProgressChannel
    {
        public ProgressHeader? Header { get; private set; }

        public Action<IProgressEntry>? Fill { get; private set; }

        public List<double?[]> Checkpoints { get; } = [];

        public bool Disposed { get; private set; }

        public void SetHeader(ProgressHeader header, Action<IProgressEntry> fillAction) => (Header, Fill) = (header, fillAction);

        public void Checkpoint(params double?[] values) => Checkpoints.Add(values);

        public IProgressChannel StartProgressChannel(string name)
        {
            var channel = new WatchingProgress(all);
            all.Add(channel);
            return channel;
        }

        public void Dispose() => Disposed = true;
    }

    // An environment as a host program may have one: everything but the progress goes on to ML.NET's own.
    private sealed class WatchingHost(IHost inner) : IHost
    {
        public List<WatchingProgress> Channels { get; init; } = [];

        public Random Rand => inner.Rand;

        public ComponentCatalog ComponentCatalog => inner.ComponentCatalog;

        public string ContextDescription => inner.ContextDescription;

        public IHost Register(string name, int? seed = null, bool? verbose = null) => new WatchingHost(inner.Register(name, seed, verbose)) { Channels = Channels };

        public IChannel Start(string name) => inner.Start(name);

        public IPipe<TMessage> StartPipe<TMessage>(string name) => inner.StartPipe<TMessage>(name);

        public TException Process<TException>(TException ex) where TException : Exception => inner.Process(ex);

        public IProgressChannel StartProgressChannel(string name)
        {
            var channel = new WatchingProgress(Channels);
            Channels.Add(channel);
            return channel;
        }
    }
}
