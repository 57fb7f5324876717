// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>What GPUs run instead, on the CPU: attention by one operator, products in bfloat16.</summary>
[TestClass]
public sealed class DevicePathTests
{
    private const double Tolerance = 2e-5;

    [TestMethod]
    [DataRow(2, 3, 3, 5, 7, 8, false, 0.0)]
    [DataRow(1, 4, 2, 1, 1, 6, true, 0.0)]      // heads of keys that two heads of queries share
    [DataRow(3, 6, 1, 9, 4, 16, true, 0.25)]    // a scale of its own
    public void EqualsProductsAndSoftmax(int batch, int heads, int keyHeads, int tokens, int keys, int width, bool biased, double scale)
    {
        using var scope = NewDisposeScope();
        Tensor Numbers(string name, params long[] shape) => new Draws(5, name).Normal(1, shape);
        if (scale == 0) scale = 1 / Math.Sqrt(width);
        var pass = new Pass(PatchTable.Empty);
        (Tensor Output, Tensor[] Gradients) Run(Func<AttentionInput, Tensor> attend)
        {
            Tensor[] given = [Numbers("q", batch, heads, tokens, width), Numbers("k", batch, keyHeads, keys, width), Numbers("v", batch, keyHeads, keys, width)];
            foreach (Tensor t in given) t.requires_grad_();
            Tensor? bias = biased ? Numbers("bias", batch, 1, 1, keys) : null;
            if (bias is not null && keys > 1) bias[0, 0, 0, keys - 1] = float.MinValue;
            Tensor output = attend(new AttentionInput(given[0], given[1], given[2], bias));
            (output * Numbers("weights", output.shape)).sum().backward();
            return (output.detach(), Array.ConvertAll(given, t => t.grad!));
        }

        (Tensor output, Tensor[] gradients) = Run(a => DeviceAttention.Apply(a, scale, 0.1, pass));
        using NativeKernels.OffScope off = NativeKernels.Off();
        (Tensor expected, Tensor[] slopes) = Run(a => Heads.Attend(a, scale, 0, pass));
        CollectionAssert.AreEqual(expected.shape, output.shape);
        Assert.IsLessThan(Tolerance, Deviations.Distance(expected, output));
        for (int i = 0; i < slopes.Length; i++) Assert.IsLessThan(Tolerance, Deviations.Distance(slopes[i], gradients[i]), "qkv"[i..(i + 1)]);
    }

    [TestMethod]
    public void ProductsRoundBothFactorsAndTheResult()
    {
        using var scope = NewDisposeScope();
        Tensor Numbers(string name, params long[] shape) => new Draws(6, name).Normal(1, shape);
        Tensor x = Numbers("x", 2, 7, 33).requires_grad_(), weight = Numbers("w", 20, 33), bias = Numbers("b", 20).requires_grad_();
        using var kept = new RoundedWeight();
        Tensor rounded = kept.Of(weight);
        Assert.AreSame(rounded, kept.Of(weight));
        Assert.AreEqual(ScalarType.BFloat16, rounded.dtype);
        Tensor y = DeviceProduct.Apply(x, rounded, bias), weights = Numbers("g", y.shape);
        Assert.AreEqual(ScalarType.Float32, y.dtype);
        Tensor Round(Tensor t) => t.detach().to_type(ScalarType.BFloat16).to_type(ScalarType.Float32);
        Tensor expected = nn.functional.linear(Round(x), Round(weight), null) + bias;
        Assert.IsLessThan(0.01 * expected.abs().max().item<float>(), Deviations.Distance(expected, y));
        (y * weights).sum().backward();
        Tensor slope = Round(weights).reshape(-1, 20).mm(Round(weight)).view(x.shape);
        Assert.IsLessThan(0.01 * slope.abs().max().item<float>(), Deviations.Distance(slope, x.grad!));
        Assert.IsLessThan(1e-4, Deviations.Distance(weights.reshape(-1, 20).sum(0L), bias.grad!));
    }

    [TestMethod]
    public void AreForDevicesAlone()
    {
        using var scope = NewDisposeScope();
        Tensor x = zeros(1, 1, 2, 4);
        var pass = new Pass(PatchTable.Empty) { Precision = Precision.BFloat16 };
        Assert.IsFalse(DeviceAttention.Fits(new AttentionInput(x, x, x, null), pass));
        var site = new Projection("p", SiteRole.Query, 0, zeros(4, 4), null);
        Assert.IsTrue(site.Rounds);
        Assert.IsFalse(DeviceProduct.Fits(site, x, pass));
    }
}
