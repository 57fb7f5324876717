// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>Reads config.json fields with the family's other names and with checks.</summary>
/// <param name="raw">The file.</param>
/// <param name="aliases">General name to the family's own name.</param>
/// <param name="file">Name of the file, for messages.</param>
internal sealed class ConfigReader(JsonObject raw, IReadOnlyDictionary<string, string>? aliases = null, string file = "config.json")
{
    private JsonNode? Find(string name)
    {
        if (raw.TryGetPropertyValue(name, out JsonNode? value) && value is not null) return value;
        if (aliases is not null && aliases.TryGetValue(name, out string? other) && raw.TryGetPropertyValue(other, out value)) return value;
        return null;
    }

    public bool Has(string name) => Find(name) is not null;

    /// <summary>Geometry of an encoder of images or sounds: the fields that most families name alike.</summary>
    /// <param name="modelType">The <c>model_type</c>.</param>
    /// <param name="input">What it reads.</param>
    /// <param name="maxTokens">Longest row in tokens.</param>
    /// <param name="epsilon">Added to the variance in norms where the file does not say.</param>
    /// <param name="dropout">Dropout of hidden states and of attention weights where the file does not say.</param>
    /// <param name="hiddenDropout">Name of the field with the dropout of hidden states.</param>
    /// <param name="attentionDropout">Name of the field with the dropout of attention weights.</param>
    public BackboneConfig Encoder(
        string modelType, BackboneInput input, int maxTokens, double epsilon = 1e-12, double dropout = 0,
        string hiddenDropout = "hidden_dropout_prob", string attentionDropout = "attention_probs_dropout_prob")
    {
        int hidden = Int("hidden_size", 768);
        return new BackboneConfig
        {
            ModelType = modelType,
            Input = input,
            Raw = raw,
            HiddenSize = hidden,
            EmbeddingSize = hidden,
            LayerCount = Int("num_hidden_layers", 12),
            HeadCount = Int("num_attention_heads", 12),
            IntermediateSize = Int("intermediate_size", 3072),
            VocabularySize = 0,
            MaxTokens = maxTokens,
            Activation = Text("hidden_act", "gelu"),
            NormEpsilon = Positive("layer_norm_eps", epsilon),
            HiddenDropout = Share(hiddenDropout, dropout),
            AttentionDropout = Share(attentionDropout, dropout),
            ClassifierDropout = 0,
            InitializerRange = Positive("initializer_range", 0.02),
        };
    }

    public int Int(string name, int missing, int least = 1)
    {
        double number = Number(name, missing);
        if (number != Math.Floor(number) || number < least || number > int.MaxValue)
            throw Bad(name, number, $"a whole number of at least {least}");
        return (int)number;
    }

    public int[] Ints(string name, int[] missing, int least = 1)
    {
        if (Find(name) is not { } node) return missing;
        int[] numbers = node is JsonArray list
            ? [.. list.Select(n => n is JsonValue v && v.TryGetValue(out double d) && d == Math.Floor(d) && d >= least && d <= int.MaxValue ? (int)d : least - 1)]
            : [];
        return numbers.Length > 0 && numbers.All(n => n >= least) ? numbers : throw Bad(name, node, $"a list of whole numbers of at least {least}");
    }

    /// <summary>A list of one number a stage.</summary>
    public int[] Stages(string name, int[] missing, int count, int least = 1)
    {
        int[] numbers = Ints(name, missing, least);
        return numbers.Length == count ? numbers
            : throw new Checkpoints.CheckpointFormatException($"config.json: field '{name}' has {numbers.Length} numbers [{string.Join(", ", numbers)}]; expected {count}, one a stage.");
    }

    public double Share(string name, double missing)
    {
        double number = Number(name, missing);
        return number is >= 0 and < 1 ? number : throw Bad(name, number, "a share in [0, 1)");
    }

    public double? OptionalShare(string name) => Find(name) is null ? null : Share(name, 0);

    public double Positive(string name, double missing)
    {
        double number = Number(name, missing);
        return number > 0 && double.IsFinite(number) ? number : throw Bad(name, number, "a positive number");
    }

    public bool Flag(string name, bool missing) => Find(name) switch
    {
        null => missing,
        JsonValue v when v.TryGetValue(out bool flag) => flag,
        JsonNode other => throw Bad(name, other, "true or false"),
    };

    public string Text(string name, string missing) => Find(name) switch
    {
        null => missing,
        JsonValue v when v.TryGetValue(out string? text) => text,
        JsonNode other => throw Bad(name, other, "a string"),
    };

    public double Number(string name, double missing) => Find(name) switch
    {
        null => missing,
        JsonValue v when v.TryGetValue(out double number) => number,
        JsonNode other => throw Bad(name, other, "a number"),
    };

    private Checkpoints.CheckpointFormatException Bad(string name, object value, string allowed) =>
        new($"{file}: field '{name}' is {(value is JsonNode node ? node.ToJsonString() : value)}; expected {allowed}.");
}
