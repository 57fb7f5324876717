// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

[TestClass]
public sealed class TokenizerTests
{
    private static readonly string[] Words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "un", "##able", ",", "!", "caf", "##e", "\u597d"];

    private static MappedFiles Bert(string config = """{"tokenizer_class": "BertTokenizer", "do_lower_case": true, "model_max_length": 512}""") => new MappedFiles()
        .Add("vocab.txt", Encoding.UTF8.GetBytes(string.Join('\n', Words) + "\n"))
        .Add("tokenizer_config.json", Encoding.UTF8.GetBytes(config));

    // Byte-level BPE over ASCII with a few merges, as a tokenizer.json.
    private static MappedFiles Bytes(Action<JsonObject>? change = null)
    {
        var vocab = new JsonObject();
        for (int b = 0; b < 256; b++)
            vocab[((char)ByteAlphabet.Chars[b]).ToString()] = b;
        string[] merges = ["t h", "th e", "\u0120 the", "c a", "ca t", "\u0120 cat"];
        foreach (string merge in merges)
            vocab[merge.Replace(" ", "")] = vocab.Count;
        var root = new JsonObject
        {
            ["added_tokens"] = new JsonArray(new JsonObject { ["id"] = vocab.Count, ["content"] = "<|end|>", ["special"] = true }),
            ["normalizer"] = null,
            ["pre_tokenizer"] = JsonNode.Parse("""{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"""),
            ["post_processor"] = JsonNode.Parse("""{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true}"""),
            ["decoder"] = JsonNode.Parse("""{"type": "ByteLevel"}"""),
            ["model"] = new JsonObject { ["type"] = "BPE", ["vocab"] = vocab, ["merges"] = new JsonArray(merges.Select(m => (JsonNode)m).ToArray()) },
        };
        change?.Invoke(root);
        return new MappedFiles().Add("tokenizer.json", Encoding.UTF8.GetBytes(root.ToJsonString()));
    }

    [TestMethod]
    public void WordPieceOfAVocabularyFile()
    {
        var tokenizer = TextTokenizer.Load(Bert());
        var encoding = tokenizer.Encode("The CATS, unable! Caf\u00e9\u597d");
        CollectionAssert.AreEqual(new[] { 2, 5, 6, 8, 11, 9, 10, 12, 13, 14, 15, 3 }, encoding.Ids);
        CollectionAssert.AreEqual(new byte[] { 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 }, encoding.SpecialMask);
        Assert.AreEqual((4, 7), encoding.Offsets[2]);
        Assert.AreEqual((7, 8), encoding.Offsets[3]);
        Assert.AreEqual((21, 22), encoding.Offsets[9]);
        Assert.AreEqual(1, encoding.WordIds[3]);
        Assert.AreEqual("the cats, unable! cafe \u597d", tokenizer.Decode(encoding.Ids));
        Assert.AreEqual((0, 1, 2, 3, 4, 16), (tokenizer.PadId, tokenizer.UnknownId!.Value, tokenizer.ClsId!.Value, tokenizer.SepId!.Value, tokenizer.MaskId!.Value, tokenizer.VocabularySize));
        Assert.AreEqual(512, tokenizer.MaxLength);
        Assert.IsTrue(tokenizer.HasPadToken);
    }

    [TestMethod]
    public void SpecialTokensInTheText()
    {
        var tokenizer = TextTokenizer.Load(Bert());
        CollectionAssert.AreEqual(new[] { 2, 5, 4, 3, 6, 3 }, tokenizer.Encode("the[MASK][SEP]cat").Ids);
        var text = tokenizer.Encode("the[MASK]", null, new TextEncodeOptions { SpecialTokensAsText = true, AddSpecialTokens = false });
        CollectionAssert.AreEqual(new[] { 5, 1, 1, 1 }, text.Ids);
    }

    [TestMethod]
    [DataRow(3, 5, 0, 3, 5)]
    [DataRow(3, 5, 11, 3, 5)]
    [DataRow(3, 5, 9, 3, 3)]
    [DataRow(5, 3, 8, 3, 2)]
    [DataRow(6, 6, 8, 2, 3)]
    [DataRow(9, 1, 7, 3, 1)]
    [DataRow(4, 4, 3, 0, 0)]
    public void PairsAreCutByTheFormula(int first, int second, int limit, int keptFirst, int keptSecond)
    {
        var tokenizer = TextTokenizer.Load(Bert());
        static string Text(int n) => string.Join(' ', Enumerable.Repeat("cat", n));
        var encoding = tokenizer.Encode(Text(first), Text(second), limit);
        Assert.AreEqual(keptFirst, encoding.SequenceIds.Count(s => s == 0));
        Assert.AreEqual(keptSecond, encoding.SequenceIds.Count(s => s == 1));
        CollectionAssert.AreEqual(encoding.SequenceIds.Select((s, i) => s == 1 || i == encoding.Count - 1 ? 1 : 0).ToArray(), encoding.TypeIds);
    }

    [TestMethod]
    public void LimitsThatCannotBeKept()
    {
        var tokenizer = TextTokenizer.Load(Bert());
        Assert.ThrowsExactly<ArgumentException>(() => tokenizer.Encode("the cat", null, 1));
        Assert.ThrowsExactly<ArgumentException>(() => tokenizer.Encode("the cat", "sat", new TextEncodeOptions { MaxTokens = 4, Truncation = TextTruncation.OnlySecond }));
        Assert.ThrowsExactly<ArgumentException>(() => tokenizer.EncodeWindows("the cat sat", null, new TextEncodeOptions { MaxTokens = 4, Stride = 2 }));
        Assert.ThrowsExactly<ArgumentNullException>(() => tokenizer.Encode(null!));
        Assert.ThrowsExactly<ArgumentNullException>(() => tokenizer.EncodeWords([null!]));
    }

    [TestMethod]
    public void WordsGivenOneByOne()
    {
        var encoding = TextTokenizer.Load(Bert()).EncodeWords(["cats", "", "\ud83d\ude00", "the"]);
        CollectionAssert.AreEqual(new[] { 2, 6, 8, 1, 5, 3 }, encoding.Ids);
        CollectionAssert.AreEqual(new[] { -1, 0, 0, 2, 3, -1 }, encoding.WordIds);
        CollectionAssert.AreEqual(new[] { (0, 0), (0, 3), (3, 4), (0, 1), (0, 3), (0, 0) }, encoding.Offsets);
        Assert.AreEqual((0, 2), encoding.Utf16Offsets()[3]);
    }

    [TestMethod]
    public void BytesRoundTrip()
    {
        var tokenizer = TextTokenizer.Load(Bytes());
        Assert.IsNull(tokenizer.UnknownId);
        var random = new Random(5);
        for (int n = 0; n < 300; n++)
        {
            var text = new StringBuilder();
            for (int i = random.Next(40); i > 0; i--)
            {
                int c = random.Next(4) switch { 0 => random.Next(32, 127), 1 => random.Next(1, 0x800), 2 => random.Next(0x800, 0xD800), _ => random.Next(0x10000, 0x110000) };
                text.Append(char.ConvertFromUtf32(c));
            }
            var encoding = tokenizer.Encode(text.ToString());
            Assert.AreEqual(text.ToString(), tokenizer.Decode(encoding.Ids));
            foreach (var ((start, end), token) in encoding.Utf16Offsets().Zip(encoding.Tokens))
                Assert.IsTrue(start < end && end <= text.Length, token);
        }
        CollectionAssert.AreEqual(new[] { 261, 258, 262 }, tokenizer.Encode("cat the<|end|>", null, new TextEncodeOptions()).Ids.Where(id => id > 257).Select(id => id == 260 ? 261 : id).ToArray());
    }

    [TestMethod]
    public void ThePackageMergesAsWeDo()
    {
        var vocabulary = new Vocabulary(16);
        foreach (string token in new[] { "a", "b", "c", "ab", "bc", "abc", "ca", "aa", "aab" })
            vocabulary.Set(token, vocabulary.Count);
        (int, int, int)[] merges = [.. new[] { ("b", "c"), ("a", "a"), ("a", "b"), ("ab", "c"), ("c", "a"), ("aa", "b") }.Select(m => BpeModel.Merge(vocabulary, m.Item1, m.Item2, null, "test"))];
        var plain = new BpeModel(vocabulary, merges, new BpeRules());
        // Byte fallback without byte tokens is never used, but keeps the model away from the package.
        var own = new BpeModel(vocabulary, merges, new BpeRules { ByteFallback = true });
        var random = new Random(7);
        for (int n = 0; n < 500; n++)
        {
            int[] word = Enumerable.Range(0, random.Next(1, 200)).Select(_ => 'a' + random.Next(3)).ToArray();
            List<ModelToken> left = [], right = [];
            plain.Tokenize(word, left);
            own.Tokenize(word, right);
            CollectionAssert.AreEqual(left, right);
        }
    }

    [TestMethod]
    public void ManyThreads()
    {
        var tokenizer = TextTokenizer.Load(Bytes());
        string[] texts = Enumerable.Range(0, 400).Select(i => $"the cat {i} sat {i * 7919 % 1009} thecat {(char)(0x4E00 + i)}").ToArray();
        int[][] alone = texts.Select(text => TextTokenizer.Load(Bytes()).Encode(text).Ids).Take(40).ToArray();
        int[][] together = new int[texts.Length][];
        Parallel.For(0, texts.Length * 4, new ParallelOptions { MaxDegreeOfParallelism = 4 }, i => together[i % texts.Length] = tokenizer.Encode(texts[i % texts.Length]).Ids);
        for (int i = 0; i < alone.Length; i++)
            CollectionAssert.AreEqual(alone[i], together[i]);
    }

    [TestMethod]
    public void OldFormsOfTokenizerJson()
    {
        var pairs = TextTokenizer.Load(Bytes(root => root["model"]!["merges"] = JsonNode.Parse("""[["t", "h"], ["th", "e"]]""")));
        Assert.AreEqual(1, pairs.Encode("the").Count);
        var untyped = TextTokenizer.Load(Bytes(root => root["model"]!.AsObject().Remove("type")));
        Assert.AreEqual(1, untyped.Encode("the").Count);
    }

    [TestMethod]
    [DataRow("tokenizer.json", "", "tokenizer.json")]
    [DataRow("tokenizer.json", "{", "tokenizer.json")]
    [DataRow("tokenizer.json", "[]", "an array of 0")]
    [DataRow("tokenizer.json", "{}", "model")]
    [DataRow("tokenizer.json", """{"model": {"type": "Magic", "vocab": {"a": 0}}}""", "Magic")]
    [DataRow("tokenizer.json", """{"model": {"type": "WordPiece", "vocab": {"a": 0}}}""", "[UNK]")]
    [DataRow("tokenizer.json", """{"model": {"type": "WordPiece", "vocab": {"a": -1}}}""", "model.vocab.a")]
    [DataRow("tokenizer.json", """{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}""", "model.merges[0]")]
    [DataRow("tokenizer.json", """{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}""", "model.merges[0]")]
    [DataRow("tokenizer.json", """{"model": {"type": "Unigram", "vocab": [["a", 1, 2]], "unk_id": 0}}""", "model.vocab[0]")]
    [DataRow("tokenizer.json", """{"model": {"type": "Unigram", "vocab": [["a", 1]], "unk_id": 7}}""", "unk_id")]
    [DataRow("tokenizer.json", """{"model": {"type": "WordLevel", "vocab": {"a": 0}}, "normalizer": {"type": "Rot13"}}""", "Rot13")]
    [DataRow("tokenizer.json", """{"model": {"type": "WordLevel", "vocab": {"a": 0}}, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"}}""", "pattern.Regex")]
    [DataRow("tokenizer.json", """{"model": {"type": "WordLevel", "vocab": {"a": 0}}, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "////"}}""", "precompiled_charsmap")]
    [DataRow("tokenizer.json", """{"model": {"type": "WordLevel", "vocab": {"a": 0}}, "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": []}}""", "single[0]")]
    [DataRow("vocab.txt", "", "vocab.txt")]
    [DataRow("vocab.txt", "a\nb\nc", "[UNK]")]
    [DataRow("spiece.model", "no model", "spiece.model")]
    [DataRow("weights.bin", "", "no tokenizer")]
    public void BadFiles(string name, string content, string named)
    {
        var files = new MappedFiles().Add(name, Encoding.UTF8.GetBytes(content)).Add("tokenizer_config.json", """{"tokenizer_class": "T5Tokenizer"}"""u8.ToArray());
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => TextTokenizer.Load(files));
        Assert.Contains(named, error.Message);
    }

    [TestMethod]
    [DataRow(@"\p{L}+|\s+(?!\S)", @"\p{L}+|\s+(?!\S)")]
    [DataRow(@"[^\s\p{L}]?+x", @"(?>[^\s\p{L}]?)x")]
    [DataRow(@"(?i:'s|'t)++a", @"(?>(?i:'s|'t)+)a")]
    [DataRow(@" ?[^(\s|[.,!?])]+", @" ?[^(\s|.,!?)]+")]
    [DataRow(@"a{,3}", @"a{0,3}")]
    public void PatternsOfTheOtherDialect(string pattern, string expected) => Assert.AreEqual(expected, RegexDialect.Translate(pattern));

    [TestMethod]
    [TestCategory("Fixtures")]
    public void EveryCheckpointFolderWithATokenizerLoads()
    {
        int loaded = 0;
        foreach (string root in new[] { Shared.Fixtures, Path.Combine(Shared.Root, "weights") })
        {
            foreach (string config in Directory.EnumerateFiles(root, "config.json", SearchOption.AllDirectories))
            {
                string folder = Path.GetDirectoryName(config)!;
                if (!new[] { "tokenizer.json", "vocab.txt", "spiece.model", "tokenizer.model" }.Any(name => File.Exists(Path.Combine(folder, name))))
                    continue;
                var tokenizer = TextTokenizer.Load(folder);
                var encoding = tokenizer.Encode("Hello, world", null, 9);
                Assert.IsTrue(encoding.Count is > 0 and <= 9, folder);
                Assert.IsTrue(encoding.Ids.All(id => id >= 0 && id < tokenizer.VocabularySize), folder);
                CollectionAssert.Contains(TextTokenizer.FileNames(new FolderFileSet(folder)).ToArray(), File.Exists(Path.Combine(folder, "tokenizer.json")) ? "tokenizer.json" : "vocab.txt");
                loaded++;
            }
        }
        Console.WriteLine($"{loaded} folders.");
        Assert.IsGreaterThan(0, loaded);
    }

    [TestMethod]
    [DataRow(@"(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")]
    [DataRow(@"[!""#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")]
    [DataRow(@" ?[^(\s|[.,!?…。，、।۔،])]+")]
    [DataRow(@"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\s+")]
    [DataRow(@"\p{Han}+|[一-龥぀-ゟ゠-ヿ]+|\S")]
    public void PatternsOfPublishedTokenizers(string pattern)
    {
        string text = "Hello  world's 1234, (été) 我爱 ok!\n\n𝒳?";
        int[] points = AlignedText.CodePoints(text);
        var matches = new RegexPattern(RegexDialect.Translate(pattern)).Matches(points);
        Assert.IsNotEmpty(matches);
        int done = 0;
        foreach (var (from, to) in matches)
        {
            Assert.IsTrue(from >= done && to > from && to <= points.Length);
            done = to;
        }
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void RealMiniLm()
    {
        var texts = JsonNode.Parse(File.ReadAllText(Path.Combine(Shared.Fixtures, "text-backbones", "minilm", "texts.json")))!;
        var tokenizer = TextTokenizer.Load(Path.Combine(Shared.Root, "weights", "all-minilm-l6-v2"));
        foreach (var pair in texts["pairs"]!.AsArray())
        {
            int[] ids = pair!["ids"].Deserialize<int[]>()!;
            var encoding = tokenizer.Encode(pair["first"]!.GetValue<string>(), pair["second"]!.GetValue<string>(), 256);
            CollectionAssert.AreEqual(ids, encoding.Ids);
            CollectionAssert.AreEqual(pair["token_type_ids"].Deserialize<int[]>(), encoding.TypeIds);
        }
    }
}
