// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Tests.Methods;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Training;

/// <summary>The optimizer's step by the kernel against the one through libtorch: groups, decay, clipping, threads.</summary>
[TestClass]
public sealed class NativeOptimizerTests
{
    [TestInitialize]
    public void TheLibraryIsThere()
    {
        if (!NativeKernels.On) Assert.Inconclusive($"Native kernels: {NativeKernels.Description}");
    }

    private static readonly long[][] _shapes = [[7, 5], [3], [64, 33], [1], [129], [2, 3, 4], [311, 197], [17], [5, 3]];

    private static Tensor Numbers(int seed, params long[] shape)
    {
        using var generator = new Generator((ulong)seed, CPU);
        return randn(shape, generator: generator);
    }

    private static NamedParameter[] Parameters()
    {
        NamedParameter[] all = [.. _shapes.Select((shape, i) => new NamedParameter($"p{i}", Numbers(i, shape)) { RateFactor = i % 3 == 0 ? 4 : 1 })];
        all[7].OwnRate = 0.003;
        all[8].OwnUpdate = (value, gradient, rate, decay) => value.mul_(1 - rate * decay).add_(gradient, -rate);
        return all;
    }

    private static Optimizer Make(string kind, NamedParameter[] parameters, bool separate) => kind switch
    {
        "AdamW" => new AdamW(parameters, 0.1) { Separate = separate },
        "AdamW without decay" => new AdamW(parameters, 0, 0.8, 0.95, 1e-6) { Separate = separate },
        "AdamW, largest" => new AdamW(parameters, 0.1, amsgrad: true) { Separate = separate },
        "AdamW, climbing" => new AdamW(parameters, 0.1, maximize: true) { Separate = separate },
        "Adam" => new Adam(parameters, 0.1, amsgrad: true, maximize: true) { Separate = separate },
        "a class of its own" => new Halved(parameters),
        _ => new Sgd(parameters, 0.1, 0.9) { Separate = separate },
    };

    // What overrides the update is asked.
    private sealed class Halved(NamedParameter[] parameters) : AdamW(parameters)
    {
        protected override void Update(Tensor value, Tensor gradient, Tensor[] state, long step, double rate, double decay) =>
            base.Update(value, gradient, state, step, rate / 2, decay);
    }

    // Values, moments and counters after some clipped steps; a parameter misses one of them, so that counters differ.
    private static Dictionary<string, Tensor> Run(string kind, int threads, bool separate = false)
    {
        int before = get_num_threads();
        set_num_threads(threads);
        NamedParameter[] parameters = Parameters();
        try
        {
            using Optimizer optimizer = Make(kind, parameters, separate);
            for (int step = 0; step < 12; step++)
            {
                for (int i = 0; i < parameters.Length; i++)
                {
                    int seed = 100 * (step + 1) + i;
                    // One of them lies the other way round.
                    parameters[i].Value.grad = i != 2 ? Numbers(seed, _shapes[i]) : step == 3 ? null : Numbers(seed, 33, 64).transpose(0, 1);
                }
                Tensor gradient = optimizer.GatherGradients();
                double limit = step % 2 == 0 ? 3 : 1e9, factor = GradientClip.Factor(GradientClip.Norm(gradient).item<float>(), limit);
                optimizer.Apply(gradient, 0.01, 1 - step / 20.0, factor);
            }
            var result = new Dictionary<string, Tensor>(optimizer.SaveState());
            foreach (NamedParameter p in parameters) result[p.Name] = p.Value.detach().clone();
            return result;
        }
        finally
        {
            set_num_threads(before);
            foreach (NamedParameter p in parameters) p.Dispose();
        }
    }

    [TestMethod]
    [DataRow("AdamW")]
    [DataRow("AdamW without decay")]
    [DataRow("AdamW, largest")]
    [DataRow("AdamW, climbing")]
    [DataRow("Adam")]
    [DataRow("Sgd")]
    [DataRow("a class of its own")]
    public void AStepByTheKernelGivesWhatLibtorchGives(string kind)
    {
        using var scope = NewDisposeScope();
        Dictionary<string, Tensor> found = Run(kind, 1), expected;
        using (NativeKernels.Off()) expected = Run(kind, 1);
        Assert.HasCount(expected.Count, found);
        foreach ((string name, Tensor tensor) in expected)
        {
            double size = tensor.abs().max().to_type(ScalarType.Float64).item<double>();
            Assert.IsLessThanOrEqualTo(1e-6 * size, Deviations.Distance(tensor, found[name]), $"{kind}: {name}");
        }
        foreach (Dictionary<string, Tensor> other in (Dictionary<string, Tensor>[])[Run(kind, 2), Run(kind, 3), Run(kind, 2, separate: true)])
            foreach ((string name, Tensor tensor) in found)
                CollectionAssert.AreEqual(tensor.bytes.ToArray(), other[name].bytes.ToArray(), $"{kind}: {name}, by other threads or by itself");
    }

    // The kernel is known to run by what it leaves: the gradient before clipping.
    [TestMethod]
    public void TheKernelClipsAsItReads()
    {
        using var scope = NewDisposeScope();
        foreach (bool native in (bool[])[true, false])
        {
            NamedParameter[] parameters = Parameters();
            using var optimizer = new AdamW(parameters);
            foreach (NamedParameter p in parameters) p.Value.grad = ones_like(p.Value);
            Tensor gradient = optimizer.GatherGradients();
            using (native ? default(IDisposable) : NativeKernels.Off()) optimizer.Apply(gradient, 0.01, 1, 0.5);
            Assert.AreEqual(native ? 1f : 0.5f, gradient.min().item<float>());
            foreach (NamedParameter p in parameters) p.Dispose();
        }
    }

    [TestMethod]
    [DataRow(1)]
    [DataRow(7)]
    [DataRow(8193)]
    [DataRow(222_001)]
    public void TheNormIsTheSameForAllThreads(int count)
    {
        using var scope = NewDisposeScope();
        Tensor gradient = Numbers(6, count);
        double expected = Math.Sqrt(gradient.to_type(ScalarType.Float64).square().sum().item<double>());
        int before = get_num_threads();
        try
        {
            foreach (int threads in (int[])[1, 2, 3])
            {
                set_num_threads(threads);
                Assert.AreEqual((float)expected, GradientClip.Norm(gradient).item<float>(), (float)(1e-7 * expected), $"{threads} threads");
            }
        }
        finally
        {
            set_num_threads(before);
        }
        gradient[0] = 3e30f;
        Assert.AreEqual(float.PositiveInfinity, GradientClip.Norm(gradient).item<float>());
        gradient[0] = float.NaN;
        Assert.IsTrue(float.IsNaN(GradientClip.Norm(gradient).item<float>()));
    }
}
