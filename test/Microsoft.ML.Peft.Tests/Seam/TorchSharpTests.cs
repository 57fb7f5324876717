// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Runtime.InteropServices;
using Microsoft.VisualStudio.TestTools.UnitTesting;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>What the library relies on in TorchSharp, on whichever package source runs: arithmetic, shapes, data, errors, seeds.</summary>
[TestClass]
public class TorchSharpTests
{
    internal static void Check(Tensor actual, params float[] expected)
    {
        float[] values = actual.to_type(float32).cpu().reshape(-1).data<float>().ToArray();
        Assert.AreEqual(expected.Length, values.Length);
        for (int i = 0; i < expected.Length; i++)
            Assert.AreEqual(expected[i], values[i], 1e-5f, $"element {i} of [{string.Join(", ", values)}]");
    }

    private static Tensor Grid(int rows, int columns) => arange(1, rows * columns + 1, dtype: float32).reshape(rows, columns);

    [TestMethod]
    public void ArithmeticBroadcastsAndPromotes()
    {
        using var scope = NewDisposeScope();
        var a = Grid(2, 3);
        var b = tensor(new[] { 10f, 20f, 30f });
        Check(a + b, 11, 22, 33, 14, 25, 36);
        Check(a * 2, 2, 4, 6, 8, 10, 12);
        Check(1 - b, -9, -19, -29);
        Check(60 / b, 6, 3, 2);
        Check(a.sub(b).add_(1).div_(2), -4, -8.5f, -13, -2.5f, -7, -11.5f);
        Check(tensor(new[] { 1L, 2L }) / 2, 0.5f, 1f);
        Assert.AreEqual(ScalarType.Float32, (tensor(new[] { 1, 2 }) + 0.5).dtype);
        Assert.AreEqual(ScalarType.Int64, (tensor(new[] { 1L, 2L }) * 3).dtype);
        Check(a.lt(3).to_type(float32), 1, 1, 0, 0, 0, 0);
        Check(-b % 7, 4, 1, 5);
        Check(b.div(7, RoundingMode.floor), 1, 2, 4);
        Check(b.clamp(15, 25), 15, 20, 25);
        Check(b.pow(2).sqrt().rsqrt(), 0.3162278f, 0.2236068f, 0.1825742f);
        Check(b.add(b, 0.5), 15, 30, 45);
        Check(b.addcmul_(ones(3), ones(3), 2).addcdiv_(ones(3), full(3, 2f), -2), 11, 21, 31);
    }

    [TestMethod]
    public void InPlaceOperatorsReturnTheirObject()
    {
        using var scope = NewDisposeScope();
        var a = zeros(3);
        Assert.AreSame(a, a.add_(1));
        Assert.AreSame(a, a.mul_(2).fill_(3).fill_(0));
        Assert.AreSame(a, a.copy_(ones(3)));
        Check(a, 1, 1, 1);
    }

    [TestMethod]
    public void ProductsAndReductions()
    {
        using var scope = NewDisposeScope();
        var a = Grid(2, 3);
        Check(a.matmul(tensor(new[] { 1f, 0f, -1f })), -2, -2);
        Check(a.mm(a.t()), 14, 32, 32, 77);
        Check(a.unsqueeze(0).bmm(a.t().unsqueeze(0)), 14, 32, 32, 77);
        Check(zeros(2, 2).addmm(a, a.t(), beta: 1, alpha: 0.5f), 7, 16, 16, 38.5f);
        Check(einsum("ij,kj->ik", a, a), 14, 32, 32, 77);
        Check(a.sum(0L), 5, 7, 9);
        Check(a.mean([1L], true), 2, 5);
        Check(a.var(1L), 1, 1);
        Check(a.std(false), 1.7078251f);
        Check(a.norm(), 9.539392f);
        Check(a.prod(1L), 6, 120);
        Check(a.max(), 6);
        var (values, indexes) = a.max(1L);
        Check(values, 3, 6);
        Check(indexes, 2, 2);
        Check(a.argmax(0L), 1, 1, 1);
        Check(a.cumsum(1), 1, 3, 6, 4, 9, 15);
        var (top, where) = a.flatten().topk(2);
        Check(top, 6, 5);
        Check(where, 5, 4);
        Check(a.softmax(1).sum(1L), 1, 1);
        Check(a.logsumexp(1), 3.407606f, 6.407606f);
        Check(tensor(new[] { 3f, 1f, 2f }).argsort(), 1, 2, 0);
        Assert.IsTrue(a.allclose(a + 1e-9));
        Assert.IsTrue(a.isfinite().all().item<bool>());
    }

    [TestMethod]
    public void ShapesAndViews()
    {
        using var scope = NewDisposeScope();
        var a = Grid(2, 3);
        CollectionAssert.AreEqual(new long[] { 3, 2 }, a.transpose(0, 1).shape);
        CollectionAssert.AreEqual(new long[] { 1, 3 }, a.t().stride());
        Assert.IsFalse(a.t().is_contiguous());
        Check(a.t().contiguous(), 1, 4, 2, 5, 3, 6);
        Check(a.permute(1, 0)[0], 1, 4);
        Check(cat([a, a], 1)[1], 4, 5, 6, 4, 5, 6);
        CollectionAssert.AreEqual(new long[] { 2, 2, 3 }, stack([a, a]).shape);
        Tensor[] parts = a.split(2, 1);
        CollectionAssert.AreEqual(new long[] { 2, 1 }, parts[1].shape);
        Assert.HasCount(3, a.unbind(1));
        Check(a.narrow(1, 1, 2), 2, 3, 5, 6);
        Check(a.slice(1, 0, 3, 2), 1, 3, 4, 6);
        Check(a.flip(1), 3, 2, 1, 6, 5, 4);
        Check(a.roll(1, 1), 3, 1, 2, 6, 4, 5);
        Check(a.tril(), 1, 0, 0, 4, 5, 0);
        Check(a.repeat(1, 2)[0], 1, 2, 3, 1, 2, 3);
        Check(tensor(new[] { 1f, 2f }).unsqueeze(1).expand(2, 3), 1, 1, 1, 2, 2, 2);
        Assert.AreEqual(6, a.view(-1).size(0));
        Assert.AreEqual(2, a.dim());
        a.view(-1)[0] = tensor(9f);
        Assert.AreEqual(9f, a[0, 0].item<float>());
    }

    [TestMethod]
    public void Indexing()
    {
        using var scope = NewDisposeScope();
        var a = arange(24, dtype: float32).reshape(2, 3, 4);
        Check(a[1, 2, 3], 23);
        Check(a[TensorIndex.Ellipsis, TensorIndex.Single(-1)], 3, 7, 11, 15, 19, 23);
        Check(a[TensorIndex.Colon, TensorIndex.Slice(1, null), TensorIndex.Slice(0, 4, 3)], 4, 7, 8, 11, 16, 19, 20, 23);
        CollectionAssert.AreEqual(new long[] { 2, 1, 3, 4 }, a[TensorIndex.Colon, TensorIndex.None].shape);
        var rows = tensor(new[] { 1L, 0L });
        Check(a[TensorIndex.Tensor(rows), TensorIndex.Tensor(tensor(new[] { 2L, 0L }))], 20, 21, 22, 23, 0, 1, 2, 3);
        CollectionAssert.AreEqual(new long[] { 2, 3, 2 }, a[TensorIndex.Ellipsis, TensorIndex.Tensor(rows)].shape);
        Check(a[TensorIndex.Tensor(a.gt(21))], 22, 23);
        Check(a.index_select(2, rows)[0, 0], 1, 0);
        Check(a[0].gather(1, tensor(new[] { 3L, 2L, 1L }).unsqueeze(1)), 3, 6, 9);

        var b = zeros(3, 3);
        b[1] = tensor(new[] { 1f, 2f, 3f });
        b[TensorIndex.Colon, TensorIndex.Single(0)] = tensor(7f);
        b[TensorIndex.Tensor(tensor(new[] { 0L, 2L })), TensorIndex.Tensor(tensor(new[] { 1L, 2L }))] = tensor(new[] { 5f, 6f });
        Check(b, 7, 5, 0, 7, 2, 3, 7, 0, 6);
        b.index_put_(9, TensorIndex.Tensor(b.eq(7)));
        Check(b[TensorIndex.Colon, TensorIndex.Single(0)], 9, 9, 9);
        Check(b.masked_fill(b.gt(5), 0)[0], 0, 5, 0);
        Check(zeros(3).scatter_(0, tensor(new[] { 2L, 0L }), tensor(new[] { 4f, 5f })), 5, 0, 4);
        Check(zeros(2).scatter_add_(0, tensor(new[] { 1L, 1L }), tensor(new[] { 4f, 5f })), 0, 9);
        Check(where(tensor(new[] { true, false }), tensor(new[] { 1f, 2f }), tensor(new[] { 3f, 4f })), 1, 4);
    }

    [TestMethod]
    public void DataGoesInAndOut()
    {
        using var scope = NewDisposeScope();
        float[] source = [1, 2, 3, 4];
        var copy = tensor(source, [2, 2]);
        var shared = from_array(source);
        source[0] = 9;
        Assert.AreEqual(1f, copy[0, 0].item<float>());
        Assert.AreEqual(9f, shared[0].item<float>());
        Assert.AreEqual(16, copy.bytes.Length);
        Assert.AreEqual(4f, MemoryMarshal.Cast<byte, float>(copy.bytes)[3]);
        copy.bytes = MemoryMarshal.AsBytes(new[] { 5f, 6f, 7f, 8f }.AsSpan());
        Check(copy, 5, 6, 7, 8);
        CollectionAssert.AreEqual(new[] { 5f, 7f, 6f, 8f }, copy.t().data<float>().ToArray());
        Assert.AreEqual(6f, copy.data<float>()[0, 1]);
        copy.data<float>()[0, 1] = 60;
        Assert.AreEqual(60f, copy[0, 1].ToSingle());
        float[] target = new float[4];
        copy.data<float>().CopyTo(target);
        CollectionAssert.AreEqual(new[] { 5f, 60f, 7f, 8f }, target);
        Assert.AreEqual(3L, tensor(3L).item<long>());
        Assert.AreEqual(3.0, tensor(3).ToDouble());
        Assert.IsTrue(tensor(true).item<bool>());
        Assert.AreEqual(ScalarType.Float64, tensor(new[] { 1.0 }).dtype);
        Assert.AreEqual(ScalarType.BFloat16, tensor(new[] { 1f }, bfloat16).dtype);
        CollectionAssert.AreEqual(new long[] { 2, 2 }, tensor(new[,] { { 1, 2 }, { 3, 4 } }).shape);
        Assert.AreEqual(0L, tensor(Array.Empty<float>()).numel());
        Check(frombuffer(source, ScalarType.Float32, 2, 1), 2, 3);
    }

    [TestMethod]
    public void FactoriesFollowTheDefaultType()
    {
        using var scope = NewDisposeScope();
        Assert.AreEqual(ScalarType.Float32, zeros(2, 3).dtype);
        Assert.AreEqual(ScalarType.Int64, arange(3).dtype);
        Assert.AreEqual(ScalarType.Float32, arange(0.0, 1, 0.5).dtype);
        Assert.AreEqual(ScalarType.Float64, zeros_like(tensor(1.0)).dtype);
        Check(eye(2), 1, 0, 0, 1);
        Check(linspace(0, 1, 3), 0, 0.5f, 1);
        Check(full([2], 7f), 7, 7);
        Assert.IsTrue(ones(2, requires_grad: true).requires_grad);
        Assert.AreEqual(DeviceType.CPU, ones(2, device: CPU).device_type);
    }

    [TestMethod]
    public void WrongInputsThrowWhatCallersCatch()
    {
        using var scope = NewDisposeScope();
        Assert.Throws<ExternalException>(() => zeros(2).reshape(3));
        Assert.Throws<ExternalException>(() => zeros(2, 3) + zeros(2, 4));
        Assert.Throws<ArgumentException>(() => zeros(2).data<double>());
        Assert.Throws<ArgumentException>(() => zeros(2).item<float>());
        Assert.Throws<InvalidOperationException>(() => zeros(2, 3).t().bytes.ToArray());
        Assert.Throws<ArgumentException>(() => tensor(new[] { 1f }, [2L]));
        var gone = zeros(2);
        gone.Dispose();
        Assert.IsTrue(gone.IsInvalid);
        Assert.Throws<InvalidOperationException>(() => gone.add(1));
        gone.Dispose();
        var done = NewDisposeScope();
        done.Dispose();
        Assert.Throws<ObjectDisposedException>(() => done.Attach(zeros(1)));
    }

    [TestMethod]
    public void SeedsRepeatRandomNumbers()
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        var first = randn(4);
        var state = get_rng_state();
        var second = rand(4);
        manual_seed(5);
        Assert.IsTrue(first.allclose(randn(4)));
        set_rng_state(state);
        Assert.IsTrue(second.allclose(rand(4)));

        using var one = new Generator(11);
        using var two = new Generator(11);
        var a = randperm(10, generator: one);
        Assert.IsTrue(a.eq(randperm(10, generator: two)).all().item<bool>());
        var kept = one.get_state();
        var b = randint(100, [5L], generator: one);
        one.set_state(kept);
        Assert.IsTrue(b.eq(randint(100, [5L], generator: one)).all().item<bool>());

        manual_seed(3);
        var dropped = nn.functional.dropout(ones(1000), 0.25, training: true);
        Assert.AreEqual(1000f, dropped.sum().item<float>(), 100f);
        Assert.IsTrue(nn.functional.dropout(ones(10), 0.25, training: false).eq(1).all().item<bool>());
    }

    [TestMethod]
    public void LayersAndLosses()
    {
        using var scope = NewDisposeScope();
        var x = Grid(2, 3);
        Check(nn.functional.linear(x, eye(3), ones(3)), 2, 3, 4, 5, 6, 7);
        Check(nn.functional.layer_norm(x, [3L]), -1.2247357f, 0, 1.2247357f, -1.2247357f, 0, 1.2247357f);
        Check(nn.functional.gelu(tensor(new[] { -1f, 0f, 1f })), -0.158655f, 0, 0.841345f);
        Check(nn.functional.cross_entropy(x, tensor(new[] { 2L, 0L })), 1.407606f);
        Check(nn.functional.cross_entropy(x, tensor(new[] { -100L, 0L }), reduction: nn.Reduction.Sum), 2.407606f);
        Check(nn.functional.binary_cross_entropy_with_logits(zeros(2), ones(2)), 0.693147f);
        Check(nn.functional.mse_loss(x, x + 2), 4);
        Check(nn.functional.one_hot(tensor(new[] { 2L, 0L }), 3), 0, 0, 1, 1, 0, 0);
        Check(nn.functional.pad(tensor(new[] { 1f, 2f }), (1, 2), value: 5), 5, 1, 2, 5, 5);
        Check(nn.functional.cosine_similarity(x, x), 1, 1);
        Check(nn.functional.conv1d(x.unsqueeze(1), ones(1, 1, 2)), 3, 5, 9, 11);
        var q = randn(1, 2, 4, 8);
        var expected = (q.matmul(q.transpose(2, 3)) / Math.Sqrt(8)).softmax(-1).matmul(q);
        Assert.IsTrue(nn.functional.scaled_dot_product_attention(q, q, q).allclose(expected, 1e-4, 1e-5));
        var (u, s, v) = linalg.svd(x, false);
        Assert.IsTrue((u * s).matmul(v).allclose(x, 1e-4, 1e-4));
        var (orthogonal, upper) = linalg.qr(x.t());
        Assert.IsTrue(orthogonal.matmul(upper).allclose(x.t(), 1e-4, 1e-4));
        Check(linalg.inv(diag(tensor(new[] { 2f, 4f }))), 0.5f, 0, 0, 0.25f);
        Check(linalg.norm(tensor(new[] { 3f, 4f })), 5);
    }

    [TestMethod]
    public void ConversionsKeepOrChange()
    {
        using var scope = NewDisposeScope();
        var a = tensor(new[] { 1.5f, -2.5f });
        Assert.AreEqual(ScalarType.Float64, a.to(float64).dtype);
        Check(a.to_type(int64), 1, -2);
        Assert.AreEqual(ScalarType.BFloat16, a.bfloat16().dtype);
        Assert.AreEqual(2, a.half().ElementSize);
        var disposed = tensor(1f);
        disposed.to(float64, disposeAfter: true);
        Assert.IsTrue(disposed.IsInvalid);
        Assert.AreEqual("cpu", a.device.ToString());
        Assert.AreEqual(cuda.is_available(), cuda.device_count() > 0);
        if (!cuda.is_available())
            Assert.Throws<InvalidOperationException>(() => InitializeDeviceType(DeviceType.CUDA));
    }
}
