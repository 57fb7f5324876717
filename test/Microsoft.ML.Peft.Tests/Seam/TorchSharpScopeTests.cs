// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using Microsoft.VisualStudio.TestTools.UnitTesting;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Dispose scopes, on whichever package source runs.</summary>
[TestClass]
public class TorchSharpScopeTests
{
    [TestMethod]
    public void AScopeDisposesWhatWasMadeInIt()
    {
        Tensor made, kept, moved;
        using var outer = NewDisposeScope();
        using (var inner = NewDisposeScope())
        {
            made = zeros(2);
            kept = ones(2).DetachFromDisposeScope();
            moved = made.add(1).MoveToOuterDisposeScope();
            Assert.AreEqual(1, inner.DisposablesCount);
            Assert.IsTrue(inner.Contains(made));
        }
        Assert.IsTrue(made.IsInvalid);
        Assert.IsFalse(kept.IsInvalid);
        Assert.IsFalse(moved.IsInvalid);
        Assert.IsTrue(outer.Contains(moved));
        outer.Dispose();
        Assert.IsTrue(moved.IsInvalid);
        Assert.IsFalse(kept.IsInvalid);
        kept.Dispose();
    }

    [TestMethod]
    public void TensorsMoveBetweenScopes()
    {
        using var outer = NewDisposeScope();
        var anchor = zeros(1);
        using (var inner = NewDisposeScope())
        {
            var (a, b) = inner.MoveToOuter(ones(1), ones(2));
            Assert.IsTrue(outer.Contains(a) && outer.Contains(b));
            var c = ones(3).MoveToOtherDisposeScope(anchor);
            Assert.IsTrue(outer.Contains(c));
            // Versions before 0.103 leave an attached tensor in its old scope as well.
            outer.Detach(c);
            inner.Attach(c);
            Assert.IsTrue(inner.Contains(c) && !outer.Contains(c));
            var d = ones(4);
            var e = inner.DisposeEverythingBut(d);
            Assert.AreSame(d, e);
            Assert.IsTrue(c.IsInvalid);
            Assert.AreEqual(1, inner.DisposablesCount);
            inner.Detach(d);
            Assert.AreEqual(0, inner.DisposablesCount);
            d.Dispose();
        }
        Assert.AreEqual(3, outer.DisposablesCount);
    }

    [TestMethod]
    public void TheOutermostScopeLetsGo()
    {
        Tensor tensor;
        using (NewDisposeScope())
            tensor = zeros(1).MoveToOuterDisposeScope();
        Assert.IsFalse(tensor.IsInvalid);
        tensor.Dispose();
    }

    [TestMethod]
    public void AWrappedExpressionKeepsItsResultOnly()
    {
        using var scope = NewDisposeScope();
        var result = WrappedTensorDisposeScope(() => zeros(2) + 1 + 2);
        Assert.AreEqual(1, scope.DisposablesCount);
        TorchSharpTests.Check(result, 3, 3);
    }

    [TestMethod]
    public void StatisticsCountThisThread()
    {
        var statistics = DisposeScopeManager.Statistics;
        // ThreadTotalLiveCount is not looked at: whether it counts detached tensors changed in 0.103.
        long made = statistics.CreatedInScopeCount, disposed = statistics.DisposedInScopeCount, detached = statistics.DetachedFromScopeCount;
        Tensor kept;
        using (NewDisposeScope())
        {
            zeros(1);
            kept = zeros(1).DetachFromDisposeScope();
        }
        Assert.AreEqual(2, statistics.CreatedInScopeCount - made);
        Assert.AreEqual(1, statistics.DisposedInScopeCount - disposed);
        Assert.AreEqual(1, statistics.DetachedFromScopeCount - detached);
        kept.Dispose();
    }

    [TestMethod]
    public void AScopeBelongsToItsThread()
    {
        using var scope = NewDisposeScope();
        Tensor? other = null;
        var thread = new Thread(() => other = zeros(1));
        thread.Start();
        thread.Join();
        Assert.AreEqual(0, scope.DisposablesCount);
        other!.Dispose();
    }

    [TestMethod]
    public void NothingLivesOnAfterItsScope()
    {
        long before = LiveTensors.Count();
        using (NewDisposeScope())
        {
            var w = randn(8, 8).requires_grad_();
            using (NewDisposeScope())
                w.matmul(w).softmax(1).sum().backward();
            w.grad!.mul_(2);
            w[TensorIndex.Tensor(w.gt(0))].sum();
        }
        Assert.AreEqual(before, LiveTensors.Count());
    }
}
