// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Runtime.InteropServices;
using Microsoft.VisualStudio.TestTools.UnitTesting;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>What the library relies on in TorchSharp, on whichever package source runs.</summary>
[TestClass]
public class TorchSharpTests
{
    [TestMethod]
    public void ArithmeticBroadcastsAndPromotes()
    {
        using var scope = NewDisposeScope();
        var a = tensor(new[] { 1f, 2f, 3f, 4f, 5f, 6f }).reshape(2, 3);
        var b = tensor(new[] { 10f, 20f, 30f });
        Check(a + b, 11, 22, 33, 14, 25, 36);
        Check(a * 2, 2, 4, 6, 8, 10, 12);
        Check(1 - b, -9, -19, -29);
        Check(60 / b, 6, 3, 2);
        Check(a.sub(b).add_(1).div_(2), -4, -8.5f, -13, -2.5f, -7, -11.5f);
        Check(tensor(new[] { 1L, 2L }) / 2, 0.5f, 1f);
        Assert.AreEqual(ScalarType.Float32, (tensor(new[] { 1, 2 }) + 0.5).dtype);
        Check(a.matmul(b), 140, 320);
        Check(a.sum(0L), 5, 7, 9);
        Check(a.mean([1L], true), 2, 5);
        Check(a.lt(3).to_type(float32), 1, 1, 0, 0, 0, 0);
    }

    private static void Check(Tensor actual, params float[] expected)
    {
        float[] values = actual.to_type(float32).cpu().data<float>().ToArray();
        Assert.AreEqual(expected.Length, values.Length);
        for (int i = 0; i < expected.Length; i++)
            Assert.AreEqual(expected[i], values[i], 1e-6f, $"element {i}");
    }
}
