// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Diagnostics;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tests.Checkpoints;

/// <summary>
/// Damaged files: whatever was changed in headers, indexes and settings, the outcome is a checkpoint or a
/// <see cref="CheckpointFormatException"/>, in bounded time and memory.
/// </summary>
[TestClass]
public sealed class MutatedCheckpointTests
{
    // What opening costs however small the files are: maps, handles, messages with their stack traces.
    private const long FixedCost = 64 << 10;

    private static readonly string[] Tokens =
    [
        "{", "}", "[", "]", ",", ":", "\"", "\\", "\\ud800", "null", "true", "-1", "0", "1e999", "9223372036854775807",
        "18446744073709551616", "4294967296", "0.5", "\"F64\"", "\"I8\"", "\"F4\"", "\"shape\"", "\"data_offsets\"",
        "\"__metadata__\"", "\"weight_map\"", "[[[[[[[[", "{\"a\":", "\u0000", "\uFEFF", "é", "../", ".safetensors", "   ",
    ];

    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    public void TenThousandMutations()
    {
        MemoryFileSet sound = TinyCheckpoint.Sharded();
        string[] names = [.. sound.Names];
        int opened = 0, refused = 0;
        long most = 0;
        double slowest = 0;
        var clock = Stopwatch.StartNew();
        Use(sound);
        for (int seed = 0; seed < 10_000; seed++)
        {
            var random = new Random(seed);
            string name = names[random.Next(names.Length)];
            MemoryFileSet files = Copy(sound).Add(name, Mutate(random, sound.Bytes(name).ToArray(), name));
            double start = clock.Elapsed.TotalSeconds;
            long before = GC.GetAllocatedBytesForCurrentThread();
            try
            {
                Use(files);
                opened++;
            }
            catch (CheckpointFormatException e)
            {
                Assert.Contains("tiny", e.Message, $"seed {seed}");
                refused++;
            }
            catch (Exception e)
            {
                Assert.Fail($"Seed {seed}, {name}: {e}");
            }

            long size = files.Names.Sum(n => (long)files.Bytes(n).Length);
            long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
            Assert.IsLessThanOrEqualTo((2 * size) + FixedCost, allocated, $"Seed {seed}, {name}: {allocated} bytes for {size}.");
            most = Math.Max(most, allocated - (2 * size));
            slowest = Math.Max(slowest, clock.Elapsed.TotalSeconds - start);
        }

        TestContext.WriteLine($"{opened} opened, {refused} refused in {clock.Elapsed.TotalSeconds:0.0} s, slowest "
            + $"{slowest * 1000:0} ms; at most {most} bytes beyond twice the files.");
        Assert.IsLessThan(60, clock.Elapsed.TotalSeconds);
        Assert.IsGreaterThan(300, opened);
        Assert.IsGreaterThan(1000, refused);
    }

    [TestMethod]
    public void TruncatedFilesAreRefused()
    {
        byte[] whole = TinyCheckpoint.Shard1().ToBytes();
        string path = Path.Combine(Path.GetTempPath(), Path.GetRandomFileName());
        try
        {
            for (int part = 0; part < 64; part++)
            {
                byte[] cut = whole[..(whole.Length * part / 64)];
                File.WriteAllBytes(path, cut);
                Assert.ThrowsExactly<CheckpointFormatException>(() => SafetensorsFile.Open(path).Dispose(), $"{part}/64");
                Assert.ThrowsExactly<CheckpointFormatException>(() => SafetensorsFile.Open(cut, "cut").Dispose());
                Assert.ThrowsExactly<CheckpointFormatException>(
                    () => SafetensorsFile.Open(SafetensorsFileTests.Unseekable(cut), "cut").Dispose());
            }
        }
        finally
        {
            File.Delete(path);
        }
    }

    [TestMethod]
    public void LargeFalseHeadersCostNoMoreThanTheFile()
    {
        // Many dimensions, many tensors without bytes, deep nesting, a name as long as the file.
        foreach (string header in new[]
        {
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[" + string.Join(',', Enumerable.Repeat("1", 500_000)) + "]}}",
            string.Concat(Enumerable.Repeat("{\"a\":", 200_000)),
            "{\"" + new string('n', 1_000_000) + "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,9]}}",
            "{\"a\":" + new string('[', 1_000_000),
        })
        {
            byte[] bytes = [.. BitConverter.GetBytes((long)header.Length), .. Encoding.UTF8.GetBytes(header)];
            long before = GC.GetAllocatedBytesForCurrentThread();
            Assert.ThrowsExactly<CheckpointFormatException>(() => SafetensorsFile.Open(bytes, "x").Dispose());
            long allocated = GC.GetAllocatedBytesForCurrentThread() - before;
            Assert.IsLessThanOrEqualTo((2L * bytes.Length) + FixedCost, allocated);
        }
    }

    private static MemoryFileSet Copy(MemoryFileSet files)
    {
        var copy = new MemoryFileSet(files.Description);
        foreach (string name in files.Names)
            copy.Add(name, files.Bytes(name));
        return copy;
    }

    // What a backbone does with a checkpoint.
    private static void Use(IFileSet files)
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(files);
        checkpoint.Prefix = "bert.";
        CheckpointConfig config = checkpoint.Config;
        _ = config.ModelType + config.String("hidden_act", "gelu") + string.Concat(config.Strings("architectures"));
        _ = config.Int("hidden_size", 8, min: 1, max: 1 << 20) + config.Int("pad_token_id", 0);
        _ = config.Double("layer_norm_eps", 1e-12) + (config.Bool("tie_word_embeddings", true) ? 1 : 0);
        _ = config.Section("rope_scaling")?.Double("factor", 1);
        checkpoint.Check(
            new Dictionary<string, long[]> { ["a.weight"] = [8, 16], ["b.weight"] = [4, 10] },
            new Dictionary<string, long[]> { ["a.bias"] = [8], ["ids"] = [1, 3] });
        foreach (CheckpointTensor tensor in checkpoint.Tensors)
            _ = tensor.File.Bytes(tensor.Stored.Name).Length + checkpoint.Get(tensor.Name).Shape.Length;
    }

    private static byte[] Mutate(Random random, byte[] file, string name)
    {
        bool weights = name.EndsWith(".safetensors", StringComparison.Ordinal);
        int headerLength = weights ? (int)BinaryPrimitives.ReadInt64LittleEndian(file) : 0;
        byte[] header = weights ? file[8..(8 + headerLength)] : file;
        byte[] data = weights ? file[(8 + headerLength)..] : [];
        for (int change = random.Next(1, 4); change > 0; change--)
            header = Change(random, header);
        if (!weights)
            return header;

        // Mostly the length fits the changed header, so that the changes themselves are looked at.
        long length = random.Next(10) switch
        {
            0 => random.NextInt64(),
            1 => header.Length + random.Next(-16, 16),
            2 => headerLength,
            _ => header.Length,
        };
        byte[] whole = [.. BitConverter.GetBytes(length), .. header, .. data];
        return random.Next(20) == 0 ? whole[..random.Next(whole.Length)] : whole;
    }

    private static byte[] Change(Random random, byte[] text)
    {
        if (text.Length == 0)
            return [(byte)random.Next(256)];
        int at = random.Next(text.Length);
        int to = Math.Min(text.Length, at + random.Next(1, 24));
        byte[] token = Encoding.UTF8.GetBytes(Tokens[random.Next(Tokens.Length)]);
        byte[] flipped = [.. text];
        flipped[at] ^= (byte)(1 << random.Next(8));
        byte[] set = [.. text];
        set[at] = (byte)random.Next(256);
        int digit = Array.FindIndex(text, at, b => b is >= (byte)'0' and <= (byte)'9');
        return random.Next(8) switch
        {
            0 => flipped,
            1 => set,
            2 => [.. text[..at], .. text[to..]],
            3 => [.. text[..to], .. text[at..]],
            4 => [.. text[..at], .. token, .. text[at..]],
            5 => [.. text[..at], .. token, .. text[to..]],
            6 when digit >= 0 => [.. text[..digit], (byte)('0' + random.Next(10)), .. text[(digit + 1)..]],
            7 when digit >= 0 => [.. text[..digit], .. Encoding.ASCII.GetBytes($"{random.NextInt64()}"), .. text[(digit + 1)..]],
            _ => text[..at],
        };
    }
}
