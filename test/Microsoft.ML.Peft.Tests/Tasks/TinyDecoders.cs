// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>
/// Hugging Face folders with random decoders of two layers, as such folders are published: GPT-2 without prefix, with buffers and
/// byte-level BPE; LLaMA in two shards of bfloat16 with shared key heads and byte-fallback BPE, from tokenizer.json or from a
/// SentencePiece model.
/// </summary>
internal static class TinyDecoders
{
    private const int Hidden = 32, Layers = 2, Inner = 48, MaxTokens = 64, Heads = 4, KeyHeads = 2;

    public static string Write(string folder, string kind)
    {
        Directory.CreateDirectory(folder);
        if (kind == "gpt2") WriteGpt2(folder);
        else WriteLlama(folder, sentencePiece: kind == "llama from sentencepiece");
        return folder;
    }

    // Every word is one token, with a mark for the space before it and without.
    private static (List<string> Pieces, List<(string Left, string Right)> Merges) Words(string mark)
    {
        List<string> pieces = [];
        List<(string, string)> merges = [];
        foreach (string word in TinyBert.Words.SelectMany(w => new[] { w, mark + w }))
        {
            for (int end = 2; end <= word.Length; end++)
            {
                string joined = word[..end];
                if (pieces.Contains(joined)) continue;
                pieces.Add(joined);
                merges.Add((word[..(end - 1)], word[(end - 1)..end]));
            }
        }
        return (pieces, merges);
    }

    private static void WriteGpt2(string folder)
    {
        int[] own = [.. Enumerable.Range('!', '~' - '!' + 1), .. Enumerable.Range('\u00a1', 12), .. Enumerable.Range('\u00ae', '\u00ff' - '\u00ae' + 1)];
        int others = 256;
        string[] bytes = [.. Enumerable.Range(0, 256).Select(b => ((char)(own.Contains(b) ? b : others++)).ToString())];
        (List<string> pieces, List<(string Left, string Right)> merges) = Words(bytes[' ']);
        string[] vocabulary = [.. bytes, .. pieces, "<|endoftext|>"];
        WriteJson(folder, "vocab.json", new JsonObject(vocabulary.Select((token, id) => KeyValuePair.Create(token, (JsonNode?)id))));
        File.WriteAllText(Path.Combine(folder, "merges.txt"), "#version: 0.2\n" + string.Concat(merges.Select(m => $"{m.Left} {m.Right}\n")));
        WriteJson(folder, "tokenizer_config.json", JsonNode.Parse("""{"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}""")!);
        WriteJson(folder, "config.json", JsonNode.Parse($$"""
            {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": {{Hidden}}, "n_layer": {{Layers}}, "n_head": {{Heads}},
             "n_inner": {{Inner}}, "n_positions": {{MaxTokens}}, "vocab_size": {{vocabulary.Length}}, "eos_token_id": {{vocabulary.Length - 1}}}
            """)!);
        var weights = new Weights(SafetensorsDtype.F32);
        weights.Add("wte.weight", 0, 1, vocabulary.Length, Hidden);
        weights.Add("wpe.weight", 0, 0.2f, MaxTokens, Hidden);
        for (int layer = 0; layer < Layers; layer++)
        {
            string path = $"h.{layer}.";
            weights.Norm(path + "ln_1", bias: true);
            weights.Norm(path + "ln_2", bias: true);
            foreach ((string part, long from, long to) in new (string, long, long)[]
                { ("attn.c_attn", Hidden, 3 * Hidden), ("attn.c_proj", Hidden, Hidden), ("mlp.c_fc", Hidden, Inner), ("mlp.c_proj", Inner, Hidden) })
            {
                weights.Add(path + part + ".weight", 0, 1 / MathF.Sqrt(from), from, to);
                weights.Add(path + part + ".bias", 0, 0.1f, to);
            }
            weights.Add(path + "attn.bias", 1, 0, 1, 1, MaxTokens, MaxTokens);
            weights.Add(path + "attn.masked_bias", -10000, 0, 1);
        }
        weights.Norm("ln_f", bias: true);
        weights.Writer.Save(Path.Combine(folder, "model.safetensors"));
    }

    private static void WriteLlama(string folder, bool sentencePiece)
    {
        (List<string> words, List<(string Left, string Right)> merges) = Words("\u2581");
        string[] bytes = [.. Enumerable.Range(0, 256).Select(b => $"<0x{b:X2}>")];
        string[] letters = ["\u2581", .. Enumerable.Range('a', 26).Select(c => ((char)c).ToString())];
        string[] vocabulary = ["<unk>", "<s>", "</s>", .. bytes, .. words, .. letters];
        if (sentencePiece) File.WriteAllBytes(Path.Combine(folder, "tokenizer.model"), SentencePiece(vocabulary));
        else WriteJson(folder, "tokenizer.json", TokenizerJson(vocabulary, merges));
        WriteJson(folder, "tokenizer_config.json", JsonNode.Parse("""
            {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": true}
            """)!);
        WriteJson(folder, "config.json", JsonNode.Parse($$"""
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": {{Hidden}}, "num_hidden_layers": {{Layers}},
             "num_attention_heads": {{Heads}}, "num_key_value_heads": {{KeyHeads}}, "intermediate_size": {{Inner}}, "max_position_embeddings": {{MaxTokens}},
             "vocab_size": {{vocabulary.Length}}, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "pad_token_id": 2, "torch_dtype": "bfloat16",
             "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0} }
            """)!);
        WriteShards(folder, vocabulary.Length);
    }

    private static void WriteShards(string folder, int vocabulary)
    {
        Weights[] shards = [new(SafetensorsDtype.BF16), new(SafetensorsDtype.BF16)];
        shards[0].Add("model.embed_tokens.weight", 0, 1, vocabulary, Hidden);
        for (int layer = 0; layer < Layers; layer++)
        {
            Weights shard = shards[layer];
            string path = $"model.layers.{layer}.";
            shard.Norm(path + "input_layernorm", bias: false);
            shard.Norm(path + "post_attention_layernorm", bias: false);
            long keys = Hidden / Heads * KeyHeads;
            foreach ((string part, long to, long from) in new (string, long, long)[]
                { ("self_attn.q_proj", Hidden, Hidden), ("self_attn.k_proj", keys, Hidden), ("self_attn.v_proj", keys, Hidden), ("self_attn.o_proj", Hidden, Hidden),
                  ("mlp.gate_proj", Inner, Hidden), ("mlp.up_proj", Inner, Hidden), ("mlp.down_proj", Hidden, Inner) })
                shard.Add(path + part + ".weight", 0, 1 / MathF.Sqrt(from), to, from);
        }
        shards[1].Norm("model.norm", bias: false);
        var map = new JsonObject();
        for (int i = 0; i < 2; i++)
        {
            string name = $"model-0000{i + 1}-of-00002.safetensors";
            shards[i].Writer.Save(Path.Combine(folder, name));
            foreach (string tensor in shards[i].Names) map[tensor] = name;
        }
        WriteJson(folder, "model.safetensors.index.json", new JsonObject
        {
            ["metadata"] = new JsonObject { ["total_size"] = shards.Sum(s => s.Bytes) },
            ["weight_map"] = map,
        });
    }

    private static JsonObject TokenizerJson(string[] vocabulary, List<(string Left, string Right)> merges) => new()
    {
        ["version"] = "1.0",
        ["added_tokens"] = new JsonArray([.. vocabulary.Take(3).Select((token, id) => JsonNode.Parse($$"""{"id": {{id}}, "content": "{{token}}", "special": true}"""))]),
        ["normalizer"] = JsonNode.Parse("""{"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}"""),
        ["pre_tokenizer"] = null,
        ["post_processor"] = JsonNode.Parse("""
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
            """),
        ["decoder"] = null,
        ["model"] = new JsonObject
        {
            ["type"] = "BPE",
            ["unk_token"] = "<unk>",
            ["fuse_unk"] = true,
            ["byte_fallback"] = true,
            ["vocab"] = new JsonObject(vocabulary.Select((token, id) => KeyValuePair.Create(token, (JsonNode?)id))),
            ["merges"] = new JsonArray([.. merges.Select(m => new JsonArray(m.Left, m.Right))]),
        },
    };

    // The file is a message of protocol buffers: pieces (1), the trainer's settings (2), the normalizer's (3).
    private static byte[] SentencePiece(string[] vocabulary)
    {
        var file = new MemoryStream();
        for (int id = 0; id < vocabulary.Length; id++)
        {
            byte[] text = Encoding.UTF8.GetBytes(vocabulary[id]), score = new byte[4];
            BinaryPrimitives.WriteSingleLittleEndian(score, -id);
            byte kind = id == 0 ? (byte)2 : id < 3 ? (byte)3 : vocabulary[id].StartsWith("<0x", StringComparison.Ordinal) ? (byte)6 : (byte)1;
            Message(file, 1, [0x0a, (byte)text.Length, .. text, 0x15, .. score, 0x18, kind]);
        }
        Message(file, 2, [0x18, 2]);                                                     // model_type: BPE
        Message(file, 3, [0x18, 1, 0x20, 0]);                                            // a space in front; blanks stay
        return file.ToArray();
    }

    private static void Message(MemoryStream file, int field, byte[] content)
    {
        file.WriteByte((byte)((field << 3) | 2));
        file.WriteByte((byte)content.Length);
        file.Write(content);
    }

    private static void WriteJson(string folder, string name, JsonNode json) =>
        File.WriteAllText(Path.Combine(folder, name), json.ToJsonString(new JsonSerializerOptions { WriteIndented = true }), new UTF8Encoding(false));

    private sealed class Weights(SafetensorsDtype dtype)
    {
        private readonly Random _random = new(3);

        public SafetensorsWriter Writer { get; } = new();

        public List<string> Names { get; } = [];

        public long Bytes { get; private set; }

        public void Add(string name, float mean, float width, params long[] shape)
        {
            float[] values = new float[shape.Aggregate(1L, (a, b) => a * b)];
            for (int i = 0; i < values.Length; i++) values[i] = mean + (((float)_random.NextDouble() - 0.5f) * 2 * width);
            byte[] bytes = dtype == SafetensorsDtype.F32
                ? MemoryMarshal.AsBytes(values.AsSpan()).ToArray()
                : [.. values.SelectMany(v => BitConverter.GetBytes((ushort)(BitConverter.SingleToUInt32Bits(v) >> 16)))];
            Writer.Add(name, dtype, shape, bytes);
            Names.Add(name);
            Bytes += bytes.Length;
        }

        public void Norm(string name, bool bias)
        {
            Add(name + ".weight", 1, 0.1f, Hidden);
            if (bias) Add(name + ".bias", 0, 0.1f, Hidden);
        }
    }
}
