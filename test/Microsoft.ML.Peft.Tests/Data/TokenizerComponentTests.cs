// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>Each kind of normalizer, pre-tokenizer, model and decoder alone, against the cases that hold such rows.</summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class TokenizerComponentTests
{
    private readonly List<string> failures = [];
    private int compared;

    public static IEnumerable<object[]> ComponentCases()
    {
        if (!Shared.Exists)
            yield break;
        foreach (string folder in Shared.Cases("text-metrics"))
        {
            string rows = Path.Combine(folder, "rows.json");
            if (File.Exists(rows) && JsonNode.Parse(File.ReadAllText(rows)) is JsonObject r && r.ContainsKey("pre_tokenizers") && r.ContainsKey("normalizers"))
                yield return [Path.GetFileName(folder)];
        }
    }

    [TestMethod]
    [DynamicData(nameof(ComponentCases))]
    public void Components(string name)
    {
        string folder = Path.Combine(Shared.Fixtures, "text-metrics", name);
        var head = JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "case.json")))!;
        var rows = JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "rows.json")))!;
        var texts = JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "..", head["base"]!.GetValue<string>(), "texts.json")))!["texts"]!.AsObject();
        foreach (var row in rows["normalizers"]!.AsArray())
            Try(row!, spec => Normalizer(row!, TokenizerJson.Normalizer(spec)!, texts));
        foreach (var row in rows["pre_tokenizers"]!.AsArray())
            Try(row!, spec => PreTokenizer(row!, TokenizerJson.PreTokenizer(spec)!, texts));
        foreach (var row in rows["models"]!.AsArray())
            Try(row!, spec => Model(row!, TokenizerJson.Model(spec)));
        foreach (var row in rows["decoders"]!.AsArray())
            Try(row!, spec => Decoder(row!, spec));
        Console.WriteLine($"{name}: {compared} values compared exactly, {failures.Count} differ.");
        Assert.IsEmpty(failures, string.Join('\n', failures.Take(15)));
        Assert.IsGreaterThan(0, compared);
    }

    private void Try(JsonNode row, Action<JsonAt> test)
    {
        try
        {
            test(new JsonAt(JsonDocument.Parse(row["spec"]!.ToJsonString()).RootElement, "spec", ""));
        }
        catch (Exception e)
        {
            failures.Add($"{row["name"]}: {e.GetType().Name}: {e.Message}");
        }
    }

    private void Normalizer(JsonNode row, TextNormalizer normalizer, JsonObject texts)
    {
        foreach (var (key, entry) in texts)
        {
            string text = entry!["text"]!.GetValue<string>();
            int[] points = AlignedText.CodePoints(text);
            string got = AlignedText.ToString(normalizer.Apply(AlignedText.Of(points, 0, points.Length)).Span);
            Same($"{row["name"]}/{key}", row["changed"]![key]?.GetValue<string>() ?? text, got);
        }
    }

    private void PreTokenizer(JsonNode row, Microsoft.ML.Peft.Data.PreTokenizer preTokenizer, JsonObject texts)
    {
        foreach (var (key, expected) in row["pieces"]!.AsObject())
        {
            int[] points = AlignedText.CodePoints(texts[key]!["text"]!.GetValue<string>());
            var pieces = new TextPieces(AlignedText.Of(points, 0, points.Length));
            preTokenizer.Apply(pieces);
            var got = new JsonArray();
            foreach (var (from, to) in pieces.Spans)
                got.Add(new JsonArray(AlignedText.ToString(pieces.Text.Span[from..to]), pieces.Text.Starts[from], pieces.Text.Ends[to - 1]));
            Same($"{row["name"]}/{key}", expected!.ToJsonString(), got.ToJsonString());
        }
    }

    private void Model(JsonNode row, TokenModel model)
    {
        foreach (var result in row["results"]!.AsArray())
        {
            string input = result!["input"]!.GetValue<string>();
            string label = $"{row["name"]}/{input}";
            int[] word = AlignedText.CodePoints(input);
            if (result["tokens"] is not JsonArray tokens)
            {
                Assert.ThrowsExactly<InvalidOperationException>(() => model.Tokenize(word, []), label);
                compared++;
                continue;
            }
            // Empty words never reach a model here.
            if (word.Length == 0)
                continue;
            var target = new List<ModelToken>();
            model.Tokenize(word, target);
            Same(label, tokens.ToJsonString(), InBytes(target, word, model).ToJsonString());
        }
    }

    // The reference counts UTF-8 bytes; a token for one byte of a BPE word has that byte alone.
    private static JsonArray InBytes(List<ModelToken> tokens, int[] word, TokenModel model)
    {
        int Place(int at) => Encoding.UTF8.GetByteCount(AlignedText.ToString(word.AsSpan(0, at)));
        var list = new JsonArray();
        int before = 0;
        foreach (var token in tokens)
        {
            string text = token.Surface ?? model.Vocabulary.Token(token.Id)!;
            bool single = model is BpeModel && ByteTokens.Parse(text) is not null;
            int start = single ? Math.Max(before, Place(token.From)) : Place(token.From);
            int end = single ? start + 1 : Place(token.To);
            before = end;
            list.Add(new JsonArray(text, token.Id, start, end));
        }
        return list;
    }

    private void Decoder(JsonNode row, JsonAt spec)
    {
        foreach (var result in row["results"]!.AsArray())
        {
            var tokens = result!["tokens"]!.AsArray().Select(token => token!.GetValue<string>()).ToList();
            string got = string.Concat(TokenDecoder.Read(spec)!.Apply(tokens));
            Same($"{row["name"]}/{result["tokens"]!.ToJsonString()}", result["text"]!.GetValue<string>(), got);
        }
    }

    private void Same(string label, string expected, string got)
    {
        compared++;
        if (expected != got)
            failures.Add($"{label}\n  expected {JsonSerializer.Serialize(expected)}\n  got      {JsonSerializer.Serialize(got)}");
    }
}
