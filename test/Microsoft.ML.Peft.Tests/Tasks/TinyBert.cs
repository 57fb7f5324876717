// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>A Hugging Face folder with a random BERT of two layers and thirty-two dimensions, and its vocabulary.</summary>
internal static class TinyBert
{
    public const int Hidden = 32, Layers = 2, Inner = 48, MaxTokens = 64;

    public static readonly string[] Words =
        ["good", "great", "fine", "bad", "awful", "poor", "odd", "strange", "weird", "film", "book", "food", "the", "was", "very", "a"];

    private static readonly Lazy<string> _folder = new(() =>
    {
        string folder = Directory.CreateTempSubdirectory("tiny-bert").FullName;
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Directory.Delete(folder, recursive: true);
        return Write(folder);
    });

    /// <summary>A folder for all tests of the process; they only read it.</summary>
    public static string Folder => _folder.Value;

    private static IEnumerable<string> Vocabulary()
    {
        string[] letters = [.. Enumerable.Range('a', 26).Select(c => ((char)c).ToString())];
        return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", .. Words, .. letters, .. letters.Select(l => "##" + l), ".", ",", "!", "\"", "'"];
    }

    /// <summary>Writes the folder.</summary>
    public static string Write(string folder, int seed = 1)
    {
        string[] vocabulary = [.. Vocabulary()];
        File.WriteAllText(Path.Combine(folder, "vocab.txt"), string.Join('\n', vocabulary) + "\n");
        File.WriteAllText(Path.Combine(folder, "tokenizer_config.json"), """{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}""");
        File.WriteAllText(Path.Combine(folder, "config.json"), $$"""
            {
              "model_type": "bert", "architectures": ["BertModel"], "hidden_size": {{Hidden}}, "num_hidden_layers": {{Layers}},
              "num_attention_heads": 2, "intermediate_size": {{Inner}}, "vocab_size": {{vocabulary.Length}},
              "max_position_embeddings": {{MaxTokens}}, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 0
            }
            """, new UTF8Encoding(false));
        Weights(vocabulary.Length, new Random(seed)).Save(Path.Combine(folder, "model.safetensors"));
        return folder;
    }

    private static SafetensorsWriter Weights(int vocabulary, Random random)
    {
        var writer = new SafetensorsWriter();
        void Add(string name, float mean, float width, params long[] shape)
        {
            float[] values = new float[shape.Aggregate(1L, (a, b) => a * b)];
            for (int i = 0; i < values.Length; i++) values[i] = mean + (((float)random.NextDouble() - 0.5f) * 2 * width);
            writer.Add(name, SafetensorsDtype.F32, shape, MemoryMarshal.AsBytes(values.AsSpan()).ToArray());
        }

        void Linear(string name, long output, long input)
        {
            Add(name + ".weight", 0, 1 / MathF.Sqrt(input), output, input);
            Add(name + ".bias", 0, 0.1f, output);
        }

        void Norm(string name)
        {
            Add(name + ".weight", 1, 0.1f, Hidden);
            Add(name + ".bias", 0, 0.1f, Hidden);
        }

        Add("embeddings.word_embeddings.weight", 0, 1, vocabulary, Hidden);
        Add("embeddings.position_embeddings.weight", 0, 0.2f, MaxTokens, Hidden);
        Add("embeddings.token_type_embeddings.weight", 0, 0.2f, 2, Hidden);
        Norm("embeddings.LayerNorm");
        for (int layer = 0; layer < Layers; layer++)
        {
            string path = $"encoder.layer.{layer}.";
            foreach (string part in (string[])["query", "key", "value"]) Linear(path + "attention.self." + part, Hidden, Hidden);
            Linear(path + "attention.output.dense", Hidden, Hidden);
            Norm(path + "attention.output.LayerNorm");
            Linear(path + "intermediate.dense", Inner, Hidden);
            Linear(path + "output.dense", Hidden, Inner);
            Norm(path + "output.LayerNorm");
        }
        Linear("pooler.dense", Hidden, Hidden);
        return writer;
    }
}
