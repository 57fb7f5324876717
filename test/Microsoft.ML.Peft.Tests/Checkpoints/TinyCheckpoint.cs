// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tests.Checkpoints;

/// <summary>Small checkpoints in memory, in the layout of a Hugging Face folder.</summary>
internal static class TinyCheckpoint
{
    public const string Config = """
        {
          "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "layer_norm_eps": 1e-12,
          "hidden_act": "gelu", "tie_word_embeddings": true, "architectures": ["BertModel"],
          "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "pad_token_id": null
        }
        """;

    public const string Index = """
        {
          "metadata": {"total_size": 1200},
          "weight_map": {
            "bert.a.weight": "model-00001-of-00002.safetensors",
            "bert.a.bias": "model-00001-of-00002.safetensors",
            "bert.b.weight": "model-00002-of-00002.safetensors",
            "bert.b.weight.scale": "model-00002-of-00002.safetensors",
            "bert.ids": "model-00002-of-00002.safetensors"
          }
        }
        """;

    public static byte[] Floats(int count, int seed = 1)
    {
        var random = new Random(seed);
        float[] values = new float[count];
        for (int i = 0; i < count; i++)
            values[i] = (float)((random.NextDouble() * 2) - 1);
        return MemoryMarshal.AsBytes(values.AsSpan()).ToArray();
    }

    public static byte[] Bytes(int count, int seed = 1)
    {
        byte[] bytes = new byte[count];
        new Random(seed).NextBytes(bytes);
        return bytes;
    }

    public static SafetensorsWriter Shard1()
    {
        var writer = new SafetensorsWriter();
        writer.Metadata["format"] = "pt";
        writer.Add("bert.a.weight", SafetensorsDtype.F32, [8, 16], Floats(128));
        writer.Add("bert.a.bias", SafetensorsDtype.BF16, [8], Bytes(16));
        return writer;
    }

    public static SafetensorsWriter Shard2()
    {
        var writer = new SafetensorsWriter();
        writer.Metadata["format"] = "pt";
        writer.Add("bert.b.weight", SafetensorsDtype.I8, [4, 10], Bytes(40));
        writer.Add("bert.b.weight.scale", SafetensorsDtype.F32, [4], Floats(4));
        writer.Add("bert.ids", SafetensorsDtype.I64, [1, 3], Bytes(24));
        return writer;
    }

    public static byte[] ToBytes(this SafetensorsWriter writer)
    {
        using var stream = new MemoryStream();
        writer.Save(stream);
        return stream.ToArray();
    }

    public static MemoryFileSet Sharded() => new MemoryFileSet("tiny")
        .Add("config.json", Encoding.UTF8.GetBytes(Config))
        .Add("model.safetensors.index.json", Encoding.UTF8.GetBytes(Index))
        .Add("model-00001-of-00002.safetensors", Shard1().ToBytes())
        .Add("model-00002-of-00002.safetensors", Shard2().ToBytes());

    public static MemoryFileSet Single(SafetensorsWriter weights) => new MemoryFileSet("tiny")
        .Add("config.json", Encoding.UTF8.GetBytes(Config))
        .Add("model.safetensors", weights.ToBytes());
}
