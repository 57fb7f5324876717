// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;

namespace Microsoft.ML.Peft.Data;

/// <summary>A step from tokens to text. The text is what the last step leaves, put together.</summary>
internal abstract class TokenDecoder
{
    public abstract List<string> Apply(List<string> tokens);

    public static TokenDecoder? Read(JsonAt node)
    {
        if (node.IsNull)
            return null;
        string type = node["type"].Text();
        return type switch
        {
            "Sequence" => new DecoderSequence(node["decoders"].Items().Select(item => Read(item) ?? throw item.Bad("a decoder")).ToArray()),
            "WordPiece" => new WordPieceDecoder(node["prefix"].TextOrNull() ?? "##", node["cleanup"].Flag(true)),
            "ByteLevel" => new ByteLevelDecoder(),
            "Metaspace" => new MetaspaceDecoder(TokenizerJson.Metaspace(node)),
            "BPEDecoder" => new WordEndDecoder(node["suffix"].TextOrNull() ?? "</w>"),
            "ByteFallback" => new ByteFallbackDecoder(),
            "Fuse" => new FuseDecoder(),
            "Replace" => new ReplaceDecoder(TextPattern.Parse(node["pattern"]), node["content"].Text()),
            "Strip" => new StripDecoder(node["content"].Text(), node["start"].Count(), node["stop"].Count()),
            "CTC" => new CtcDecoder(node["pad_token"].Text(), node["word_delimiter_token"].Text(), node["cleanup"].Flag(true)),
            _ => throw Malformed.Kind(node, type, "Sequence, WordPiece, ByteLevel, Metaspace, BPEDecoder, ByteFallback, Fuse, Replace, Strip, CTC"),
        };
    }
}

internal sealed class DecoderSequence(TokenDecoder[] steps) : TokenDecoder
{
    public override List<string> Apply(List<string> tokens)
    {
        foreach (var step in steps)
            tokens = step.Apply(tokens);
        return tokens;
    }
}

internal sealed class WordPieceDecoder(string prefix, bool cleanup) : TokenDecoder
{
    public override List<string> Apply(List<string> tokens)
    {
        for (int i = 0; i < tokens.Count; i++)
        {
            if (i > 0)
                tokens[i] = tokens[i].StartsWith(prefix, StringComparison.Ordinal) ? tokens[i][prefix.Length..] : " " + tokens[i];
            if (cleanup)
                tokens[i] = Clean(tokens[i]);
        }
        return tokens;
    }

    public static string Clean(string text) =>
        text.Replace(" .", ".").Replace(" ?", "?").Replace(" !", "!").Replace(" ,", ",").Replace(" ' ", "'").Replace(" n't", "n't")
            .Replace(" 'm", "'m").Replace(" do not", " don't").Replace(" 's", "'s").Replace(" 've", "'ve").Replace(" 're", "'re");
}

internal sealed class ByteLevelDecoder : TokenDecoder
{
    public override List<string> Apply(List<string> tokens)
    {
        var bytes = new List<byte>();
        foreach (string token in tokens)
            ByteAlphabet.Decode(token, bytes);
        return [Encoding.UTF8.GetString(bytes.ToArray())];
    }
}

internal sealed class MetaspaceDecoder((int Mark, MetaspaceScheme Scheme, bool Split) form) : TokenDecoder
{
    public override List<string> Apply(List<string> tokens)
    {
        string mark = char.ConvertFromUtf32(form.Mark);
        for (int i = 0; i < tokens.Count; i++)
            tokens[i] = tokens[i].Replace(mark, i == 0 && form.Scheme != MetaspaceScheme.Never ? "" : " ", StringComparison.Ordinal);
        return tokens;
    }
}

internal sealed class WordEndDecoder(string suffix) : TokenDecoder
{
    public override List<string> Apply(List<string> tokens)
    {
        for (int i = 0; i < tokens.Count && suffix.Length > 0; i++)
            tokens[i] = tokens[i].Replace(suffix, i == tokens.Count - 1 ? "" : " ", StringComparison.Ordinal);
        return tokens;
    }
}

/// <summary>Tokens like &lt;0xE2&gt; are bytes; a run of them that is no UTF-8 gives one U+FFFD for each.</summary>
internal sealed class ByteFallbackDecoder : TokenDecoder
{
    private static readonly UTF8Encoding Strict = new(false, throwOnInvalidBytes: true);

    public override List<string> Apply(List<string> tokens)
    {
        var result = new List<string>(tokens.Count);
        var bytes = new List<byte>();
        foreach (string token in tokens)
        {
            if (ByteTokens.Parse(token) is byte b)
            {
                bytes.Add(b);
                continue;
            }
            Flush(bytes, result);
            result.Add(token);
        }
        Flush(bytes, result);
        return result;
    }

    private static void Flush(List<byte> bytes, List<string> result)
    {
        if (bytes.Count == 0)
            return;
        try
        {
            result.Add(Strict.GetString(bytes.ToArray()));
        }
        catch (DecoderFallbackException)
        {
            result.AddRange(Enumerable.Repeat("\uFFFD", bytes.Count));
        }
        bytes.Clear();
    }
}

internal sealed class FuseDecoder : TokenDecoder
{
    public override List<string> Apply(List<string> tokens) => [string.Concat(tokens)];
}

internal sealed class ReplaceDecoder(TextPattern pattern, string content) : TokenDecoder
{
    public override List<string> Apply(List<string> tokens)
    {
        for (int i = 0; i < tokens.Count; i++)
        {
            int[] points = AlignedText.CodePoints(tokens[i]);
            var text = new StringBuilder();
            int done = 0;
            foreach (var (from, to) in pattern.Matches(points))
            {
                text.Append(AlignedText.ToString(points.AsSpan(done, from - done))).Append(content);
                done = to;
            }
            tokens[i] = done == 0 ? tokens[i] : text.Append(AlignedText.ToString(points.AsSpan(done))).ToString();
        }
        return tokens;
    }
}

internal sealed class StripDecoder(string content, int start, int stop) : TokenDecoder
{
    public override List<string> Apply(List<string> tokens)
    {
        for (int i = 0; i < tokens.Count && content.Length > 0; i++)
        {
            string token = tokens[i];
            for (int n = 0; n < start && token.StartsWith(content, StringComparison.Ordinal); n++)
                token = token[content.Length..];
            for (int n = 0; n < stop && token.EndsWith(content, StringComparison.Ordinal); n++)
                token = token[..^content.Length];
            tokens[i] = token;
        }
        return tokens;
    }
}

/// <summary>Speech models: repeated tokens are one, padding goes.</summary>
internal sealed class CtcDecoder(string pad, string wordDelimiter, bool cleanup) : TokenDecoder
{
    public override List<string> Apply(List<string> tokens)
    {
        var result = new List<string>();
        for (int i = 0; i < tokens.Count; i++)
        {
            if (i > 0 && tokens[i] == tokens[i - 1])
                continue;
            string text = pad.Length > 0 ? tokens[i].Replace(pad, "", StringComparison.Ordinal) : tokens[i];
            if (cleanup && wordDelimiter.Length > 0)
                text = WordPieceDecoder.Clean(text).Replace(wordDelimiter, " ", StringComparison.Ordinal);
            if (text.Length > 0)
                result.Add(text);
        }
        return result;
    }
}

/// <summary>The tokens that stand for single bytes: &lt;0x00&gt; to &lt;0xFF&gt;.</summary>
internal static class ByteTokens
{
    public static string Name(int b) => $"<0x{b:X2}>";

    public static byte? Parse(string token)
    {
        if (token.Length != 6 || !token.StartsWith("<0x", StringComparison.Ordinal) || token[5] != '>')
            return null;
        return byte.TryParse(token.AsSpan(3, 2), System.Globalization.NumberStyles.AllowHexSpecifier, null, out byte b) ? b : null;
    }
}
