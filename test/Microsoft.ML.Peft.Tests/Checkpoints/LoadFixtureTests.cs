// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Checkpoints;
using TorchSharp;

namespace Microsoft.ML.Peft.Tests.Checkpoints;

/// <summary>
/// Reference cases about reading a checkpoint (those of fixtures/text-backbones whose case.json has <c>expect</c>), as
/// far as files are concerned: names, shapes, element types, messages. What the models compute from them is compared by
/// the tests of the backbones.
/// </summary>
[TestClass]
public sealed partial class LoadFixtureTests
{
    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    [TestCategory("Fixtures")]
    public void CheckpointsLoadOrAreRefusedAsTheCaseSays()
    {
        int loaded = 0, refused = 0;
        foreach (string folder in Shared.Cases("text-backbones"))
        {
            CheckpointConfig record = CheckpointConfig.Parse(File.ReadAllBytes(Path.Combine(folder, "case.json")), folder);
            if (!record.Has("expect"))
                continue;
            string name = Path.GetFileName(folder);
            using CheckpointFolder checkpoint = CheckpointFolder.Open(Path.Combine(folder, "model"));
            if (checkpoint.Config.ModelType != "bert")
            {
                TestContext.WriteLine($"{name}: the tensors of {checkpoint.Config.ModelType} are known to its backbone; see there.");
                continue;
            }

            checkpoint.Prefix = "bert.";
            if (record.String("expect").StartsWith("an error", StringComparison.Ordinal))
            {
                Refuses(name, record, checkpoint);
                refused++;
            }
            else
            {
                Loads(name, record, checkpoint);
                loaded++;
            }
        }

        TestContext.WriteLine($"{loaded} checkpoints load, {refused} are refused as their cases say.");
        if (Directory.Exists(Path.Combine(Shared.Fixtures, "text-backbones")))
            Assert.IsGreaterThan(0, loaded + refused);
    }

    private static void Loads(string name, CheckpointConfig record, CheckpointFolder checkpoint)
    {
        foreach (JsonProperty model in record.Section("reference_says")!.Root.EnumerateObject())
        {
            var (required, optional) = Wanted(checkpoint.Config, model.Name);
            CheckpointCheck check = checkpoint.Check(required, optional, IsBuffer);
            CollectionAssert.AreEquivalent(Keys(model.Value, "missing_keys"), Qualified(check.Missing), $"{name} {model.Name}");
            CollectionAssert.AreEquivalent(
                Keys(model.Value, "unexpected_keys"), check.Extra.ToArray(), $"{name} {model.Name}");
        }

        long before = torch.Tensor.TotalCount;
        foreach (CheckpointTensor tensor in checkpoint.Tensors.Where(t => t.Dtype != SafetensorsDtype.I64))
        {
            using torch.Tensor loaded = checkpoint.Load(tensor.Name, [.. tensor.Shape], torch.ScalarType.Float32);
            ReadOnlySpan<float> values = MemoryMarshal.Cast<byte, float>(loaded.bytes);
            ReadOnlySpan<byte> stored = tensor.File.Bytes(tensor.Stored.Name);
            for (int i = 0; i < values.Length; i++)
                Assert.AreEqual(Stored(stored, tensor.Stored.Dtype, i), values[i], $"{name} {tensor}");
        }

        Assert.AreEqual(before, torch.Tensor.TotalCount, name);
    }

    // The message names whatever the case's words name: tensors and shapes.
    private static void Refuses(string name, CheckpointConfig record, CheckpointFolder checkpoint)
    {
        var (required, optional) = Wanted(checkpoint.Config, record.Section("reference_says")!.Names[0]);
        var error = Assert.ThrowsExactly<CheckpointFormatException>(
            () => checkpoint.Check(required, optional, IsBuffer), name);
        foreach (JsonProperty model in record.Section("reference_says")!.Root.EnumerateObject())
        {
            foreach (string key in Keys(model.Value, "missing_keys").Concat(Keys(model.Value, "mismatched_keys")))
                StringAssert.Contains(error.Message, key, name);
        }

        foreach (Match shape in Shape().Matches(record.String("expect") + record.String("what")))
            StringAssert.Contains(error.Message, shape.Value, name);
        StringAssert.Contains(error.Message, checkpoint.Description, name);
        if (record.String("expect").Contains("the file", StringComparison.Ordinal))
            StringAssert.Contains(error.Message, checkpoint.WeightFiles[0], name);
    }

    internal static (Dictionary<string, long[]> Required, Dictionary<string, long[]> Optional) Wanted(
        CheckpointConfig config, string model)
    {
        long d = config.Int("hidden_size"), f = config.Int("intermediate_size");
        var body = new Dictionary<string, long[]>
        {
            ["embeddings.word_embeddings.weight"] = [config.Int("vocab_size"), d],
            ["embeddings.position_embeddings.weight"] = [config.Int("max_position_embeddings"), d],
            ["embeddings.token_type_embeddings.weight"] = [config.Int("type_vocab_size"), d],
        };
        Pair(body, "embeddings.LayerNorm", d);
        for (int layer = 0; layer < config.Int("num_hidden_layers"); layer++)
        {
            string at = $"encoder.layer.{layer}.";
            foreach (string part in new[] { "self.query", "self.key", "self.value", "output.dense" })
                Pair(body, $"{at}attention.{part}", d, d);
            Pair(body, $"{at}attention.output.LayerNorm", d);
            Pair(body, $"{at}intermediate.dense", f, d);
            Pair(body, $"{at}output.dense", d, f);
            Pair(body, $"{at}output.LayerNorm", d);
        }

        var head = new Dictionary<string, long[]>();
        if (model is not "BertForMaskedLM")
            Pair(head, "pooler.dense", d, d);
        if (model is "BertForSequenceClassification")
            Pair(head, "classifier", config.Section("id2label")?.Names.Count ?? 2, d);
        if (model is "BertForMaskedLM" or "BertForPreTraining")
        {
            Pair(head, "cls.predictions.transform.dense", d, d);
            Pair(head, "cls.predictions.transform.LayerNorm", d);
            head["cls.predictions.bias"] = [config.Int("vocab_size")];
        }

        if (model is "BertForPreTraining")
            Pair(head, "cls.seq_relationship", 2, d);
        return (body, head);
    }

    private static void Pair(Dictionary<string, long[]> tensors, string name, long rows, long? columns = null)
    {
        tensors[name + ".weight"] = columns is long c ? [rows, c] : [rows];
        tensors[name + ".bias"] = [rows];
    }

    // Names of the body carry the prefix in the records.
    private static string[] Qualified(IEnumerable<string> names) =>
        [.. names.Select(n => n.StartsWith("pooler.", StringComparison.Ordinal) ? "bert." + n : n)];

    private static string[] Keys(JsonElement model, string field) =>
        [.. model.GetProperty(field).EnumerateArray().Select(k => k.ValueKind == JsonValueKind.Array ? k[0].GetString()! : k.GetString()!)];

    private static bool IsBuffer(string name) =>
        name.EndsWith("position_ids", StringComparison.Ordinal) || name == "cls.predictions.decoder.bias";

    private static float Stored(ReadOnlySpan<byte> bytes, SafetensorsDtype dtype, int i) => dtype switch
    {
        SafetensorsDtype.F32 => BitConverter.ToSingle(bytes[(4 * i)..]),
        SafetensorsDtype.BF16 => BitConverter.Int32BitsToSingle(BitConverter.ToUInt16(bytes[(2 * i)..]) << 16),
        SafetensorsDtype.F16 => (float)BitConverter.ToHalf(bytes[(2 * i)..]),
        _ => throw new NotSupportedException($"The test knows no {dtype}."),
    };

    [GeneratedRegex(@"\[[\d, ]+\]")]
    private static partial Regex Shape();
}
