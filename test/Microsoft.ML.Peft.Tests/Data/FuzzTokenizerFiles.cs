// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>
/// Damaged tokenizer files, seeded: each load either succeeds or throws <see cref="CheckpointFormatException"/>, in
/// bounded time, and what loads can encode (or says that it lacks an unknown token).
/// </summary>
[TestClass]
public sealed class FuzzTokenizerFiles
{
    private const string Text = "Hello, world! caf\u00e9 \u6211\u7231 <s> [SEP] \ud83d\ude00 12,5 don't";

    private const string SmallJson = """
        {"added_tokens": [{"id": 0, "content": "<s>", "special": true}, {"id": 1, "content": "[MASK]", "special": true, "lstrip": true}],
         "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Lowercase"}]},
         "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|[^\\s]+|\\s+"}, "behavior": "Isolated"}, {"type": "ByteLevel", "add_prefix_space": true, "use_regex": false}]},
         "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
         "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
         "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": {"<s>": 0, "[MASK]": 1, "<unk>": 2, "h": 3, "e": 4, "l": 5, "he": 6, "ll": 7, "hell": 8, "<0x0A>": 9}, "merges": ["h e", "l l", ["he", "ll"]]}}
        """;

    private static readonly string[] Hostile = ["null", "-1", "1e999", "99999999999", "\"\"", "[]", "{}", "true", "\"\\ud800\"", "[[[[[[]]]]]]", "2147483647", "\"(a+)+$\""];

    public static IEnumerable<object[]> Kinds() => [["small tokenizer.json"], ["vocab.txt"], ["vocab.json"], ["spiece"], ["real"]];

    [TestMethod]
    [DynamicData(nameof(Kinds))]
    public void Damaged(string kind)
    {
        if (Start(kind) is not { } start)
            return;
        var (name, original, others) = start;
        var random = new Random(20_26);
        int loaded = 0, refused = 0;
        TimeSpan longest = default;
        for (int n = 0; n < 400; n++)
        {
            byte[] damaged = n == 0 ? original : Damage(original, random, name.EndsWith(".json", StringComparison.Ordinal));
            var files = new MappedFiles();
            foreach (var (other, content) in others)
                files.Add(other, content);
            files.Add(name, damaged);
            var clock = Stopwatch.StartNew();
            if (Try(files, damaged, n))
                loaded++;
            else
                refused++;
            if (clock.Elapsed > longest)
                longest = clock.Elapsed;
            Assert.IsTrue(n > 0 || loaded == 1, "the file as it was must load");
        }
        Console.WriteLine($"{kind}: {loaded} loaded, {refused} refused, the longest took {longest.TotalMilliseconds:0} ms.");
        Assert.IsLessThan(TimeSpan.FromSeconds(20), longest);
        Assert.IsGreaterThan(0, refused);
    }

    private static bool Try(MappedFiles files, byte[] damaged, int round)
    {
        TextTokenizer tokenizer;
        try
        {
            tokenizer = TextTokenizer.Load(files);
        }
        catch (CheckpointFormatException e)
        {
            Assert.IsGreaterThan(10, e.Message.Length);
            return false;
        }
        catch (Exception e) when (e is not AssertFailedException)
        {
            throw new AssertFailedException($"round {round}: {e.GetType().Name}: {e.Message}\n{e.StackTrace}\n{Encoding.UTF8.GetString(damaged.AsSpan(0, Math.Min(3000, damaged.Length)))}");
        }
        try
        {
            var encoding = tokenizer.Encode(Text, Text, 64);
            _ = tokenizer.Decode(encoding.Ids);
            _ = encoding.Utf16Offsets();
            _ = encoding.Tokens.Count;
        }
        catch (Exception e) when (e is InvalidOperationException or ArgumentException { ParamName: "options" })
        {
            // No unknown token; more special tokens than the limit; a pattern that takes too long.
        }
        return true;
    }

    private static (string Name, byte[] Content, List<(string, byte[])> Others)? Start(string kind)
    {
        string fixtures = Shared.Exists ? Path.Combine(Shared.Fixtures, "text-metrics") : "";
        switch (kind)
        {
            case "small tokenizer.json":
                return ("tokenizer.json", Encoding.UTF8.GetBytes(SmallJson), []);
            case "vocab.txt":
                return ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##s\n,\n!\n\u6211\n"u8.ToArray(), []);
            case "vocab.json":
                return ("vocab.json", """{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "h": 4, "e": 5, "he": 6}"""u8.ToArray(),
                    [("merges.txt", "#version: 0.2\nh e\n"u8.ToArray()), ("tokenizer_config.json", """{"tokenizer_class": "RobertaTokenizer"}"""u8.ToArray())]);
            case "spiece" when Shared.Exists:
                return ("spiece.model", File.ReadAllBytes(Path.Combine(fixtures, "tok-albert", "model", "spiece.model")),
                    [("tokenizer_config.json", """{"tokenizer_class": "AlbertTokenizer"}"""u8.ToArray())]);
            case "real" when Shared.Exists:
                return ("tokenizer.json", File.ReadAllBytes(Path.Combine(fixtures, "tok-smiles", "model", "tokenizer.json")), []);
            default:
                return null;
        }
    }

    private static byte[] Damage(byte[] original, Random random, bool json)
    {
        byte[] bytes = (byte[])original.Clone();
        switch (random.Next(json ? 6 : 4))
        {
            case 0:
                return bytes[..random.Next(bytes.Length)];
            case 1:
                for (int i = random.Next(1, 6); i > 0; i--)
                    bytes[random.Next(bytes.Length)] = (byte)random.Next(256);
                return bytes;
            case 2:
                int from = random.Next(bytes.Length), to = Math.Min(bytes.Length, from + random.Next(1, 40));
                return [.. bytes[..from], .. bytes[to..]];
            case 3:
                int at = random.Next(bytes.Length), end = Math.Min(bytes.Length, at + random.Next(1, 60));
                return [.. bytes[..end], .. bytes[at..]];
            default:
                return Replace(bytes, random);
        }
    }

    // Puts a hostile value in the place of one of the JSON's values.
    private static byte[] Replace(byte[] bytes, Random random)
    {
        string text = Encoding.UTF8.GetString(bytes);
        int colon = text.IndexOf(": ", random.Next(text.Length), StringComparison.Ordinal);
        if (colon < 0)
            return bytes[..(bytes.Length / 2)];
        int start = colon + 2, depth = 0, end = start;
        for (; end < text.Length; end++)
        {
            if (text[end] is '{' or '[')
                depth++;
            else if (text[end] is '}' or ']' && depth-- == 0)
                break;
            else if (text[end] == ',' && depth == 0)
                break;
        }
        return Encoding.UTF8.GetBytes(text[..start] + Hostile[random.Next(Hostile.Length)] + text[end..]);
    }
}
