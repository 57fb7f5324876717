// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>One place of a template: a text (0 or 1), or special tokens (-1).</summary>
internal sealed record TemplatePiece(int Sequence, int TypeId, int[] Ids);

/// <summary>What is done to the tokens at last: offsets without blanks, special tokens around, type ids.</summary>
internal sealed record PostProcessor
{
    public static readonly TemplatePiece[] PlainSingle = [new(0, 0, [])];
    public static readonly TemplatePiece[] PlainPair = [new(0, 0, []), new(1, 1, [])];

    public TemplatePiece[] Single { get; init; } = PlainSingle;

    public TemplatePiece[] Pair { get; init; } = PlainPair;

    /// <summary>Leave blanks at a token's ends out of its offsets.</summary>
    public bool TrimOffsets { get; init; }

    /// <summary>The first blank of a text was put there and counts as none.</summary>
    public bool PrefixSpace { get; init; }

    /// <summary>
    /// Overflowing windows have the index of their text as type, whatever the template says: the reference sets the
    /// template's types in the first window alone.
    /// </summary>
    public bool OverflowTypesBySequence { get; init; }

    public int SpecialCount(bool pair) => (pair ? Pair : Single).Sum(piece => piece.Ids.Length);

    public static TemplatePiece[] Special(int id, int typeId = 0) => [new(-1, typeId, [id])];

    public static TemplatePiece Text(int sequence, int typeId = 0) => new(sequence, typeId, []);

    /// <summary>[CLS] A [SEP] and [CLS] A [SEP] B [SEP], types 0 and 1.</summary>
    public static PostProcessor Bert(int cls, int sep) => new()
    {
        Single = [.. Special(cls), Text(0), .. Special(sep)],
        Pair = [.. Special(cls), Text(0), .. Special(sep), Text(1, 1), .. Special(sep, 1)],
    };

    /// <summary>&lt;s&gt; A &lt;/s&gt; and &lt;s&gt; A &lt;/s&gt;&lt;/s&gt; B &lt;/s&gt;, all of type 0.</summary>
    public static PostProcessor Roberta(int cls, int sep, bool trimOffsets, bool prefixSpace) => new()
    {
        Single = [.. Special(cls), Text(0), .. Special(sep)],
        Pair = [.. Special(cls), Text(0), .. Special(sep), .. Special(sep), Text(1), .. Special(sep)],
        TrimOffsets = trimOffsets,
        PrefixSpace = prefixSpace,
    };

    public static PostProcessor Read(JsonAt node, Func<string, int?> idOf)
    {
        if (node.IsNull)
            return new PostProcessor();
        string type = node["type"].Text();
        return type switch
        {
            "TemplateProcessing" => Template(node, idOf),
            "BertProcessing" => Bert(PairId(node["cls"]), PairId(node["sep"])),
            "RobertaProcessing" => Roberta(PairId(node["cls"]), PairId(node["sep"]), node["trim_offsets"].Flag(true), node["add_prefix_space"].Flag(true)),
            "ByteLevel" => new PostProcessor { TrimOffsets = node["trim_offsets"].Flag(true), PrefixSpace = node["add_prefix_space"].Flag(true) },
            "Sequence" => Sequence(node["processors"], idOf),
            _ => throw Malformed.Kind(node, type, "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel, Sequence"),
        };
    }

    private static PostProcessor Sequence(JsonAt steps, Func<string, int?> idOf)
    {
        var all = new PostProcessor();
        foreach (var item in steps.Items())
        {
            var step = Read(item, idOf);
            if (step.TrimOffsets)
                all = all with { TrimOffsets = true, PrefixSpace = step.PrefixSpace };
            if (ReferenceEquals(step.Single, PlainSingle))
                continue;
            if (!ReferenceEquals(all.Single, PlainSingle))
                throw Malformed.In($"{item.File}: {item.Path}", "a second template", "one template at most");
            all = all with { Single = step.Single, Pair = step.Pair, OverflowTypesBySequence = step.OverflowTypesBySequence };
        }
        return all;
    }

    private static int PairId(JsonAt node)
    {
        var items = node.Items().ToArray();
        return items.Length == 2 ? items[1].Count() : throw node.Bad("a pair of token and id");
    }

    private static PostProcessor Template(JsonAt node, Func<string, int?> idOf)
    {
        var special = new Dictionary<string, int[]>(StringComparer.Ordinal);
        foreach (var (name, value) in node["special_tokens"].Members())
            special[name] = value["ids"].Items().Select(id => id.Count()).ToArray();
        var single = Pieces(node["single"], special, idOf);
        var pair = Pieces(node["pair"], special, idOf);
        return new PostProcessor { Single = single, Pair = pair.Length > 0 ? pair : PlainPair, OverflowTypesBySequence = true };
    }

    private static TemplatePiece[] Pieces(JsonAt list, Dictionary<string, int[]> special, Func<string, int?> idOf)
    {
        var pieces = new List<TemplatePiece>();
        foreach (var item in list.Items())
        {
            var text = item["Sequence"];
            var token = item["SpecialToken"];
            if (!text.IsNull)
            {
                int sequence = text["id"].Text() switch { "A" => 0, "B" => 1, _ => throw text["id"].Bad("A or B") };
                pieces.Add(new TemplatePiece(sequence, text["type_id"].CountOrNull() ?? 0, []));
                continue;
            }
            string name = token["id"].Text();
            if (!special.TryGetValue(name, out int[]? ids))
                ids = [idOf(name) ?? throw token["id"].Bad("a token of special_tokens or of the vocabulary")];
            pieces.Add(new TemplatePiece(-1, token["type_id"].CountOrNull() ?? 0, ids));
        }
        return pieces.ToArray();
    }
}
