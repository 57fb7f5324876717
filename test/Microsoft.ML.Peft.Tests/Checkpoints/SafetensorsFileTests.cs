// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.IO.Compression;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tests.Checkpoints;

/// <summary>Headers that are right and wrong, and files that equal those of the format's own library.</summary>
[TestClass]
public sealed class SafetensorsFileTests
{
    [TestMethod]
    public void LayoutIsByFallingTypeThenName()
    {
        var writer = new SafetensorsWriter();
        writer.Metadata["format"] = "pt";
        writer.Add("b", SafetensorsDtype.F16, [1, 2], TinyCheckpoint.Bytes(4));
        writer.Add("z", SafetensorsDtype.I64, [], TinyCheckpoint.Bytes(8));
        writer.Add("a", SafetensorsDtype.F32, [2], TinyCheckpoint.Bytes(8));
        writer.Add("B", SafetensorsDtype.F32, [0, 3], Array.Empty<byte>());
        writer.Add("é\"\n", SafetensorsDtype.U8, [1], TinyCheckpoint.Bytes(1));
        byte[] bytes = writer.ToBytes();
        int length = (int)BinaryPrimitives.ReadInt64LittleEndian(bytes);
        string header = Encoding.UTF8.GetString(bytes, 8, length);
        Assert.AreEqual(0, length % 8);
        Assert.AreEqual(
            """
            {"__metadata__":{"format":"pt"},"z":{"dtype":"I64","shape":[],"data_offsets":[0,8]},
            "B":{"dtype":"F32","shape":[0,3],"data_offsets":[8,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},
            "b":{"dtype":"F16","shape":[1,2],"data_offsets":[16,20]},"é\"\n":{"dtype":"U8","shape":[1],"data_offsets":[20,21]}}
            """.ReplaceLineEndings(""),
            header.TrimEnd(' '));
        using SafetensorsFile file = SafetensorsFile.Open(bytes, "memory");
        CollectionAssert.AreEqual(new[] { "z", "B", "a", "b", "é\"\n" }, file.Names.ToArray());
        CollectionAssert.AreEqual(TinyCheckpoint.Bytes(8), file.Bytes("a").ToArray());
        CollectionAssert.AreEqual(TinyCheckpoint.Bytes(8)[2..5], file.Bytes("a", 2, 3).ToArray());
        Assert.AreEqual(bytes.Length, file.Length);
        Assert.AreEqual("pt", file.Metadata["format"]);
    }

    [TestMethod]
    public void LinksAreFollowed()
    {
        // Caches of downloaded checkpoints are folders of links.
        DirectoryInfo folder = Directory.CreateTempSubdirectory();
        try
        {
            string blob = Path.Combine(folder.FullName, "blob"), link = Path.Combine(folder.FullName, "model.safetensors"), second = Path.Combine(folder.FullName, "second");
            TinyCheckpoint.Shard2().Save(blob);
            File.CreateSymbolicLink(link, "blob");
            File.CreateSymbolicLink(second, "model.safetensors");
            using SafetensorsFile straight = SafetensorsFile.Open(blob);
            foreach (string path in new[] { link, second })
            {
                using SafetensorsFile linked = SafetensorsFile.Open(path);
                Assert.AreEqual(straight.Length, linked.Length);
                foreach (string name in straight.Names) CollectionAssert.AreEqual(straight.Bytes(name).ToArray(), linked.Bytes(name).ToArray());
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    [TestMethod]
    public void MapMemoryAndStreamAgree()
    {
        byte[] bytes = TinyCheckpoint.Shard2().ToBytes();
        string path = Path.Combine(Path.GetTempPath(), Path.GetRandomFileName());
        TinyCheckpoint.Shard2().Save(path);
        try
        {
            using SafetensorsFile mapped = SafetensorsFile.Open(path);
            using SafetensorsFile memory = SafetensorsFile.Open(bytes, "memory");
            using SafetensorsFile streamed = SafetensorsFile.Open(new MemoryStream(bytes), "stream");
            using SafetensorsFile zipped = SafetensorsFile.Open(Unseekable(bytes), "zip");
            foreach (string name in memory.Names)
            {
                byte[] expected = memory.Bytes(name).ToArray();
                foreach (SafetensorsFile file in new[] { mapped, streamed, zipped })
                {
                    Assert.AreEqual(bytes.Length, file.Length);
                    Assert.AreEqual(memory.Info(name).ToString(), file.Info(name).ToString());
                    CollectionAssert.AreEqual(expected, file.Bytes(name).ToArray(), file.Description);
                }
            }

            // An open map neither blocks a replacement nor sees it.
            TinyCheckpoint.Shard1().Save(path);
            CollectionAssert.AreEqual(memory.Bytes("bert.ids").ToArray(), mapped.Bytes("bert.ids").ToArray());
        }
        finally
        {
            File.Delete(path);
        }
    }

    [TestMethod]
    [OSCondition(OperatingSystems.Linux)]
    public void FilesBeyondTwoGigabytesAreMapped()
    {
        // A file with a hole: three gigabytes by its length, a few pages on disk.
        const long size = 3_000_000_000;
        byte[] json = Encoding.UTF8.GetBytes(
            $$$"""{"big":{"dtype":"U8","shape":[{{{size}}}],"data_offsets":[0,{{{size}}}]},"end":{"dtype":"U8","shape":[3],"data_offsets":[{{{size}}},{{{size + 3}}}]}}""");
        string path = Path.Combine(Path.GetTempPath(), Path.GetRandomFileName());
        try
        {
            using (FileStream stream = File.Create(path))
            {
                stream.Write(BitConverter.GetBytes((long)json.Length));
                stream.Write(json);
                stream.Seek(size, SeekOrigin.Current);
                stream.Write([1, 2, 3]);
            }

            long before = GC.GetAllocatedBytesForCurrentThread();
            using SafetensorsFile file = SafetensorsFile.Open(path);
            CollectionAssert.AreEqual(new byte[] { 1, 2, 3 }, file.Bytes("end").ToArray());
            Assert.AreEqual(1000, file.Bytes("big", size - 1000, 1000).Length);
            var error = Assert.ThrowsExactly<NotSupportedException>(() => file.Bytes("big").Length.ToString());
            StringAssert.Contains(error.Message, "in parts");
            Assert.IsLessThan(1 << 18, GC.GetAllocatedBytesForCurrentThread() - before);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [TestMethod]
    public void EmptyFileOfTensors()
    {
        byte[] bytes = new SafetensorsWriter().ToBytes();
        using SafetensorsFile file = SafetensorsFile.Open(bytes, "empty");
        Assert.IsEmpty(file.Names);
    }

    [TestMethod]
    [DataRow("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 8, "twice")]
    [DataRow("""{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}""", 8, "'F33'")]
    [DataRow("""{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}""", 8, "shape")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}}""", 8, "shape")]
    [DataRow("""{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}""", 8, "12 bytes")]
    [DataRow("""{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}""", 8, "too large")]
    [DataRow("""{"a":{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,8]}}""", 8, "too large")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}""", 8, "data_offsets")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}}""", 8, "data_offsets")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}""", 12, "hole or overlap")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}""", 12, "hole or overlap")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 7, "cut off")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 9, "goes on")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2]}}""", 8, "lacks")]
    [DataRow("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}}""", 8, "'more'")]
    [DataRow("""{"a":[1]}""", 0, "not an object")]
    [DataRow("""{"__metadata__":{"a":1}}""", 0, "not a string")]
    [DataRow("""{"__metadata__":7}""", 0, "'__metadata__'")]
    [DataRow("""{"a\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 8, "not valid text")]
    [DataRow("""{"a":""", 0, "JSON")]
    [DataRow("""[]""", 0, "'{'")]
    [DataRow("""{} {}""", 0, "JSON")]
    public void WrongHeadersAreRefused(string header, int data, string says)
    {
        byte[] json = Encoding.UTF8.GetBytes(header);
        byte[] bytes = new byte[8 + json.Length + data];
        BinaryPrimitives.WriteInt64LittleEndian(bytes, json.Length);
        json.CopyTo(bytes, 8);
        foreach (Func<SafetensorsFile> open in new Func<SafetensorsFile>[]
        {
            () => SafetensorsFile.Open(bytes, "some.safetensors"),
            () => SafetensorsFile.Open(new MemoryStream(bytes), "some.safetensors"),
            () => SafetensorsFile.Open(Unseekable(bytes), "some.safetensors"),
        })
        {
            var error = Assert.ThrowsExactly<CheckpointFormatException>(() => open().Dispose());
            StringAssert.Contains(error.Message, says);
            StringAssert.Contains(error.Message, "some.safetensors");
        }
    }

    [TestMethod]
    public void WrongLengthsAreRefused()
    {
        foreach (byte[] bytes in new[] { [], new byte[7], [255, 255, 255, 255, 255, 255, 255, 255], [9, 0, 0, 0, 0, 0, 0, 0] })
        {
            Assert.ThrowsExactly<CheckpointFormatException>(() => SafetensorsFile.Open(bytes, "x"));
            Assert.ThrowsExactly<CheckpointFormatException>(() => SafetensorsFile.Open(Unseekable(bytes), "x"));
        }

        // A header that speaks of 8 exabytes costs neither memory nor time.
        byte[] json = """{"a":{"dtype":"U8","shape":[1152921504606846000],"data_offsets":[0,1152921504606846000]}}"""u8.ToArray();
        byte[] huge = [.. BitConverter.GetBytes((long)json.Length), .. json, 1, 2, 3];
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => SafetensorsFile.Open(Unseekable(huge), "x"));
        StringAssert.Contains(error.Message, "memory");
        Assert.ThrowsExactly<CheckpointFormatException>(() => SafetensorsFile.Open(huge, "x"));
    }

    [TestMethod]
    public void UnknownNamesListNearOnes()
    {
        using SafetensorsFile file = SafetensorsFile.Open(TinyCheckpoint.Shard2().ToBytes(), "tiny");
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => file.Info("b.weight"));
        StringAssert.Contains(error.Message, "'bert.b.weight'");
        error = Assert.ThrowsExactly<CheckpointFormatException>(() => file.Bytes("bert.idz").Length.ToString());
        StringAssert.Contains(error.Message, "'bert.ids'");
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => file.Bytes("bert.ids", 20, 5).Length.ToString());
    }

    [TestMethod]
    public void DisposedFilesRefuseReading()
    {
        SafetensorsFile file = SafetensorsFile.Open(TinyCheckpoint.Shard2().ToBytes(), "tiny");
        file.Dispose();
        file.Dispose();
        Assert.ThrowsExactly<ObjectDisposedException>(() => file.Bytes("bert.ids").Length.ToString());
    }

    [TestMethod]
    public void WriterChecksWhatItIsGiven()
    {
        var writer = new SafetensorsWriter();
        writer.Add("a", SafetensorsDtype.F32, [2], new byte[8]);
        Assert.ThrowsExactly<ArgumentException>(() => writer.Add("a", SafetensorsDtype.F32, [2], new byte[8]));
        Assert.ThrowsExactly<ArgumentException>(() => writer.Add("b", SafetensorsDtype.F32, [3], new byte[8]));
        Assert.ThrowsExactly<ArgumentException>(() => writer.Add("b", SafetensorsDtype.F32, [-2], new byte[8]));
        Assert.ThrowsExactly<ArgumentException>(() => writer.Add("", SafetensorsDtype.F32, [2], new byte[8]));
        Assert.ThrowsExactly<ArgumentException>(() => writer.Add("__metadata__", SafetensorsDtype.F32, [2], new byte[8]));
    }

    [TestMethod]
    public void FailedWriteLeavesTheOldFile()
    {
        string folder = Directory.CreateTempSubdirectory().FullName;
        try
        {
            string path = Path.Combine(folder, "a.safetensors");
            TinyCheckpoint.Shard1().Save(path);
            byte[] before = File.ReadAllBytes(path);
            SafetensorsFile source = SafetensorsFile.Open(TinyCheckpoint.Shard2().ToBytes(), "tiny");
            var writer = new SafetensorsWriter();
            writer.Add("bert.ids", source);
            source.Dispose();
            Assert.ThrowsExactly<ObjectDisposedException>(() => writer.Save(path));
            CollectionAssert.AreEqual(before, File.ReadAllBytes(path));
            Assert.HasCount(1, Directory.GetFiles(folder));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    internal static Stream Unseekable(byte[] bytes)
    {
        var packed = new MemoryStream();
        using (var writer = new DeflateStream(packed, CompressionLevel.Fastest, leaveOpen: true))
            writer.Write(bytes);
        packed.Position = 0;
        return new DeflateStream(packed, CompressionMode.Decompress);
    }
}
