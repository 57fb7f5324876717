// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Hosts, channels and progress.</summary>
[TestClass]
public sealed class MlNetHostTests
{
    [TestMethod]
    public void ChannelMessagesReachTheLog()
    {
        var ml = new MLContext(1);
        var log = new List<LoggingEventArgs>();
        ml.Log += (_, message) => log.Add(message);
        IHost host = ((IHostEnvironment)ml).Register("Trainer");
        using (IChannel channel = host.Start("Fit"))
        {
            channel.Info(MessageSensitivity.None, "epoch {0} of {1}", 2, 3);
            channel.Warning(MessageSensitivity.None, "slow {not a format}");
        }

        LoggingEventArgs info = log.Single(message => message.Kind == ChannelMessageKind.Info);
        Assert.AreEqual(("Trainer; Fit", "epoch 2 of 3"), (info.Source, info.RawMessage));
        Assert.AreEqual("[Source=Trainer; Fit, Kind=Info] epoch 2 of 3", info.Message);
        Assert.AreEqual("slow {not a format}", log.Single(message => message.Kind == ChannelMessageKind.Warning).RawMessage);
        string[] trace = log.Where(message => message.Kind == ChannelMessageKind.Trace).Select(message => message.RawMessage.Split('.')[0]).ToArray();
        CollectionAssert.AreEqual(new[] { "Channel started", "Channel finished", "Channel disposed" }, trace);
    }

    [TestMethod]
    public void ContextsDoNotShareTheirLog()
    {
        var quiet = new MLContext(1);
        var loud = new MLContext(1);
        int heard = 0;
        quiet.Log += (_, _) => heard++;
        using IChannel channel = ((IHostEnvironment)loud).Start("Somewhere");
        channel.Error(MessageSensitivity.None, "an error");
        Assert.AreEqual(0, heard);
    }

    [TestMethod]
    public void HostsDrawFromTheSeed()
    {
        static int[] Draw(int? seed, int? own = null)
        {
            IHost host = ((IHostEnvironment)new MLContext(seed)).Register("First", own);
            IHost child = host.Register("Child");
            return [host.Rand.Next(), child.Rand.Next(1000), child.Rand.Next(-5, 5)];
        }

        CollectionAssert.AreEqual(Draw(1), Draw(1));
        CollectionAssert.AreNotEqual(Draw(1), Draw(2));
        CollectionAssert.AreNotEqual(Draw(null), Draw(null));
        // A host's own seed does not depend on the context's.
        CollectionAssert.AreEqual(Draw(1, 9), Draw(2, 9));
    }

    [TestMethod]
    public void ProgressChannelsTakeNoMoreThanTheirHeaderNames()
    {
        var ml = new MLContext(1);
        using IProgressChannel progress = ((IHostEnvironment)ml).StartProgressChannel("Training");
        progress.SetHeader(new ProgressHeader(["loss"], ["steps"]), entry =>
        {
            entry.SetProgress(0, 3, 10);
            entry.SetMetric(0, 0.5);
        });
        progress.Checkpoint(0.5, 3, 10);
        Assert.ThrowsExactly<InvalidOperationException>(() => progress.Checkpoint(1, 2, 3, 4));
        using (IProgressChannel inner = progress.StartProgressChannel("Inner"))
            inner.Checkpoint(1, 2, 3);
        progress.Dispose();
        Assert.ThrowsExactly<InvalidOperationException>(() => progress.Checkpoint(1));
    }

    [TestMethod]
    public void OptionsAreKeptByName()
    {
        var ml = new MLContext(1);
        Assert.IsTrue(ml.TryAddOption("a", 1));
        Assert.IsFalse(ml.TryAddOption("a", 2));
        Assert.IsFalse(ml.TryGetOption("a", out string _));
        Assert.IsTrue(ml.TryGetOption("a", out int found) && found == 1);
        Assert.IsTrue(ml.RemoveOption("a"));
        Assert.AreEqual(0, ml.GetOptionOrDefault<int>("a"));
        Assert.ThrowsExactly<ArgumentNullException>(() => ml.SetOption(" ", 1));
    }

    [TestMethod]
    public void DeviceSettingsAreTheContexts()
    {
        var ml = new MLContext();
        Assert.IsNull(ml.GpuDeviceId);
        ml.GpuDeviceId = 1;
        ml.FallbackToCpu = true;
        Assert.AreEqual((1, true), (ml.GpuDeviceId, ml.FallbackToCpu));
        Assert.IsTrue(Directory.Exists(ml.TempFilePath));
    }

    [TestMethod]
    public void ModelsPassThroughTheTemporaryFolder()
    {
        string folder = Directory.CreateTempSubdirectory().FullName;
        try
        {
            var ml = new MLContext(1) { TempFilePath = folder };
            IDataView data = ml.Data.LoadFromEnumerable(new[] { new Row { Label = "a" } });
            using var stream = new MemoryStream();
            ml.Model.Save(ml.Transforms.Conversion.MapValueToKey("Label").Fit(data), data.Schema, stream);
            ml.Model.Load(stream, out _);
            // Nothing is left behind.
            Assert.IsEmpty(Directory.GetFileSystemEntries(folder));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private sealed class Row
    {
        public string Label = "";
    }
}
