// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>The unified view's illegal points, its budget, and unions.</summary>
[TestClass]
public class UnifiedViewTests
{
    [TestMethod]
    public void IllegalPointsAreRefused()
    {
        void Refused(UnifiedViewOptions point, string message) => StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(point.Validate).Message, message);
        Refused(new() { Composition = UnifiedComposition.Gated }, "a gate is a softmax's");
        Refused(new() { Function = UnifiedFunction.SoftmaxKv }, "HeadAttention");
        Refused(new() { Insertion = UnifiedInsertion.Sequential, Target = UnifiedTarget.Query, Function = UnifiedFunction.Linear }, "Parallel with Target = Query");
        Refused(new() { Target = UnifiedTarget.Value }, "Linear with Target = Value");
        Refused(new() { Bottleneck = 0 }, "1 or more");
        Refused(new() { Scale = double.NaN, Composition = UnifiedComposition.ScaledAdd }, "finite");
        Refused(new() { Scale = 2, LearnedScale = true, Composition = UnifiedComposition.ScaledAdd }, "1 with LearnedScale");
        Refused(new() { Scale = 2 }, "ScaledAdd");
    }

    [TestMethod]
    public void TheBudgetSetsTheBottleneck()
    {
        using Backbone backbone = MatrixModel.ShapesOnly(hidden: 768, layers: 12, inner: 3072);
        var point = new UnifiedViewOptions();
        double share = point.Fit(backbone, 0.005);
        Assert.IsLessThanOrEqualTo(0.005, share);
        Assert.AreEqual(share, (double)point.CountTrainable(backbone) / backbone.ParameterCount);
        point.Bottleneck++;
        Assert.IsGreaterThan(0.005, (double)point.CountTrainable(backbone) / backbone.ParameterCount);
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => point.Fit(backbone, 1e-6)).Message, "too small");
        Assert.AreEqual(304_320, new UnifiedViewOptions { Bottleneck = 16 }.CountTrainable(backbone));
    }

    [TestMethod]
    public void PartsOfAUnionMustNotShareNames()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        var twice = new UnionOptions { Methods = [new LoraOptions(), new LoraOptions { Rank = 2 }] };
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => twice.Attach(backbone, 0)).Message, "lora_A");
        Assert.ThrowsExactly<ArgumentException>(() => new UnionOptions().Attach(backbone, 0));
        var unwritten = new UnionOptions { Methods = [new LoraOptions()] };
        using var adaptation = unwritten.Attach(backbone, 0);
        StringAssert.Contains(Assert.ThrowsExactly<NotSupportedException>(() => AdapterHubFolder.Save(HfBases.Temporary(), adaptation)).Message, "lora");
    }
}
