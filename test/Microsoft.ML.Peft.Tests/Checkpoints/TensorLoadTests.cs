// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using Microsoft.ML.Peft.Checkpoints;
using TorchSharp;

namespace Microsoft.ML.Peft.Tests.Checkpoints;

/// <summary>Tensors out of files and into files: values, element types, parts, nothing left alive.</summary>
[TestClass]
public sealed class TensorLoadTests
{
    [TestMethod]
    public void EveryElementTypeSurvives()
    {
        var types = new (SafetensorsDtype Dtype, torch.ScalarType Type)[]
        {
            (SafetensorsDtype.BOOL, torch.ScalarType.Bool), (SafetensorsDtype.U8, torch.ScalarType.Byte),
            (SafetensorsDtype.I8, torch.ScalarType.Int8), (SafetensorsDtype.I16, torch.ScalarType.Int16),
            (SafetensorsDtype.I32, torch.ScalarType.Int32), (SafetensorsDtype.I64, torch.ScalarType.Int64),
            (SafetensorsDtype.F16, torch.ScalarType.Float16), (SafetensorsDtype.BF16, torch.ScalarType.BFloat16),
            (SafetensorsDtype.F32, torch.ScalarType.Float32), (SafetensorsDtype.F64, torch.ScalarType.Float64),
        };
        var writer = new SafetensorsWriter();
        foreach ((SafetensorsDtype dtype, _) in types)
        {
            byte[] bytes = TinyCheckpoint.Bytes(6 * dtype.Bits() / 8);
            if (dtype == SafetensorsDtype.BOOL)
                bytes = [0, 1, 1, 0, 1, 0];
            writer.Add($"t{dtype}", dtype, [2, 3], bytes);
        }

        writer.Add("empty", SafetensorsDtype.F32, [0, 3], Array.Empty<byte>());
        writer.Add("one", SafetensorsDtype.F32, [], TinyCheckpoint.Floats(1));
        byte[] first = writer.ToBytes();
        long before = torch.Tensor.TotalCount;
        using SafetensorsFile file = SafetensorsFile.Open(first, "types");
        var again = new SafetensorsWriter();
        using (torch.NewDisposeScope())
        {
            foreach (string name in file.Names)
                again.Add(name, file.Load(name));
            foreach ((SafetensorsDtype dtype, torch.ScalarType type) in types)
            {
                torch.Tensor tensor = file.Load($"t{dtype}");
                Assert.AreEqual(type, tensor.dtype);
                CollectionAssert.AreEqual(new long[] { 2, 3 }, tensor.shape);
            }

            CollectionAssert.AreEqual(new long[] { 0, 3 }, file.Load("empty").shape);
            Assert.IsEmpty(file.Load("one").shape);
            CollectionAssert.AreEqual(first, again.ToBytes());
        }

        Assert.AreEqual(before, torch.Tensor.TotalCount);
    }

    [TestMethod]
    public void ConversionIsExactWhereItCanBe()
    {
        byte[] halves = TinyCheckpoint.Bytes(2000);
        var writer = new SafetensorsWriter();
        writer.Add("bf16", SafetensorsDtype.BF16, [1000], halves);
        writer.Add("f16", SafetensorsDtype.F16, [1000], halves);
        using SafetensorsFile file = SafetensorsFile.Open(writer.ToBytes(), "halves");
        using torch.Tensor brain = file.Load("bf16", torch.ScalarType.Float32);
        using torch.Tensor half = file.Load("f16", torch.ScalarType.Float32);
        ReadOnlySpan<float> brainValues = MemoryMarshal.Cast<byte, float>(brain.bytes);
        ReadOnlySpan<float> halfValues = MemoryMarshal.Cast<byte, float>(half.bytes);
        for (int i = 0; i < 1000; i++)
        {
            Assert.AreEqual(BitConverter.Int32BitsToSingle(BitConverter.ToUInt16(halves, 2 * i) << 16), brainValues[i]);
            Assert.AreEqual((float)BitConverter.ToHalf(halves, 2 * i), halfValues[i]);
        }
    }

    [TestMethod]
    public void LargeTensorsAreReadInParts()
    {
        // More elements than one part, and a row that crosses from one into the next.
        const int rows = 1500, width = 3001;
        var writer = new SafetensorsWriter();
        byte[] integers = TinyCheckpoint.Bytes(rows * width);
        float[] scales = MemoryMarshal.Cast<byte, float>(TinyCheckpoint.Floats(rows)).ToArray();
        writer.Add("w", SafetensorsDtype.I8, [rows, width], integers);
        writer.Add("w.scale", SafetensorsDtype.F32, [rows], MemoryMarshal.AsBytes(scales.AsSpan()).ToArray());
        writer.Add("f", SafetensorsDtype.F32, [rows, width], TinyCheckpoint.Floats(rows * width, 2));
        MemoryFileSet files = TinyCheckpoint.Single(writer);
        long before = torch.Tensor.TotalCount;
        using CheckpointFolder checkpoint = CheckpointFolder.Open(files);
        using (torch.Tensor w = checkpoint.Load("w", [rows, width]))
        using (torch.Tensor f = checkpoint.Load("f"))
        using (torch.Tensor wide = checkpoint.Load("f", dtype: torch.ScalarType.Float64))
        {
            ReadOnlySpan<float> values = MemoryMarshal.Cast<byte, float>(w.bytes);
            for (int i = 0; i < values.Length; i++)
            {
                if (values[i] != (sbyte)integers[i] * scales[i / width])
                    Assert.Fail($"element {i}: {values[i]}");
            }

            Assert.IsTrue(f.bytes.SequenceEqual(TinyCheckpoint.Floats(rows * width, 2)));
            ReadOnlySpan<float> narrow = MemoryMarshal.Cast<byte, float>(f.bytes);
            ReadOnlySpan<double> doubles = MemoryMarshal.Cast<byte, double>(wide.bytes);
            for (int i = 0; i < narrow.Length; i++)
            {
                if (narrow[i] != doubles[i])
                    Assert.Fail($"element {i}: {doubles[i]}");
            }

            var copy = new SafetensorsWriter();
            copy.Add("f", f);
            using SafetensorsFile written = SafetensorsFile.Open(copy.ToBytes(), "copy");
            Assert.IsTrue(f.bytes.SequenceEqual(written.Bytes("f")));
        }

        Assert.AreEqual(before, torch.Tensor.TotalCount);
    }

    [TestMethod]
    public void TensorsOfAnyLayoutAreWrittenRowByRow()
    {
        using torch.Tensor tensor = torch.arange(24, dtype: torch.ScalarType.Float32).reshape(2, 3, 4).requires_grad_();
        using torch.Tensor turned = tensor.transpose(0, 2);
        using torch.Tensor part = tensor.narrow(1, 1, 2);
        var writer = new SafetensorsWriter();
        writer.Add("turned", turned);
        writer.Add("part", part);
        using SafetensorsFile file = SafetensorsFile.Open(writer.ToBytes(), "views");
        using torch.Tensor turnedBack = file.Load("turned");
        using torch.Tensor partBack = file.Load("part");
        Assert.IsTrue(turnedBack.equal(turned.contiguous()).all().item<bool>());
        Assert.IsTrue(partBack.equal(part.contiguous()).all().item<bool>());
        Assert.IsFalse(turnedBack.requires_grad);
    }

    [TestMethod]
    public void WrongShapesAndTypesAreTold()
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(TinyCheckpoint.Sharded());
        checkpoint.Prefix = "bert.";
        long before = torch.Tensor.TotalCount;
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => checkpoint.Load("a.weight", [8, 17]));
        foreach (string says in new[] { "model-00001-of-00002", "'bert.a.weight'", "[8, 16]", "[8, 17]" })
            StringAssert.Contains(error.Message, says);
        Assert.ThrowsExactly<CheckpointFormatException>(() => checkpoint.Load("nothing"));
        Assert.ThrowsExactly<CheckpointFormatException>(() => checkpoint.Scales("a.weight"));

        var opaque = new SafetensorsWriter();
        opaque.Add("a", SafetensorsDtype.F8_E4M3, [3], new byte[3]);
        using SafetensorsFile file = SafetensorsFile.Open(opaque.ToBytes(), "opaque");
        error = Assert.ThrowsExactly<CheckpointFormatException>(() => file.Load("a"));
        StringAssert.Contains(error.Message, "F8_E4M3");
        Assert.AreEqual(3, file.Bytes("a").Length);

        var broken = new SafetensorsWriter();
        broken.Add("w", SafetensorsDtype.I8, [1, 2], new byte[2]);
        broken.Add("w.scale", SafetensorsDtype.F32, [1], BitConverter.GetBytes(float.NaN));
        using CheckpointFolder notFinite = CheckpointFolder.Open(TinyCheckpoint.Single(broken));
        error = Assert.ThrowsExactly<CheckpointFormatException>(() => notFinite.Load("w"));
        StringAssert.Contains(error.Message, "row 0");
        Assert.AreEqual(before, torch.Tensor.TotalCount);
    }

    [TestMethod]
    public void AnyByteIsATruthValue()
    {
        var writer = new SafetensorsWriter();
        writer.Add("b", SafetensorsDtype.BOOL, [3], new byte[] { 0, 7, 1 });
        using SafetensorsFile file = SafetensorsFile.Open(writer.ToBytes(), "bools");
        using torch.Tensor tensor = file.Load("b");
        CollectionAssert.AreEqual(new byte[] { 0, 1, 1 }, tensor.bytes.ToArray());
    }

    [TestMethod]
    public void RoundedRowsAreNearAndRepeatable()
    {
        float[] row = MemoryMarshal.Cast<byte, float>(TinyCheckpoint.Floats(384)).ToArray();
        row[17] = 6;
        sbyte[] first = new sbyte[384], second = new sbyte[384];
        float scale = Int8Rows.Store(row, first);
        Assert.AreEqual(scale, Int8Rows.Store(row, second));
        CollectionAssert.AreEqual(first, second);
        double error = 0, plain = 0;
        for (int i = 0; i < row.Length; i++)
        {
            error += Math.Pow(row[i] - (first[i] * scale), 2);
            plain += Math.Pow(row[i] - (Math.Round(row[i] / (6 / 127.0)) * 6 / 127.0), 2);
        }

        Assert.IsLessThanOrEqualTo(plain * 1.0001, error);
        float[] back = new float[384];
        Int8Rows.Restore(MemoryMarshal.AsBytes(first.AsSpan()), [0, scale], 384, 384, back);
        for (int i = 0; i < row.Length; i++)
            Assert.AreEqual(first[i] * scale, back[i]);
        Assert.AreEqual(0f, Int8Rows.Store(new float[5], first.AsSpan(0, 5)));
    }

    [TestMethod]
    public void LoadsFromManyThreads()
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(TinyCheckpoint.Sharded());
        byte[] expected = TinyCheckpoint.Floats(128);
        Parallel.For(0, 200, _ =>
        {
            using torch.Tensor tensor = checkpoint.Load("bert.a.weight");
            Assert.IsTrue(tensor.bytes.SequenceEqual(expected));
        });
    }
}
