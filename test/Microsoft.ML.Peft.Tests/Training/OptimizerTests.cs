// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Tests.Methods;
using Microsoft.ML.Peft.Training;
using Microsoft.VisualStudio.TestTools.UnitTesting;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Training;

[TestClass]
public class OptimizerTests
{
    private static NamedParameter[] Draw(int seed, params long[][] shapes)
    {
        using var generator = new Generator((ulong)seed, CPU);
        return [.. shapes.Select((s, i) => new NamedParameter($"p{i}", randn(s, generator: generator)) { RateFactor = i % 2 == 0 ? 1 : 4 })];
    }

    private static void Gradients(NamedParameter[] parameters, int seed)
    {
        using var generator = new Generator((ulong)seed, CPU);
        foreach (NamedParameter p in parameters) p.Value.grad = randn(p.Value.shape, generator: generator);
    }

    [TestMethod]
    public void AdamWGivesTheValuesOfTheFormula()
    {
        using var parameter = new NamedParameter("p", ones(1, 1));
        using var optimizer = new AdamW([parameter], 0.01);
        foreach (float expected in (float[])[0.8990000f, 0.7981010f])
        {
            parameter.Value.grad = full([1, 1], 0.5f);
            optimizer.Step(0.1);
            Assert.AreEqual(expected, parameter.Value.item<float>(), 2e-7f);
        }
    }

    [TestMethod]
    public void MaskedScalarsMoveByDecayAndMomentumAsTheyDoInAdamW()
    {
        using var parameter = new NamedParameter("p", ones(1, 1));
        using var optimizer = new AdamW([parameter], 0.01);
        parameter.Value.grad = zeros(1, 1);
        optimizer.Step(0.1);
        Assert.AreEqual(0.999f, parameter.Value.item<float>(), 1e-7f);
    }

    // The formula tensor by tensor, in plain operations, against the flat buffer: the same bits over 100 random steps. The kernel's
    // bits are its own, for the buffer and for each parameter by itself.
    [TestMethod]
    [DataRow(true)]
    [DataRow(false)]
    public void FlatAndPerTensorStepsHaveTheSameBits(bool native)
    {
        if (native && !NativeKernels.On) Assert.Inconclusive($"Native kernels: {NativeKernels.Description}");
        using IDisposable? managed = native ? null : NativeKernels.Off();
        using var scope = NewDisposeScope();
        long[][] shapes = [[7, 5], [3], [64, 33], [1], [129], [2, 3, 4]];
        NamedParameter[] flat = Draw(1, shapes), single = Draw(1, shapes), plain = Draw(1, shapes);
        using var a = new AdamW(flat, 0.1);
        using var b = new AdamW(single, 0.1) { Separate = true };
        Tensor[] m = [.. plain.Select(p => zeros_like(p.Value))], v = [.. plain.Select(p => zeros_like(p.Value))];
        for (int step = 1; step <= 100; step++)
        {
            foreach (NamedParameter[] set in (NamedParameter[][])[flat, single, plain]) Gradients(set, step);
            a.Step(0.01);
            b.Step(0.01);
            using var off = no_grad();
            for (int i = 0; i < plain.Length; i++)
            {
                double rate = 0.01 * plain[i].RateFactor;
                Tensor p = plain[i].Value, g = p.grad!;
                if (p.dim() > 1) p.mul_(1 - rate * 0.1);
                m[i].mul_(0.9).add_(g, 1 - 0.9);
                v[i].mul_(0.999).addcmul_(g, g, 1 - 0.999);
                p.addcdiv_(m[i], v[i].sqrt().div_(Math.Sqrt(1 - Math.Pow(0.999, step))).add_(1e-8), -rate / (1 - Math.Pow(0.9, step)));
            }
        }
        for (int i = 0; i < flat.Length; i++)
        {
            CollectionAssert.AreEqual(single[i].Value.bytes.ToArray(), flat[i].Value.bytes.ToArray(), $"parameter {i}, by itself");
            if (native) Assert.IsLessThan(3e-6, Deviations.Distance(plain[i].Value, flat[i].Value), $"parameter {i}, in plain operations");
            else CollectionAssert.AreEqual(plain[i].Value.bytes.ToArray(), flat[i].Value.bytes.ToArray(), $"parameter {i}, in plain operations");
        }
        foreach (NamedParameter p in flat.Concat(single).Concat(plain)) p.Dispose();
    }

    [TestMethod]
    public void BackwardReachesTheBufferThroughTheParameters()
    {
        using var scope = NewDisposeScope();
        NamedParameter[] parameters = Draw(2, [2, 3], [3]);
        using var optimizer = new Sgd(parameters);
        Tensor x = ones(4, 2);
        for (int micro = 0; micro < 2; micro++) (x.matmul(parameters[0].Value) + parameters[1].Value).sum().backward();
        float[] gathered = optimizer.GatherGradients().data<float>().ToArray();
        CollectionAssert.AreEqual((float[])[8, 8, 8, 8, 8, 8, 8, 8, 8], gathered);
        float before = parameters[1].Value[0].item<float>();
        optimizer.Step(0.5);
        Assert.AreEqual(before - 0.5f * 4 * 8, parameters[1].Value[0].item<float>(), 1e-5f);
        Assert.IsNull(parameters[0].Value.grad);
        foreach (NamedParameter p in parameters) p.Dispose();
    }

    [TestMethod]
    public void StateFollowsWhenParametersFreezeThawAndGrow()
    {
        using var scope = NewDisposeScope();
        NamedParameter[] changing = Draw(3, [2, 4], [3, 3], [5]), steady = Draw(3, [2, 4], [3, 3], [5]);
        using var a = new AdamW(changing, 0);
        using var b = new AdamW(steady, 0);
        void Both(int seed, int frozen)
        {
            Gradients(changing, seed);
            Gradients(steady, seed);
            if (frozen >= 0)
            {
                changing[frozen].Value.grad = null;
                steady[frozen].Value.grad = null;
            }
            a.Step(0.1);
            b.Step(0.1);
        }
        Both(1, -1);
        changing[1].SetTrainable(false);
        Assert.IsTrue(a.Refresh(changing));
        Both(2, 1);
        changing[1].SetTrainable(true);
        Assert.IsTrue(a.Refresh(changing));
        Assert.IsFalse(a.Refresh(changing));
        Both(3, -1);
        for (int i = 0; i < 3; i++) CollectionAssert.AreEqual(steady[i].Value.bytes.ToArray(), changing[i].Value.bytes.ToArray(), $"parameter {i}");

        Tensor before = a.SaveState()["p0.exp_avg"];
        using (no_grad()) changing[0].Replace(cat([changing[0].Value.detach(), zeros(1, 4)]).requires_grad_());
        Assert.IsTrue(a.Refresh(changing));
        Tensor after = a.SaveState()["p0.exp_avg"];
        CollectionAssert.AreEqual((long[])[3, 4], after.shape);
        CollectionAssert.AreEqual(before.bytes.ToArray(), after.narrow(0, 0, 2).contiguous().bytes.ToArray());
        Assert.AreEqual(0f, after[2].abs().max().item<float>());
        Assert.AreEqual(3L, a.SaveState()["p0.step"].item<long>());
        foreach (NamedParameter p in changing.Concat(steady)) p.Dispose();
    }

    [TestMethod]
    public void NothingIsLeftBehind()
    {
        long before = LiveTensors.Count();
        {
            using var scope = NewDisposeScope();
            NamedParameter[] parameters = Draw(4, [2, 4], [3]);
            using (var optimizer = new AdamW(parameters))
            {
                for (int i = 0; i < 3; i++)
                {
                    Gradients(parameters, i);
                    optimizer.Step(0.1);
                }
                parameters[0].SetTrainable(false);
                optimizer.Refresh(parameters);
            }
            foreach (NamedParameter p in parameters) p.Dispose();
        }
        Assert.AreEqual(before, LiveTensors.Count());
    }
}
