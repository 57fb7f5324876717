// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tests.Checkpoints;

/// <summary>Every safetensors file of the reference values, written again, must be the same file.</summary>
[TestClass]
public sealed class SafetensorsFixtureTests
{
    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    [TestCategory("Fixtures")]
    public void FilesOfTheReferenceLibraryAreWrittenBackByteForByte()
    {
        int same = 0, refused = 0, others = 0;
        long bytes = 0;
        foreach (string path in Directory.EnumerateFiles(Shared.Fixtures, "*.safetensors", SearchOption.AllDirectories)
            .Order(StringComparer.Ordinal))
        {
            string name = Path.GetRelativePath(Shared.Fixtures, path);
            byte[] whole = File.ReadAllBytes(path);
            SafetensorsFile file;
            try
            {
                file = SafetensorsFile.Open(path);
            }
            catch (CheckpointFormatException e)
            {
                Assert.IsTrue(IsDamaged(path), $"{name} should be readable: {e.Message}");
                refused++;
                continue;
            }

            using (file)
            {
                byte[] copy = Copy(file);
                using SafetensorsFile again = SafetensorsFile.Open(copy, name);
                Assert.IsTrue(copy.AsSpan().SequenceEqual(Copy(again)), name);
                if (IsOfAnotherWriter(whole))
                {
                    AssertSameTensors(file, again);
                    others++;
                    continue;
                }

                Assert.IsTrue(whole.AsSpan().SequenceEqual(copy), name);
            }

            same++;
            bytes += whole.Length;
        }

        TestContext.WriteLine($"{same} files ({bytes} bytes) written back byte for byte; {others} by another "
            + $"writer (keys in another order) with equal tensors; {refused} damaged ones refused.");
        Assert.IsGreaterThan(0, same);
    }

    private static byte[] Copy(SafetensorsFile file)
    {
        var writer = new SafetensorsWriter();
        foreach (KeyValuePair<string, string> text in file.Metadata)
            writer.Metadata.Add(text);
        foreach (string tensor in file.Names.Reverse())
            writer.Add(tensor, file);
        return writer.ToBytes();
    }

    // The format's library writes dtype, shape, data_offsets; a header with sorted keys was made by hand.
    private static bool IsOfAnotherWriter(byte[] whole) =>
        whole.AsSpan(8, (int)BitConverter.ToInt64(whole)).IndexOf(":{\"data_offsets\":"u8) >= 0;

    private static void AssertSameTensors(SafetensorsFile a, SafetensorsFile b)
    {
        CollectionAssert.AreEquivalent(a.Names.ToArray(), b.Names.ToArray());
        foreach (string name in a.Names)
        {
            Assert.AreEqual($"{a.Info(name)}", $"{b.Info(name)}");
            Assert.IsTrue(a.Bytes(name).SequenceEqual(b.Bytes(name)), name);
        }
    }

    // A case that keeps damaged folders says of each that the reference raises on it.
    private static bool IsDamaged(string path)
    {
        string folder = Path.GetDirectoryName(path)!;
        string cases = Path.Combine(Path.GetDirectoryName(folder)!, "case.json");
        if (!File.Exists(cases))
            return false;
        CheckpointConfig all = CheckpointConfig.Parse(File.ReadAllBytes(cases), cases);
        return all.Section("folders")?.Section(Path.GetFileName(folder))?.String("outcome", "") == "raises";
    }
}
