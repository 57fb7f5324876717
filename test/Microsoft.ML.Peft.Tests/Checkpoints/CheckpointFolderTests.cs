// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Security.Cryptography;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tests.Checkpoints;

/// <summary>Checkpoint folders: shards, spellings, prefixes, and what is refused with which words.</summary>
[TestClass]
public sealed class CheckpointFolderTests
{
    [TestMethod]
    public void ShardsMakeOneCheckpoint()
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(TinyCheckpoint.Sharded());
        CollectionAssert.AreEqual(
            new[] { "bert.a.bias", "bert.a.weight", "bert.b.weight", "bert.ids" },
            checkpoint.Tensors.Select(t => t.Name).ToArray());
        CheckpointTensor rows = checkpoint.Get("bert.b.weight");
        Assert.IsTrue(rows.IsInt8PerRow);
        Assert.AreEqual(SafetensorsDtype.F32, rows.Dtype);
        Assert.AreEqual(SafetensorsDtype.I8, rows.Stored.Dtype);
        CollectionAssert.AreEqual(
            TinyCheckpoint.Bytes(40), rows.File.Bytes(rows.Stored.Name).ToArray());
        Assert.HasCount(3, checkpoint.WeightFiles);
    }

    [TestMethod]
    public void NamesAreFoundWithAndWithoutPrefix()
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(TinyCheckpoint.Sharded());
        Assert.IsFalse(checkpoint.Contains("a.weight"));
        checkpoint.Prefix = "bert.";
        Assert.AreSame(checkpoint.Get("bert.a.weight"), checkpoint.Get("a.weight"));
        checkpoint.Prefix = "model.";
        Assert.AreSame(checkpoint.Get("bert.a.weight"), checkpoint.Get("model.bert.a.weight"));
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => checkpoint.Get("bert.a.wieght"));
        StringAssert.Contains(error.Message, "'bert.a.weight'");
    }

    [TestMethod]
    public void OldSpellingsOfNormsAreRead()
    {
        var writer = new SafetensorsWriter();
        writer.Add("a.LayerNorm.gamma", SafetensorsDtype.F32, [2], new byte[8]);
        writer.Add("a.LayerNorm.beta", SafetensorsDtype.F32, [2], new byte[8]);
        writer.Add("LayerNorm.beta", SafetensorsDtype.F32, [2], new byte[8]);
        writer.Add("b.myLayerNorm.beta", SafetensorsDtype.F32, [2], new byte[8]);
        writer.Add("c.LayerNorm.weight", SafetensorsDtype.F32, [2], new byte[8]);
        writer.Add("c.LayerNorm.gamma", SafetensorsDtype.F32, [2], new byte[8]);
        using CheckpointFolder checkpoint = CheckpointFolder.Open(TinyCheckpoint.Single(writer));
        CollectionAssert.AreEqual(
            new[]
            {
                "LayerNorm.bias", "a.LayerNorm.bias", "a.LayerNorm.weight", "b.myLayerNorm.beta",
                "c.LayerNorm.gamma", "c.LayerNorm.weight",
            },
            checkpoint.Tensors.Select(t => t.Name).ToArray());
        Assert.AreEqual("a.LayerNorm.gamma", checkpoint.Get("a.LayerNorm.weight").Stored.Name);
    }

    [TestMethod]
    public void EverythingThatDoesNotFitIsToldAtOnce()
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(TinyCheckpoint.Sharded());
        checkpoint.Prefix = "bert.";
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => checkpoint.Check(new Dictionary<string, long[]>
        {
            ["a.weight"] = [8, 17],
            ["a.bias"] = [8],
            ["c.weight"] = [3, 4],
            ["d.weight"] = [],
        }));
        foreach (string part in new[] { "tiny", "[8, 16]", "[8, 17]", "'bert.a.weight'", "bert.c.weight [3, 4]", "bert.d.weight []" })
            StringAssert.Contains(error.Message, part);

        CheckpointCheck check = checkpoint.Check(
            new Dictionary<string, long[]> { ["a.weight"] = [8, 16] },
            new Dictionary<string, long[]> { ["classifier.weight"] = [2, 16], ["bert.b.weight"] = [4, 10] },
            name => name.EndsWith("ids", StringComparison.Ordinal));
        CollectionAssert.AreEqual(new[] { "classifier.weight" }, check.Missing.ToArray());
        CollectionAssert.AreEqual(new[] { "bert.a.bias" }, check.Extra.ToArray());
    }

    [TestMethod]
    [DataRow("model-00002-of-00002.safetensors\"\n", "x.safetensors\"\n", "missing: 'x.safetensors'")]
    [DataRow("bert.ids", "bert.idx", "no shard has it. Near names: 'bert.ids'")]
    [DataRow("\"bert.ids\": \"model-00002", "\"bert.ids\": \"model-00001", "but it is in model-00002-of-00002.safetensors")]
    [DataRow("model-00002-of-00002.safetensors\"\n", "../model-00002-of-00002.safetensors\"\n", "same folder")]
    [DataRow("model-00002-of-00002.safetensors\"\n", "pytorch_model.bin\"\n", "same folder")]
    [DataRow("weight_map", "weightmap", "weight_map")]
    [DataRow("\"bert.ids\"", "\"bert.a.bias\"", "twice")]
    [DataRow("{", "[", "JSON")]
    public void WrongIndexesAreRefused(string old, string replacement, string says)
    {
        string index = TinyCheckpoint.Index.Replace("\r", "").Replace(old, replacement);
        Assert.AreNotEqual(TinyCheckpoint.Index, index);
        MemoryFileSet files = TinyCheckpoint.Sharded().Add("model.safetensors.index.json", Encoding.UTF8.GetBytes(index));
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => CheckpointFolder.Open(files));
        StringAssert.Contains(error.Message, says);
        StringAssert.Contains(error.Message, "tiny");
    }

    [TestMethod]
    public void OtherKindsOfFoldersAreRefusedWithAdvice()
    {
        byte[] config = Encoding.UTF8.GetBytes(TinyCheckpoint.Config);
        byte[] weights = TinyCheckpoint.Shard1().ToBytes();
        Refused(new MemoryFileSet("f").Add("config.json", config).Add("pytorch_model.bin", config),
            "safe_serialization=True", "pytorch_model.bin");
        Refused(new MemoryFileSet("f").Add("config.json", config).Add("model.gguf", config), "model.gguf");
        Refused(new MemoryFileSet("f").Add("config.json", config), "model.safetensors.index.json");
        Refused(new MemoryFileSet("f").Add("model.safetensors", weights), "no config.json", "model.safetensors");
        Refused(new MemoryFileSet("f").Add("adapter_config.json", config).Add("adapter_model.safetensors", weights),
            "adapter folder");
        Refused(new MemoryFileSet("f").Add("model.safetensors", weights)
            .Add("config.json", """{"quantization_config":{"quant_method":"gptq"}}"""u8.ToArray()), "gptq");

        var packed = new SafetensorsWriter();
        packed.Add("a.qweight", SafetensorsDtype.I32, [2], new byte[8]);
        Refused(TinyCheckpoint.Single(packed), "quantised", "a.qweight");

        var rows = new SafetensorsWriter();
        rows.Add("a.weight", SafetensorsDtype.I8, [2, 4], new byte[8]);
        rows.Add("a.weight.scale", SafetensorsDtype.F32, [4], new byte[16]);
        Refused(TinyCheckpoint.Single(rows), "F32 [2]", "[4]");
        Assert.ThrowsExactly<DirectoryNotFoundException>(() => CheckpointFolder.Open("/no/such/folder"));
    }

    [TestMethod]
    public void ConfigGettersCheckKindAndRange()
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(TinyCheckpoint.Sharded());
        CheckpointConfig config = checkpoint.Config;
        Assert.AreEqual("bert", config.ModelType);
        Assert.AreEqual(16, config.Int("hidden_size"));
        Assert.AreEqual(1e-12, config.Double("layer_norm_eps"));
        Assert.IsTrue(config.Bool("tie_word_embeddings"));
        Assert.AreEqual(2.0, config.Section("rope_scaling")!.Double("factor"));
        Assert.AreEqual("BertModel", config.Strings("architectures").Single());
        Assert.IsFalse(config.Has("pad_token_id"));
        Assert.AreEqual(7, config.Int("pad_token_id", 7));
        Assert.IsNull(config.Section("none"));
        foreach (Action wrong in new Action[]
        {
            () => config.Int("hidden_act"),
            () => config.Int("layer_norm_eps"),
            () => config.Int("hidden_size", min: 17),
            () => config.Double("hidden_act"),
            () => config.Bool("hidden_size"),
            () => config.String("hidden_size"),
            () => config.Strings("hidden_size"),
            () => config.Section("hidden_size"),
        })
        {
            StringAssert.Contains(Assert.ThrowsExactly<CheckpointFormatException>(wrong).Message, "tiny/config.json");
        }

        var missing = Assert.ThrowsExactly<CheckpointFormatException>(() => config.Int("hidden_sizes"));
        StringAssert.Contains(missing.Message, "'hidden_size'");
        Assert.ThrowsExactly<CheckpointFormatException>(() => CheckpointConfig.Parse("[1]"u8.ToArray(), "x"));
        Assert.ThrowsExactly<CheckpointFormatException>(() => CheckpointConfig.Parse("{"u8.ToArray(), "x"));
        Assert.AreEqual(1, CheckpointConfig.Parse("\uFEFF{\"a\": 1.0}"u8.ToArray(), "x").Int("a"));
    }

    [TestMethod]
    public void HashIsThatOfTheFile()
    {
        MemoryFileSet files = TinyCheckpoint.Single(TinyCheckpoint.Shard1());
        using CheckpointFolder one = CheckpointFolder.Open(files);
        string expected = Convert.ToHexStringLower(SHA256.HashData(files.Bytes("model.safetensors").Span));
        Assert.AreEqual(expected, one.Sha256());
        using CheckpointFolder shards = CheckpointFolder.Open(TinyCheckpoint.Sharded());
        string sharded = shards.Sha256();
        Assert.AreEqual(64, sharded.Length);
        Assert.AreNotEqual(expected, sharded);
    }

    [TestMethod]
    public void FolderNamesCannotLeadOut()
    {
        string folder = Directory.CreateTempSubdirectory().FullName;
        try
        {
            Directory.CreateDirectory(Path.Combine(folder, "in", "sub"));
            File.WriteAllText(Path.Combine(folder, "secret.txt"), "x");
            File.WriteAllText(Path.Combine(folder, "in", "a.json"), "{}");
            File.WriteAllText(Path.Combine(folder, "in", "sub", "b.json"), "{}");
            var files = new FolderFileSet(Path.Combine(folder, "in"));
            CollectionAssert.AreEqual(new[] { "a.json", "sub/b.json" }, files.Names.ToArray());
            Assert.IsTrue(files.Exists("sub/b.json"));
            foreach (string name in new[] { "../secret.txt", "sub/../../secret.txt", Path.Combine(folder, "secret.txt"), "", "a.json\0", "." })
                Assert.IsFalse(files.Exists(name), name);
            Assert.ThrowsExactly<FileNotFoundException>(() => files.Open("../secret.txt"));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static void Refused(IFileSet files, params string[] says)
    {
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => CheckpointFolder.Open(files));
        foreach (string part in says)
            StringAssert.Contains(error.Message, part);
    }
}
