// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

[TestClass]
public sealed class DropoutMaskTests
{
    private static float[] Mask(int length, double probability, ulong key)
    {
        var mask = new float[length];
        DropoutMask.Fill(mask, probability, key);
        return mask;
    }

    [TestMethod]
    [DataRow(0.05)]
    [DataRow(0.1)]
    [DataRow(0.5)]
    [DataRow(0.9)]
    public void Share_of_zeros_and_mean_are_right(double probability)
    {
        const int Length = 1 << 20;
        float[] mask = Mask(Length, probability, Pass.Mix(7));
        double deviation = Math.Sqrt(probability * (1 - probability) / Length);
        Assert.AreEqual(probability, mask.Count(m => m == 0) / (double)Length, 5 * deviation);
        Assert.AreEqual(1, mask.Average(m => (double)m), 5 * deviation / (1 - probability));
        Assert.IsTrue(mask.All(m => m == 0 || m == (float)(1 / (1 - probability))));
    }

    [TestMethod]
    public void Entries_depend_on_place_and_key_alone()
    {
        float[] mask = Mask(1000, 0.3, 42), shorter = Mask(37, 0.3, 42);
        CollectionAssert.AreEqual(mask[..37], shorter);
        CollectionAssert.AreNotEqual(mask, Mask(1000, 0.3, 43));
        // The first entries, so that no machine and no later version gives others.
        Assert.AreEqual("0010100101011011011001001011111100111101", string.Concat(mask[..40].Select(m => m == 0 ? '0' : '1')));
    }

    // Neighbours in a mask, and the same places of masks with neighbouring keys, know nothing of each other.
    [TestMethod]
    public void Entries_are_unrelated()
    {
        const int Length = 1 << 18;
        const double P = 0.5;
        float[] mask = Mask(Length, P, 1000);
        foreach (int lag in (int[])[1, 2, 8, 16, 384, 1536])
            Assert.AreEqual(0, Correlation(mask[..^lag], mask[lag..]), 5 / Math.Sqrt(Length), $"lag {lag}");
        foreach (ulong other in (ulong[])[1001, 1002, 1000 + (1UL << 32), 1000 + (1UL << 63)])
            Assert.AreEqual(0, Correlation(mask, Mask(Length, P, other)), 5 / Math.Sqrt(Length), $"key {other}");
    }

    private static double Correlation(float[] a, float[] b) => a.Zip(b, (x, y) => (x - 1.0) * (y - 1.0)).Average();

    [TestMethod]
    public void Same_segment_drops_the_same_and_gradients_follow_the_mask()
    {
        using var scope = NewDisposeScope();
        Tensor x = ones(16, 33).requires_grad_();
        var pass = new Pass(PatchTable.Empty, training: true, seed: 5);
        pass.BeginSegment(3);
        Tensor first = pass.Dropout(x, 0.25), second = pass.Dropout(x, 0.25);
        pass.BeginSegment(3);
        Tensor again = pass.Dropout(x, 0.25);
        pass.BeginSegment(4);
        Tensor other = pass.Dropout(x, 0.25);
        Assert.IsTrue(first.Equals(again));
        Assert.IsFalse(first.Equals(second));
        Assert.IsFalse(first.Equals(other));
        first.sum().backward();
        Assert.IsTrue(x.grad!.Equals(first), "the gradient of ones is the mask");
    }
}
