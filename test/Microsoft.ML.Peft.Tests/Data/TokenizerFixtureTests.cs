// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>
/// The tokenizer cases of the area text-metrics: every case whose configuration names the source of a tokenizer and whose
/// rows hold texts of its own. All values are exact.
/// </summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class TokenizerFixtureTests
{
    private readonly List<string> failures = [];
    private int compared;

    public static IEnumerable<object[]> TokenizerCases() => Cases(rows => rows.ContainsKey("singles"), config => config["source"] is JsonObject);

    private static IEnumerable<object[]> Cases(Func<JsonObject, bool> rows, Func<JsonObject, bool> config)
    {
        if (!Shared.Exists)
            yield break;
        foreach (string folder in Shared.Cases("text-metrics"))
        {
            if (File.Exists(Path.Combine(folder, "rows.json"))
                && Read(folder, "case.json") is JsonObject head && head["config"] is JsonObject c && config(c)
                && Read(folder, "rows.json") is JsonObject r && rows(r))
            {
                yield return [Path.GetFileName(folder)];
            }
        }
    }

    private static string Folder(string name) => Path.Combine(Shared.Fixtures, "text-metrics", name);

    private static JsonNode Read(string folder, string name) => JsonNode.Parse(File.ReadAllText(Path.Combine(folder, name)))!;

    [TestMethod]
    [DynamicData(nameof(TokenizerCases))]
    public void Case(string name)
    {
        string folder = Folder(name);
        var head = Read(folder, "case.json");
        var rows = Read(folder, "rows.json").AsObject();
        var texts = new CaseTexts(Read(Path.Combine(folder, "..", head["base"]?.GetValue<string>() ?? "_base-texts"), "texts.json"));
        var files = Files(folder, head["config"]!["source"]!);
        // A case may use another family's files: then its api begins with the class.
        if (Regex.Match(head["api"]?.GetValue<string>() ?? "", @"^transformers\.(\w+Tokenizer)\(") is { Success: true } named)
            files.Add("tokenizer_config.json", System.Text.Encoding.UTF8.GetBytes($"{{\"tokenizer_class\": \"{named.Groups[1].Value}\"}}")).Remove("special_tokens_map.json");
        var tokenizer = TextTokenizer.Load(files);
        foreach (var (kind, list) in rows)
            Rows(kind, list!.AsArray(), tokenizer, texts);
        if (files.Exists("tokenizer.json") && rows["routes"] is JsonArray routes)
            WithoutJson(files, rows["singles"]!.AsArray(), routes, texts);
        Report(name);
    }

    private static MappedFiles Files(string folder, JsonNode source)
    {
        var files = new MappedFiles();
        if (source["weights"] is JsonNode weights)
            files.AddFolder(Path.Combine(Shared.Root, weights.GetValue<string>()));
        files.AddFolder(Path.Combine(folder, source["folder"]!.GetValue<string>()));
        if (source["tokenizer_json"] is JsonNode json)
            files.Add("tokenizer.json", Path.Combine(folder, json.GetValue<string>()));
        else
            files.Remove("tokenizer.json");
        return files;
    }

    private void Rows(string kind, JsonArray list, TextTokenizer tokenizer, CaseTexts texts)
    {
        foreach (var row in list)
        {
            string label = $"{kind}/{(row!["text"] ?? row["pair"] ?? row["case"])?.GetValue<string>()}";
            try
            {
                switch (kind)
                {
                    case "singles":
                        string text = row["smiles"]?.GetValue<string>() ?? texts.Single(row["text"]!);
                        Check(label, row, tokenizer, tokenizer.Encode(text));
                        CheckPlain(label, row, tokenizer, text);
                        CheckDecoded(label, row, tokenizer);
                        if (row["padded"] is JsonArray padded)
                        {
                            int[] cut = tokenizer.Encode(text, null, padded.Count).Ids;
                            Same(label, "padded", padded, Numbers(cut.Concat(Enumerable.Repeat(tokenizer.PadId, padded.Count - cut.Length))));
                        }
                        break;
                    case "pairs":
                        var (first, second) = texts.Pair(row["pair"]!);
                        Check(label, row, tokenizer, tokenizer.Encode(first, second));
                        break;
                    case "specials_as_text":
                        Same(label, "ids", row["ids"]!, Numbers(tokenizer.Encode(texts.Single(row["text"]!), null, new TextEncodeOptions { SpecialTokensAsText = true }).Ids));
                        break;
                    case "surrogates":
                        string broken = new(row["utf16"]!.AsArray().Select(unit => (char)unit!.GetValue<int>()).ToArray());
                        Same(label, "ids", row["ids"]!, Numbers(tokenizer.Encode(broken).Ids));
                        break;
                    case "split_words":
                        Check(label, row, tokenizer, tokenizer.EncodeWords(row["input"]!.AsArray().Select(word => word!.GetValue<string>()).ToArray()));
                        break;
                    case "truncated_singles" or "truncated_pairs":
                        Truncated(label, kind, row, tokenizer, texts);
                        break;
                    case "batches":
                        Batch(label, row, tokenizer, texts);
                        break;
                    case "routes":
                        break;
                    default:
                        failures.Add($"rows of the unknown kind '{kind}'");
                        return;
                }
            }
            catch (Exception e) when (e is not AssertFailedException)
            {
                failures.Add($"{label}: {e.GetType().Name}: {e.Message} {e.StackTrace?.Split('\n').FirstOrDefault()}");
            }
        }
    }

    private void Check(string label, JsonNode row, TextTokenizer tokenizer, TextEncoding encoding)
    {
        Same(label, "ids", row["ids"]!, Numbers(encoding.Ids));
        if (row["tokens"] is JsonNode tokens)
        {
            // Without offsets they come from a tokenizer that knows ids alone: unknown stretches are the unknown token.
            var got = row["offsets"] is null ? encoding.Ids.Select(id => tokenizer.TokenOf(id)!) : encoding.Tokens;
            Same(label, "tokens", tokens, new JsonArray(got.Select(token => (JsonNode)token).ToArray()));
        }
        if (row["offsets"] is JsonNode offsets)
        {
            Same(label, "offsets", offsets, Spans(encoding.Offsets));
            Same(label, "offsets16", row["offsets16"] ?? offsets, Spans(encoding.Utf16Offsets()));
            Same(label, "types", row["types"] ?? Constant(0, encoding.Count), Numbers(encoding.TypeIds));
        }
        if (row["special"] is JsonNode special)
            Same(label, "special", special, Numbers(encoding.SpecialMask.Select(flag => (int)flag)));
        if (row["words"] is JsonNode words)
            Same(label, "words", words, Indices(encoding.WordIds));
        if (row["sequence"] is JsonNode sequence)
            Same(label, "sequence", sequence, Indices(encoding.SequenceIds));
    }

    private void CheckPlain(string label, JsonNode row, TextTokenizer tokenizer, string text)
    {
        if (row["special"] is not JsonArray special)
            return;
        var plain = tokenizer.Encode(text, null, new TextEncodeOptions { AddSpecialTokens = false });
        JsonNode expected = row["ids_plain"] ?? new JsonArray(row["ids"]!.AsArray().Where((_, i) => special[i]!.GetValue<int>() == 0).Select(id => id!.DeepClone()).ToArray());
        Same(label, "ids_plain", expected, Numbers(plain.Ids));
    }

    private void CheckDecoded(string label, JsonNode row, TextTokenizer tokenizer)
    {
        if (row["decoded"] is not JsonNode decoded)
            return;
        int[] ids = row["ids"]!.AsArray().Select(id => id!.GetValue<int>()).ToArray();
        string text = tokenizer.Decode(ids);
        Same(label, "decoded", decoded, text);
        Same(label, "decoded_all", row["decoded_all"]!, tokenizer.Decode(ids, skipSpecial: false));
        Same(label, "decoded_clean", row["decoded_clean"] ?? decoded, TextTokenizer.CleanUp(text));
    }

    private void Truncated(string label, string kind, JsonNode row, TextTokenizer tokenizer, CaseTexts texts)
    {
        var options = new TextEncodeOptions
        {
            MaxTokens = row["max_length"]!.GetValue<int>(),
            Stride = row["stride"]!.GetValue<int>(),
            TruncationSide = row["side"]!.GetValue<string>() == "left" ? TextSide.Left : TextSide.Right,
            Truncation = row["strategy"]!.GetValue<string>() switch
            {
                "longest_first" => TextTruncation.LongestFirst,
                "only_first" => TextTruncation.OnlyFirst,
                "only_second" => TextTruncation.OnlySecond,
                var other => throw new InvalidDataException($"unknown strategy {other}"),
            },
        };
        var (first, second) = kind == "truncated_pairs" ? texts.Pair(row["of"]!) : (texts.Single(row["of"]!), null);
        bool overflow = row["overflow"]!.GetValue<bool>();
        if (row["error"] is not null)
        {
            if (overflow)
                Assert.ThrowsExactly<ArgumentException>(() => tokenizer.EncodeWindows(first, second, options), label);
            else
                Assert.ThrowsExactly<ArgumentException>(() => tokenizer.Encode(first, second, options), label);
            compared++;
            return;
        }
        var windows = overflow ? tokenizer.EncodeWindows(first, second, options) : [tokenizer.Encode(first, second, options)];
        var expected = row["windows"]!.AsArray();
        Same(label, "number of windows", expected.Count, windows.Count);
        for (int i = 0; i < Math.Min(expected.Count, windows.Count); i++)
        {
            var window = expected[i]!.DeepClone();
            Check($"{label}[{i}]", window, tokenizer, windows[i], offsets16: false);
        }
    }

    private void Check(string label, JsonNode row, TextTokenizer tokenizer, TextEncoding encoding, bool offsets16)
    {
        if (!offsets16 && row["offsets"] is not null && row["offsets16"] is null)
            row["offsets16"] = Spans(encoding.Utf16Offsets());
        Check(label, row, tokenizer, encoding);
    }

    private void Batch(string label, JsonNode row, TextTokenizer tokenizer, CaseTexts texts)
    {
        var options = row["options"]!;
        int length = options["max_length"]?.GetValue<int>() ?? 0;
        bool cut = options["truncation"]?.GetValue<bool>() ?? false;
        var encodings = row["texts"]!.AsArray().Select(text => tokenizer.Encode(texts.Single(text!), null, cut ? length : 0)).ToArray();
        int width = options["padding"]!.GetValue<string>() == "max_length" ? length : encodings.Max(encoding => encoding.Count);
        if (options["pad_to_multiple_of"]?.GetValue<int>() is int multiple)
            width = (width + multiple - 1) / multiple * multiple;
        bool left = row["side"]!.GetValue<string>() == "left";
        int pad = tokenizer.IdOf(row["pad_token"]!.GetValue<string>())!.Value;
        for (int i = 0; i < encodings.Length; i++)
        {
            var expected = row["ids"]![i]!.AsArray();
            var padding = Enumerable.Repeat(pad, width - encodings[i].Count).ToArray();
            Same($"{label}[{i}]", "ids", expected, Numbers(left ? [.. padding, .. encodings[i].Ids] : [.. encodings[i].Ids, .. padding]));
            Same($"{label}[{i}]", "mask", row["mask"]?[i] ?? Constant(1, width), Numbers(left
                ? [.. padding.Select(_ => 0), .. encodings[i].Ids.Select(_ => 1)] : [.. encodings[i].Ids.Select(_ => 1), .. padding.Select(_ => 0)]));
        }
    }

    // The family's pipeline built from the vocabulary files gives the same ids, but for where a route is canonical then.
    private void WithoutJson(MappedFiles files, JsonArray singles, JsonArray routes, CaseTexts texts)
    {
        files.Remove("tokenizer.json");
        if (!files.Names.Any(name => name is "vocab.txt" or "merges.txt" || name.EndsWith(".model", StringComparison.Ordinal)))
            return;
        var route = routes.FirstOrDefault(r => r!["canonical_without_tokenizer_json"]?.GetValue<bool>() == true);
        if (route is null && !routes.Any(r => r!["by"]!.GetValue<string>().Contains("folder without tokenizer.json", StringComparison.Ordinal)))
            return;
        var tokenizer = TextTokenizer.Load(files);
        foreach (var row in singles)
        {
            string text = row!["text"]!.GetValue<string>();
            Same($"without tokenizer.json/{text}", "ids", route?["differ"]?[text] ?? row["ids"]!, Numbers(tokenizer.Encode(texts.Single(row["text"]!)).Ids));
        }
    }

    private void Same(string label, string what, JsonNode expected, JsonNode got)
    {
        compared++;
        if (!JsonNode.DeepEquals(expected, got))
            failures.Add($"{label}: {what}\n  expected {Cut(expected.ToJsonString())}\n  got      {Cut(got.ToJsonString())}");
    }

    private static string Cut(string text) => text.Length > 600 ? text[..600] + "..." : text;

    private static JsonArray Numbers(IEnumerable<int> numbers) => new(numbers.Select(n => (JsonNode)n).ToArray());

    private static JsonArray Indices(IEnumerable<int> numbers) => new(numbers.Select(n => n < 0 ? null : (JsonNode)n).ToArray());

    private static JsonArray Constant(int value, int count) => Numbers(Enumerable.Repeat(value, count));

    private static JsonArray Spans(IEnumerable<(int Start, int End)> spans) =>
        new(spans.Select(span => (JsonNode)new JsonArray(span.Start, span.End)).ToArray());

    private void Report(string name)
    {
        Console.WriteLine($"{name}: {compared} values compared exactly, {failures.Count} differ.");
        if (failures.Count > 0)
            Assert.Fail($"{name}: {failures.Count} of {compared} values differ.\n{string.Join('\n', failures.Take(int.TryParse(Environment.GetEnvironmentVariable("PEFT_SHOW"), out int show) ? show : 12))}");
        Assert.IsGreaterThan(0, compared);
    }

    private sealed class CaseTexts(JsonNode texts)
    {
        public string Single(JsonNode name) => texts["texts"]![name.GetValue<string>()]!["text"]!.GetValue<string>();

        public (string First, string? Second) Pair(JsonNode name)
        {
            var pair = texts["pairs"]![name.GetValue<string>()]!;
            return (pair[0]!.GetValue<string>(), pair[1]!.GetValue<string>());
        }
    }
}
