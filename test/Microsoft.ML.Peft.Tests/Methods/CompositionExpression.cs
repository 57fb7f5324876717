// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Trees as the package writes them: <c>Stack('a', BatchSplit('b', 'c', batch_sizes=[2, 1]))</c>.</summary>
internal static class CompositionExpression
{
    private static readonly Regex _token = new(@"\G\s*(?:(?<name>'[^']*')|(?<word>[A-Za-z_]+)|(?<number>-?[0-9.]+)|(?<sign>[()\[\],=]))");

    public static string? In(string call) => Regex.Match(call, @"(?:set_active_adapters|train_adapter_fusion|add_adapter_fusion)\((?<tree>(?:Stack|Fuse|Parallel|Split|BatchSplit|Average)\(.*?\)(?=\)|,\s*\w+=))") is { Success: true } match ? match.Groups["tree"].Value : null;

    public static Composition Parse(string text)
    {
        int at = 0;
        return Tree(text, ref at);
    }

    private static string Next(string text, ref int at)
    {
        Match match = _token.Match(text, at);
        Assert.IsTrue(match.Success, $"{text} at {at}");
        at += match.Length;
        return match.Value.Trim();
    }

    private static string Peek(string text, int at) => Next(text, ref at);

    private static Composition Tree(string text, ref int at)
    {
        string word = Next(text, ref at);
        if (word[0] == '\'') return word.Trim('\'');
        var children = new List<Composition>();
        var settings = new Dictionary<string, double[]>();
        Next(text, ref at);                                                  // (
        while (Peek(text, at) != ")")
        {
            int before = at;
            string token = Next(text, ref at);
            if (token == ",") continue;
            if (Peek(text, at) == "=")
            {
                Next(text, ref at);
                settings[token] = Numbers(text, ref at);
                continue;
            }
            at = before;
            children.Add(Tree(text, ref at));
        }
        Next(text, ref at);
        Composition[] all = [.. children];
        long[] Sizes(string name) => [.. settings[name].Select(n => (long)n)];
        return word switch
        {
            "Stack" => Composition.Stack(all),
            "Fuse" => Composition.Fuse(all),
            "Parallel" => Composition.Parallel(all),
            "Average" => Composition.Average([.. settings.GetValueOrDefault("weights", [.. all.Select(_ => 1.0 / all.Length)]).Select(w => w / all.Length)], false, all),
            "Split" => Composition.Split(Sizes("splits"), all),
            "BatchSplit" => Composition.BatchSplit(Sizes("batch_sizes"), all),
            _ => throw new NotSupportedException(word),
        };
    }

    private static double[] Numbers(string text, ref int at)
    {
        var numbers = new List<double>();
        bool list = Peek(text, at) == "[";
        do
        {
            string token = Next(text, ref at);
            if (token == "]") break;
            if (double.TryParse(token, NumberStyles.Float, CultureInfo.InvariantCulture, out double number)) numbers.Add(number);
        }
        while (list);
        return [.. numbers];
    }
}

/// <summary>The batch of a case of adapterhub, whatever its base reads.</summary>
internal static class AdapterHubBatch
{
    public static TokenBatch Of(Fixture fixture) => fixture.Has("pixel_values")
        ? TokenBatch.OfImages(fixture["pixel_values"])
        : new TokenBatch(fixture["input_ids"], fixture["attention_mask"], fixture.Has("token_type_ids") ? fixture["token_type_ids"] : null)
        {
            DecoderIds = fixture.Has("decoder_input_ids") ? fixture["decoder_input_ids"] : null,
            DecoderMask = fixture.Has("decoder_attention_mask") ? fixture["decoder_attention_mask"] : null,
        };
}
