// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using TorchSharp;

namespace Microsoft.ML.Peft.Tests.Checkpoints;

/// <summary>Settings that are wrong, up to the backbone: it loads, or a <see cref="CheckpointFormatException"/> says why not.</summary>
[TestClass]
public sealed class MutatedConfigTests
{
    private const string Config = """
        {
          "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
          "vocab_size": 31, "max_position_embeddings": 16, "type_vocab_size": 2, "pad_token_id": 0, "layer_norm_eps": 1e-12,
          "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
          "classifier_dropout": null, "position_embedding_type": "absolute", "is_decoder": false,
          "tie_word_embeddings": true, "architectures": ["BertModel"], "id2label": {"0": "a", "1": "b"}
        }
        """;

    private static readonly Dictionary<string, string> Decoders = new()
    {
        ["gpt2"] = """
            {
              "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 16, "vocab_size": 31,
              "activation_function": "gelu_new", "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "layer_norm_epsilon": 1e-5,
              "initializer_range": 0.02, "pad_token_id": 0, "eos_token_id": 1, "scale_attn_weights": true, "add_cross_attention": false,
              "scale_attn_by_inverse_layer_idx": false, "tie_word_embeddings": true, "architectures": ["GPT2LMHeadModel"]
            }
            """,
        ["llama"] = """
            {
              "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 24, "vocab_size": 31, "max_position_embeddings": 16, "head_dim": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6,
              "attention_dropout": 0.1, "attention_bias": false, "mlp_bias": false, "initializer_range": 0.02, "pad_token_id": 0,
              "tie_word_embeddings": false, "architectures": ["LlamaForCausalLM"], "rope_parameters": {"rope_type": "default"},
              "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 8,
                               "low_freq_factor": 1.0, "high_freq_factor": 4.0, "mscale": 1, "mscale_all_dim": 1, "truncate": true, "attention_factor": 1.5},
              "rope_theta": 10000.0
            }
            """,
    };

    private static readonly Dictionary<string, string> Others = new()
    {
        ["t5"] = """
            {
              "model_type": "t5", "d_model": 16, "d_kv": 6, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 2, "d_ff": 24,
              "vocab_size": 31, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8,
              "relative_attention_max_distance": 12, "layer_norm_epsilon": 1e-6, "dropout_rate": 0.1, "classifier_dropout": 0.0,
              "pad_token_id": 0, "decoder_start_token_id": 0, "n_positions": 16, "scale_decoder_outputs": false,
              "tie_word_embeddings": true, "is_decoder": false, "architectures": ["T5ForConditionalGeneration"]
            }
            """,
        ["vit"] = """
            {
              "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
              "image_size": 8, "patch_size": 4, "num_channels": 3, "qkv_bias": true, "hidden_act": "gelu", "pooler_act": "tanh",
              "pooler_output_size": 16, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
              "initializer_range": 0.02, "architectures": ["ViTModel"]
            }
            """,
    };

    private static readonly string[] Values =
    [
        "0", "-1", "1", "3", "17", "1.5", "1e999", "2147483647", "4294967296", "9223372036854775807", "1e300", "1e-320", "null",
        "true", "\"x\"", "\"\"", "[]", "{}", "[1,2]", "{\"a\":1}", "\"albert\"", "\"roberta\"", "\"gelu_new\"", "\"tanh\"",
    ];

    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    public void EveryFieldWithEveryValue()
    {
        MemoryFileSet sound = Checkpoint();
        var failures = new List<string>();
        int loaded = 0, refused = 0;
        var clock = Stopwatch.StartNew();
        long before = torch.Tensor.TotalCount;
        long memory = GC.GetAllocatedBytesForCurrentThread();
        foreach (string field in ((JsonObject)JsonNode.Parse(Config)!).Select(p => p.Key))
        {
            foreach (string value in Values)
                Try(sound, Changed(field, value), $"{field} = {value}", failures, ref loaded, ref refused);
        }

        for (int seed = 0; seed < 1000; seed++)
        {
            var random = new Random(seed);
            byte[] config = Encoding.UTF8.GetBytes(Config);
            for (int change = random.Next(1, 3); change > 0; change--)
                config[random.Next(config.Length)] = (byte)random.Next(32, 127);
            Try(sound, config, $"seed {seed}", failures, ref loaded, ref refused);
        }

        memory = (GC.GetAllocatedBytesForCurrentThread() - memory) / (loaded + refused);
        TestContext.WriteLine($"{loaded} loaded, {refused} refused in {clock.Elapsed.TotalSeconds:0.0} s, {memory} bytes each");
        Assert.IsEmpty(failures, string.Join("\n", failures.Take(20)));
        Assert.AreEqual(before, torch.Tensor.TotalCount);
        Assert.IsGreaterThan(50, loaded);
        Assert.IsGreaterThan(50, refused);
    }

    [TestMethod]
    [DataRow("gpt2")]
    [DataRow("llama")]
    [DataRow("t5")]
    [DataRow("vit")]
    public void EveryFieldOfFurtherFamiliesWithEveryValue(string family)
    {
        string text = Decoders.GetValueOrDefault(family) ?? Others[family];
        JsonObject sound = JsonNode.Parse(text)!.AsObject();
        sound.Remove("rope_parameters");                                         // what would hide the older field
        MemoryFileSet files = DecoderCheckpoint(sound);
        var failures = new List<string>();
        int loaded = 0, refused = 0;
        long before = torch.Tensor.TotalCount;
        Try(files, Encoding.UTF8.GetBytes(sound.ToJsonString()), "sound", failures, ref loaded, ref refused);
        Assert.AreEqual(1, loaded, string.Join("\n", failures));
        string[] types = ["\"default\"", "\"linear\"", "\"dynamic\"", "\"llama3\"", "\"yarn\""];
        foreach (string field in JsonNode.Parse(text)!.AsObject().Select(p => p.Key).Concat((sound["rope_scaling"] as JsonObject)?.Select(p => "rope_scaling." + p.Key) ?? []))
        {
            foreach (string value in Values.Concat(field.EndsWith("rope_type", StringComparison.Ordinal) ? types : []))
            {
                JsonObject changed = sound.DeepClone().AsObject();
                bool inner = field.StartsWith("rope_scaling.", StringComparison.Ordinal);
                (inner ? changed["rope_scaling"]!.AsObject() : changed)[inner ? field["rope_scaling.".Length..] : field] = "?!";
                Try(files, Encoding.UTF8.GetBytes(changed.ToJsonString().Replace("\"?!\"", value, StringComparison.Ordinal)), $"{field} = {value}", failures, ref loaded, ref refused);
            }
        }
        TestContext.WriteLine($"{loaded} loaded, {refused} refused");
        Assert.IsEmpty(failures, string.Join("\n", failures.Take(20)));
        Assert.AreEqual(before, torch.Tensor.TotalCount);
        Assert.IsGreaterThan(50, loaded);
        Assert.IsGreaterThan(50, refused);
    }

    private sealed class Asked : IWeightSource
    {
        public SafetensorsWriter Writer { get; } = new();

        public bool Has(string name) => true;

        public torch.Tensor Load(string name, params long[] shape)
        {
            Writer.Add(name, SafetensorsDtype.F32, shape, TinyCheckpoint.Floats((int)shape.Aggregate(1L, (a, b) => a * b)));
            return torch.zeros(shape);
        }
    }

    private static MemoryFileSet DecoderCheckpoint(JsonObject config)
    {
        using var scope = torch.NewDisposeScope();
        var asked = new Asked();
        BackboneLoader.Build(config, asked).Dispose();
        return new MemoryFileSet("tiny").Add("model.safetensors", asked.Writer.ToBytes());
    }

    private static void Try(MemoryFileSet sound, byte[] config, string what, List<string> failures, ref int loaded, ref int refused)
    {
        MemoryFileSet files = new MemoryFileSet("tiny").Add("config.json", config)
            .Add("model.safetensors", sound.Bytes("model.safetensors"));
        var clock = Stopwatch.StartNew();
        try
        {
            using CheckpointFolder checkpoint = CheckpointFolder.Open(files);
            using Backbone backbone = BackboneLoader.Load(checkpoint);
            loaded++;
        }
        catch (CheckpointFormatException)
        {
            refused++;
        }
        catch (Exception e)
        {
            failures.Add($"{what}: {e.GetType().Name}: {e.Message}");
        }

        if (clock.Elapsed.TotalSeconds > 5)
            failures.Add($"{what}: {clock.Elapsed.TotalSeconds:0.0} s");
    }

    private static byte[] Changed(string field, string value)
    {
        var config = (JsonObject)JsonNode.Parse(Config)!;
        config[field] = "?";
        return Encoding.UTF8.GetBytes(config.ToJsonString().Replace($"\"{field}\":\"?\"", $"\"{field}\":{value}"));
    }

    private static MemoryFileSet Checkpoint()
    {
        byte[] config = Encoding.UTF8.GetBytes(Config);
        var writer = new SafetensorsWriter();
        var (body, head) = LoadFixtureTests.Wanted(CheckpointConfig.Parse(config, "tiny"), "BertModel");
        foreach ((string name, long[] shape) in body.Concat(head))
            writer.Add(name, SafetensorsDtype.F32, shape, TinyCheckpoint.Floats((int)shape.Aggregate(1L, (a, b) => a * b)));
        return new MemoryFileSet("tiny").Add("config.json", config).Add("model.safetensors", writer.ToBytes());
    }
}
