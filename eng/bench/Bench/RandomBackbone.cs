// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;

namespace Microsoft.ML.Peft.Bench;

/// <summary>Encoders of BERT's kind with random weights: how fast one is does not depend on what it has learned.</summary>
internal static class RandomBackbone
{
    private const int Vocabulary = 30522, Positions = 512;

    /// <summary>Writes config.json and model.safetensors, the feed-forward part four times as wide as the rest.</summary>
    public static void Write(string folder, int layers, int width, int heads)
    {
        Directory.CreateDirectory(folder);
        WriteConfigs(folder, new JsonObject
        {
            ["architectures"] = new JsonArray("BertModel"),
            ["model_type"] = "bert",
            ["hidden_act"] = "gelu",
            ["hidden_size"] = width,
            ["intermediate_size"] = 4 * width,
            ["num_hidden_layers"] = layers,
            ["num_attention_heads"] = heads,
            ["hidden_dropout_prob"] = 0.1,
            ["attention_probs_dropout_prob"] = 0.1,
            ["initializer_range"] = 0.02,
            ["layer_norm_eps"] = 1e-12,
            ["max_position_embeddings"] = Positions,
            ["pad_token_id"] = 0,
            ["position_embedding_type"] = "absolute",
            ["type_vocab_size"] = 2,
            ["vocab_size"] = Vocabulary,
        });
        string weights = Path.Combine(folder, "model.safetensors");
        if (File.Exists(weights)) return;
        using var scope = torch.NewDisposeScope();
        var writer = new SafetensorsWriter();
        foreach ((string name, long[] shape) in Tensors(layers, width)) writer.Add(name, Value(name, shape));
        writer.Save(weights);
    }

    /// <summary>Writes config.json into the folder, and one without dropout into the folder beside it, which shares the weights.</summary>
    public static void WriteConfigs(string folder, JsonObject config)
    {
        File.WriteAllText(Path.Combine(folder, "config.json"), config.ToJsonString());
        string without = folder + Material.WithoutDropout, weights = Path.Combine(without, "model.safetensors");
        Directory.CreateDirectory(without);
        config["hidden_dropout_prob"] = 0.0;
        config["attention_probs_dropout_prob"] = 0.0;
        File.WriteAllText(Path.Combine(without, "config.json"), config.ToJsonString());
        Link(weights, folder);
    }

    /// <summary>A folder with the first layers of another one's network.</summary>
    public static void WriteCut(string folder, string whole, int layers)
    {
        Directory.CreateDirectory(folder);
        JsonObject config = JsonNode.Parse(File.ReadAllText(Path.Combine(whole, "config.json")))!.AsObject();
        config["num_hidden_layers"] = layers;
        File.WriteAllText(Path.Combine(folder, "config.json"), config.ToJsonString());
        Link(Path.Combine(folder, "model.safetensors"), whole);
    }

    private static void Link(string weights, string folder)
    {
        if (!File.Exists(weights)) File.CreateSymbolicLink(weights, Path.GetFullPath(Path.Combine(folder, "model.safetensors")));
    }

    private static torch.Tensor Value(string name, long[] shape) =>
        name.EndsWith("LayerNorm.weight", StringComparison.Ordinal) ? torch.ones(shape)
        : name.EndsWith("bias", StringComparison.Ordinal) ? torch.zeros(shape)
        : new Draws(1, name).Normal(0.02, shape);

    private static IEnumerable<(string Name, long[] Shape)> Tensors(int layers, int width)
    {
        IEnumerable<(string, long[])> Pair(string name, params long[] shape) => [(name + ".weight", shape), (name + ".bias", [shape[0]])];
        yield return ("embeddings.word_embeddings.weight", [Vocabulary, width]);
        yield return ("embeddings.position_embeddings.weight", [Positions, width]);
        yield return ("embeddings.token_type_embeddings.weight", [2, width]);
        IEnumerable<(string, long[])> rest = Pair("embeddings.LayerNorm", width).Concat(Pair("pooler.dense", width, width));
        for (int layer = 0; layer < layers; layer++)
        {
            string path = $"encoder.layer.{layer}.";
            foreach (string map in new[] { "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense" })
                rest = rest.Concat(Pair(path + map, width, width));
            rest = rest.Concat(Pair(path + "attention.output.LayerNorm", width)).Concat(Pair(path + "output.LayerNorm", width))
                .Concat(Pair(path + "intermediate.dense", 4 * width, width)).Concat(Pair(path + "output.dense", width, 4 * width));
        }
        foreach ((string, long[]) tensor in rest) yield return tensor;
    }
}
