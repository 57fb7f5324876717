// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Export;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Export;

/// <summary>Exported files, read back and computed: the same scores as the library's own, for each family, head and merge.</summary>
[TestClass]
public sealed class OnnxExportTests
{
    private const double Tolerance = 1e-5;
    private const string Small = """ "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 24""";

    public TestContext TestContext { get; set; } = null!;

    public static IEnumerable<object[]> Families { get; } =
    [
        ["bert", Small],
        ["electra", Small + """, "embedding_size": 16"""],
        ["roberta", Small + """, "pad_token_id": 1, "hidden_act": "gelu_new", "type_vocab_size": 1"""],
        ["camembert", Small + """, "pad_token_id": 1, "hidden_act": "relu" """],
        ["xlm-roberta", Small + """, "pad_token_id": 2, "hidden_act": "silu" """],
        ["albert", Small.Replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4") + """, "embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 1"""],
        ["mpnet", Small + """, "relative_attention_num_buckets": 8, "hidden_act": "quick_gelu" """],
        ["distilbert", """ "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 50, "max_position_embeddings": 24"""],
        ["deit", """ "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40, "image_size": [8, 12], "patch_size": 4"""],
        ["vit", """ "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "image_size": [8, 12], "patch_size": 4"""],
    ];

    // Numbers by name and shape: norms about 1, all else small.
    private sealed class Numbers(bool pooler) : IWeightSource
    {
        public bool Has(string name) => pooler || !name.Contains("pooler", StringComparison.Ordinal);

        public Tensor Load(string name, params long[] shape)
        {
            using var generator = new Generator((ulong)name.Sum(c => c) + 7, CPU);
            Tensor drawn = randn(shape, generator: generator) * 0.2;
            return name.Contains("norm.weight", StringComparison.OrdinalIgnoreCase) ? drawn + 1 : drawn;
        }
    }

    private static Backbone Make(string family, string fields, bool pooler = true) =>
        BackboneLoader.Build(JsonNode.Parse($$"""{"model_type": "{{family}}", {{fields}}}""")!.AsObject(), new Numbers(pooler));

    private static AdaptedModel Trained(Backbone backbone, PeftMethod? method, Pooling pooling)
    {
        PeftAdaptation? adaptation = method?.Attach(backbone, 3);
        var model = new AdaptedModel(backbone, adaptation, new SequenceClassificationHead(backbone, 5, pooling, 4));
        using var off = no_grad();
        using var generator = new Generator(5, CPU);
        foreach (NamedParameter parameter in model.Parameters.Where(p => p.Trainable))
        {
            using Tensor noise = randn(parameter.Value.shape, generator: generator) * 0.05;
            parameter.Value.add_(noise);
        }
        return model;
    }

    private static (TokenBatch Batch, Dictionary<string, Tensor> Inputs) Batch(Backbone backbone, OnnxGraphReader file)
    {
        using var generator = new Generator(9, CPU);
        if (backbone.Config.Input == BackboneInput.Images)
        {
            Tensor pixels = randn([3, 3, 8, 12], generator: generator);
            return (TokenBatch.OfImages(pixels), new() { ["pixel_values"] = pixels });
        }
        Tensor ids = randint(3, 50, [3, 11], generator: generator, dtype: ScalarType.Int64), mask = ones([3, 11], ScalarType.Int64);
        foreach ((int row, int length) in ((int, int)[])[(0, 11), (1, 6), (2, 1)])
        {
            ids[row, TensorIndex.Slice(length)] = tensor((long)backbone.Config.PadId);
            mask[row, TensorIndex.Slice(length)] = tensor(0L);
        }
        var inputs = new Dictionary<string, Tensor> { ["input_ids"] = ids, ["attention_mask"] = mask };
        Tensor? types = null;
        if (file.Inputs.Contains("token_type_ids")) inputs["token_type_ids"] = types = backbone.Config.TypeVocabularySize > 1 ? ids % 2 : zeros_like(ids);
        return (new TokenBatch(ids, mask, types), inputs);
    }

    private double Difference(AdaptedModel model, string name)
    {
        string path = Path.Combine(Path.GetTempPath(), $"{Guid.NewGuid():N}.onnx");
        try
        {
            OnnxExport.Save(model, path, ["a", "b", "c", "d", "e\"é"]);
            OnnxGraphReader file = OnnxGraphReader.Open(path);
            Assert.AreEqual((8L, 17L), (file.Representation, file.Operators));
            Assert.AreEqual("[\"a\",\"b\",\"c\",\"d\",\"e\\u0022\\u00E9\"]", file.Metadata["labels"]);
            using var scope = NewDisposeScope();
            using var off = no_grad();
            (TokenBatch batch, Dictionary<string, Tensor> inputs) = Batch(model.Backbone, file);
            Tensor expected = model.Forward(batch, new Pass(model.Patches));
            Dictionary<string, Tensor> found = file.Run(inputs);
            double difference = (found["logits"] - expected).abs().max().item<float>();
            Assert.IsGreaterThan(1e-3, expected.std().item<float>(), "scores that tell nothing apart");
            Assert.AreEqual(0, (found["probabilities"] - expected.softmax(-1)).abs().max().item<float>(), Tolerance);
            TestContext.WriteLine($"{name}: {difference:0.0e+0} of {Tolerance:0.0e+0}");
            return difference;
        }
        finally
        {
            File.Delete(path);
        }
    }

    [TestMethod]
    [DynamicData(nameof(Families))]
    public void ScoresAreTheSame(string family, string fields)
    {
        long before = LiveTensors.Count();
        foreach (Pooling pooling in Enum.GetValues<Pooling>())
        {
            foreach (PeftMethod? method in (PeftMethod?[])[null, new LoraOptions { Rank = 2, Targets = ["all-linear"] }, new BitFitOptions()])
            {
                foreach (bool pooler in (bool[])[true, false])
                {
                    using Backbone backbone = Make(family, fields, pooler);
                    using AdaptedModel model = Trained(backbone, method, pooling);
                    double difference = Difference(model, $"{family} {pooling} {method?.Id ?? "bare"} {(pooler ? "pooler" : "")}");
                    Assert.IsLessThan(Tolerance, difference);
                }
            }
        }
        Assert.AreEqual(before, LiveTensors.Count());
    }

    [TestMethod]
    public void WhatHasNoFormIsNamed()
    {
        string path = Path.Combine(Path.GetTempPath(), $"{Guid.NewGuid():N}.onnx");
        using Backbone backbone = Make("bert", Small);
        using (AdaptedModel model = Trained(backbone, new BottleneckOptions(), Pooling.Mean))
        {
            var refused = Assert.ThrowsExactly<NotSupportedException>(() => OnnxExport.Save(model, path));
            StringAssert.Contains(refused.Message, "merged");
        }
        using Backbone decoder = Make("gpt2", """ "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 8""");
        using (AdaptedModel model = Trained(decoder, null, Pooling.Mean))
            StringAssert.Contains(Assert.ThrowsExactly<NotSupportedException>(() => OnnxExport.Save(model, path)).Message, "gpt2");
        Assert.IsFalse(File.Exists(path));
    }
}
