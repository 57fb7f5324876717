// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Data;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How a prompt's rows start.</summary>
public enum PromptInit
{
    /// <summary>Standard normal numbers.</summary>
    Random,
    /// <summary>Numbers uniform in ±0.5.</summary>
    Uniform,
    /// <summary>Rows of the word table, drawn at random.</summary>
    SampleVocabulary,
    /// <summary>Rows of the word table: the tokens of a text, repeated or cut to the prompt's length.</summary>
    Text,
}

/// <summary>Initial rows of prompts.</summary>
internal static class PromptStart
{
    /// <summary>Rows <c>[rows, width]</c>.</summary>
    public static Tensor Rows(Backbone backbone, PromptInit init, string name, long seed, long rows, long width, Func<int[]?> tokens, int sampleFrom = 0)
    {
        var draws = new Draws(seed, name);
        switch (init)
        {
            case PromptInit.Uniform:
                return draws.Uniform(0.5, rows, width);
            case PromptInit.SampleVocabulary:
                long words = sampleFrom > 0 ? Math.Min(sampleFrom, Table(backbone).shape[0]) : Table(backbone).shape[0];
                return Words(backbone, [.. Enumerable.Range(0, (int)rows).Select(_ => (long)(draws.Next() * words))], width);
            case PromptInit.Text when tokens() is { Length: > 0 } ids:
                return Words(backbone, [.. Enumerable.Range(0, (int)rows).Select(i => (long)ids[i % ids.Length])], width);
            default:
                return draws.Normal(1, rows, width);
        }
    }

    /// <summary>Rows of the word table where they fit, else random numbers.</summary>
    public static PromptInit Usual(Backbone backbone, long width) =>
        backbone.Sites.OfType<Embedding>().Any(s => s.Role == SiteRole.WordEmbedding && s.Weight.shape[1] == width) ? PromptInit.SampleVocabulary : PromptInit.Random;

    /// <summary>Rows of the word table in float32.</summary>
    public static Tensor Words(Backbone backbone, long[] ids, long width)
    {
        Tensor table = Table(backbone);
        foreach (long id in ids)
            if (id < 0 || id >= table.shape[0])
                throw new ArgumentException($"A prompt starts from token {id}, but this {backbone.Config.ModelType} backbone has {table.shape[0]} tokens.");
        if (table.shape[1] != width)
            throw new ArgumentException($"A prompt of width {width} cannot start from words, whose rows have width {table.shape[1]}; take another Init.");
        return table.index_select(0, tensor(ids, device: table.device)).to_type(ScalarType.Float32).cpu();
    }

    /// <summary>Token ids of a text by the tokenizer of a folder; null where there is no such folder.</summary>
    public static int[]? Tokens(string? text, string? folder) => text is null || folder is null || !Directory.Exists(folder)
        ? null
        : TextTokenizer.Load(folder).Encode(text, null, new TextEncodeOptions { AddSpecialTokens = false }).Ids;

    private static Tensor Table(Backbone backbone) => backbone.Sites.OfType<Embedding>().FirstOrDefault(s => s.Role == SiteRole.WordEmbedding)?.Weight
        ?? throw new ArgumentException($"This {backbone.Config.ModelType} backbone has no word table that a prompt could start from; take Init random or uniform.");
}
