// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Texts to tokens.</summary>
internal sealed class TextEncoder(TextTokenizer tokenizer, int maxTokens, TextColumns text) : RowEncoder<TextRow>
{
    public TextTokenizer Tokenizer => tokenizer;

    public int MaxTokens => maxTokens;

    public TextColumns Text => text;

    public override IRowColumns<TextRow> Columns => text;

    public override Example Encode(TextRow row, long number = -1, int label = 0)
    {
        TextEncoding encoding = tokenizer.Encode(row.First, row.Second, maxTokens);
        // GPT-2 puts nothing around a text, so that an empty one has no token; a row needs one.
        if (encoding.Ids.Length == 0) return new Example { Ids = [tokenizer.BosId ?? tokenizer.EosId ?? tokenizer.PadId], Label = label, Row = number };
        return new Example { Ids = encoding.Ids, TypeIds = encoding.TypeIds, Label = label, Row = number };
    }

    public override RowCollector<TextRow> Collect() => new Collector(this);

    public override void Describe(JsonObject description, JsonObject columns)
    {
        description["maxTokens"] = maxTokens;
        columns["sentence1"] = text.First;
        columns["sentence2"] = text.Second;
    }

    private sealed class Collector(TextEncoder encoder) : RowCollector<TextRow>
    {
        private readonly List<Example> _rows = [];
        private long _blank, _cut;

        public override void Add(TextRow row, long number, int label)
        {
            if (string.IsNullOrWhiteSpace(row.First) && string.IsNullOrWhiteSpace(row.Second)) _blank++;
            Example example = encoder.Encode(row, number, label);
            if (example.Length >= encoder.MaxTokens) _cut++;
            _rows.Add(example);
        }

        public override CollectedRows Finish(IChannel channel)
        {
            if (_blank == _rows.Count) throw new InvalidOperationException($"All {_rows.Count} texts of column '{encoder.Text.First}' are empty; name the column that holds the text.");
            if (_blank > 0) channel.Warning(MessageSensitivity.None, $"{_blank} of {_rows.Count} texts are empty.");
            if (_cut > 0) channel.Info(MessageSensitivity.None, $"{_cut} of {_rows.Count} texts have {encoder.MaxTokens} tokens or more and are cut there (MaxTokens).");
            return new CollectedRows(_rows);
        }
    }
}
