// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using Microsoft.VisualStudio.TestTools.UnitTesting;
using TorchSharp;
using static Microsoft.ML.Peft.Tests.Seam.TorchSharpTests;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Gradients, modes and custom functions, on whichever package source runs.</summary>
[TestClass]
public class TorchSharpAutogradTests
{
    [TestMethod]
    public void BackwardAccumulates()
    {
        using var scope = NewDisposeScope();
        var w = tensor(new[] { 1f, 2f }, requires_grad: true);
        (w * w).sum().backward();
        Check(w.grad!, 2, 4);
        autograd.backward(w * 3, tensor(new[] { 1f, 10f }));
        Check(w.grad!, 5, 34);
        w.grad!.fill_(0);
        Check(w.grad!, 0, 0);
        w.grad = null;
        Assert.IsNull(w.grad);
        Assert.IsTrue(w.is_leaf);
        Assert.IsFalse((w * 2).is_leaf);
    }

    [TestMethod]
    public void GradGivesGradientsAndTheirGradients()
    {
        using var scope = NewDisposeScope();
        var x = tensor(new[] { 2f, 3f }, requires_grad: true);
        var y = (x * x * x).sum();
        var first = autograd.grad([y], [x], retain_graph: true, create_graph: true)[0];
        Check(first, 12, 27);
        Check(autograd.grad([first.sum()], [x])[0], 12, 18);
        Assert.IsNull(x.grad);
    }

    [TestMethod]
    public void ModesOfTheThread()
    {
        using var scope = NewDisposeScope();
        var w = ones(2, requires_grad: true);
        using (no_grad())
        {
            Assert.IsFalse(is_grad_enabled());
            Assert.IsFalse((w * 2).requires_grad);
            using (enable_grad())
                Assert.IsTrue((w * 2).requires_grad);
            w.add_(1);
        }
        Assert.IsTrue(is_grad_enabled());
        using (inference_mode())
            Assert.IsFalse((w * 2).requires_grad);
        Assert.IsTrue((w * 2).requires_grad);
        Assert.IsFalse(w.detach().requires_grad);
    }

    private sealed class Cube : autograd.SingleTensorFunction<Cube>
    {
        public override string Name => nameof(Cube);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var x = (Tensor)vars[0];
            Assert.IsFalse(is_grad_enabled());
            ctx.save_for_backward([x]);
            ctx.save_data("scale", vars[1]);
            return x * x * x * (double)vars[1];
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            var x = ctx.get_saved_variables()[0];
            return [grad_output * x * x * 3 * (double)ctx.get_data("scale")!, null!];
        }
    }

    [TestMethod]
    public void ASingleTensorFunctionJoinsTheGraph()
    {
        using var scope = NewDisposeScope();
        var x = tensor(new[] { 1f, 2f }, requires_grad: true);
        var y = Cube.apply(x, 2.0);
        Assert.IsTrue(y.requires_grad);
        Check(y, 2, 16);
        (y * 10).sum().backward();
        Check(x.grad!, 60, 240);
        Assert.IsFalse(Cube.apply(x.detach(), 2.0).requires_grad);
        using (no_grad())
            Assert.IsFalse(Cube.apply(x, 2.0).requires_grad);
    }

    private sealed class SumAndProduct : autograd.MultiTensorFunction<SumAndProduct>
    {
        public override string Name => nameof(SumAndProduct);

        public override List<Tensor> forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var (a, b) = ((Tensor)vars[0], (Tensor)vars[1]);
            ctx.save_for_backward([a, b]);
            return [a + b, a * b];
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, List<Tensor> grad_outputs)
        {
            var saved = ctx.get_saved_variables();
            return [grad_outputs[0] + grad_outputs[1] * saved[1], grad_outputs[0] + grad_outputs[1] * saved[0]];
        }
    }

    [TestMethod]
    public void AMultiTensorFunctionFillsUnusedGradientsWithZeros()
    {
        using var scope = NewDisposeScope();
        var a = tensor(new[] { 2f }, requires_grad: true);
        var b = tensor(new[] { 5f }, requires_grad: true);
        var both = SumAndProduct.apply(a, b);
        (both[0] + both[1] * 10).backward();
        Check(a.grad!, 51);
        Check(b.grad!, 21);
        SumAndProduct.apply(a, b)[1].backward();
        Check(a.grad!, 56);
    }

    /// <summary>Gradient checkpointing in small: backward runs the forward again and a backward inside this one.</summary>
    private sealed class Checkpoint : autograd.SingleTensorFunction<Checkpoint>
    {
        public override string Name => nameof(Checkpoint);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            ctx.save_for_backward([(Tensor)vars[0]]);
            ctx.save_data("run", vars[1]);
            return ((Func<Tensor, Tensor>)vars[1])((Tensor)vars[0]);
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            var x = ctx.get_saved_variables()[0].detach().requires_grad_();
            using (enable_grad())
            {
                var y = ((Func<Tensor, Tensor>)ctx.get_data("run")!)(x);
                autograd.backward(y, grad_output);
            }
            return [x.grad!, null!];
        }
    }

    [TestMethod]
    public void BackwardRunsInsideBackward()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var w = randn(4, 4).requires_grad_();
        var x = randn(2, 4).requires_grad_();
        Tensor Block(Tensor h) => h.matmul(w).tanh();
        Block(Block(x)).sum().backward();
        var (wanted, wantedX) = (w.grad!.clone(), x.grad!.clone());
        w.grad = null;
        x.grad = null;
        Func<Tensor, Tensor> block = Block;
        Func<Tensor, Tensor> nested = h => Checkpoint.apply(Checkpoint.apply(h, block), block);
        Checkpoint.apply(x, nested).sum().backward();
        Assert.IsTrue(w.grad!.allclose(wanted, 1e-5, 1e-6));
        Assert.IsTrue(x.grad!.allclose(wantedX, 1e-5, 1e-6));
    }

    [TestMethod]
    public void CustomFunctionsLeaveNothingBehind()
    {
        void Step()
        {
            using var scope = NewDisposeScope();
            var x = randn(16).requires_grad_();
            Cube.apply(x, 1.0).sum().backward();
            Cube.apply(x, 1.0);
        }
        Step();
        long before = LiveTensors.Count();
        for (int i = 0; i < 5; i++)
            Step();
        Assert.AreEqual(before, LiveTensors.Count());
    }
}
