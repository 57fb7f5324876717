// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Runtime.InteropServices;
using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using TorchSharp;

namespace Microsoft.ML.Peft.Tests.Assets;

/// <summary>The embedded backbone: whole, quick to open, near its original, made by the tool as it stands.</summary>
[TestClass]
public sealed class DefaultBackboneTests
{
    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    public void IsCompleteAndQuickToOpen()
    {
        long allocated = GC.GetAllocatedBytesForCurrentThread();
        var clock = Stopwatch.StartNew();
        using (CheckpointFolder checkpoint = DefaultBackbone.Open())
        {
            double opened = clock.Elapsed.TotalSeconds;
            allocated = GC.GetAllocatedBytesForCurrentThread() - allocated;
            TestContext.WriteLine($"opened in {opened * 1000:0} ms, {allocated} bytes allocated");
            Assert.IsLessThan(0.3, opened);
            Assert.IsLessThan(1 << 20, allocated);
            Assert.HasCount(103, checkpoint.Tensors);
            Assert.AreEqual(22_713_216, checkpoint.Tensors.Sum(t => t.Shape.Aggregate(1L, (a, b) => a * b)));
            foreach (string file in new[] { "config.json", "vocab.txt", "tokenizer_config.json", "LICENSE", "NOTICE", "MODEL_CARD.md" })
                Assert.IsTrue(checkpoint.Files.Exists(file), file);
        }

        Assert.AreEqual(30_522, TextTokenizer.Load(DefaultBackbone.Files).VocabularySize);
    }

    [TestMethod]
    public void LoadsAsABackbone()
    {
        long before = torch.Tensor.TotalCount;
        var clock = Stopwatch.StartNew();
        using (CheckpointFolder checkpoint = DefaultBackbone.Open())
        using (Backbone backbone = BackboneLoader.Load(checkpoint))
        {
            TestContext.WriteLine($"loaded in {clock.Elapsed.TotalMilliseconds:0} ms");
            Assert.AreEqual(22_713_216, backbone.ParameterCount);
            Assert.IsEmpty(backbone.UnusedTensors);
        }

        Assert.AreEqual(before, torch.Tensor.TotalCount);
    }

    [TestMethod]
    public void HoldsTheRoundedRowsOfTheOriginal()
    {
        string folder = Path.Combine(Shared.Root, "weights", "all-minilm-l6-v2");
        using CheckpointFolder original = CheckpointFolder.Open(folder);
        using CheckpointFolder made = DefaultBackbone.Open();
        double worst = 0;
        foreach (CheckpointTensor tensor in made.Tensors)
        {
            CheckpointTensor source = original.Get(tensor.Name);
            if (!tensor.IsInt8PerRow)
            {
                Assert.IsTrue(source.File.Bytes(tensor.Name).SequenceEqual(tensor.File.Bytes(tensor.Name)), tensor.Name);
                continue;
            }

            worst = Math.Max(worst, CompareRows(made, source, tensor));
        }

        TestContext.WriteLine($"largest relative error of a matrix: {worst:0.0000}");
        Assert.IsLessThan(0.04, worst);
    }

    // Some rows of each matrix: their bytes must be those that the tool makes.
    private static double CompareRows(CheckpointFolder made, CheckpointTensor source, CheckpointTensor tensor)
    {
        int width = (int)tensor.Shape[1];
        float[] scales = made.Scales(tensor.Name);
        sbyte[] rounded = new sbyte[width];
        double lost = 0, whole = 0;
        for (int r = 0; r < scales.Length; r += Math.Max(1, scales.Length / 100))
        {
            float[] row = MemoryMarshal.Cast<byte, float>(source.File.Bytes(tensor.Name, (long)r * width * 4, width * 4)).ToArray();
            Assert.AreEqual(Int8Rows.Store(row, rounded), scales[r], $"{tensor.Name} row {r}");
            Assert.IsTrue(
                MemoryMarshal.AsBytes(rounded.AsSpan()).SequenceEqual(tensor.File.Bytes(tensor.Name, (long)r * width, width)));
            for (int i = 0; i < width; i++)
            {
                lost += Math.Pow(row[i] - (rounded[i] * scales[r]), 2);
                whole += row[i] * row[i];
            }
        }

        return Math.Sqrt(lost / whole);
    }
}
