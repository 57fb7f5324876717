// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Scores of one row: a probability a class, and the logits that they come from.</summary>
internal readonly record struct ClassScores(float[] Probabilities, float[] Logits)
{
    /// <summary>Number of the most probable class, from 0; the lower one of equals.</summary>
    public int Best
    {
        get
        {
            int best = 0;
            for (int i = 1; i < Probabilities.Length; i++) if (Probabilities[i] > Probabilities[best]) best = i;
            return best;
        }
    }
}

/// <summary>
/// A trained text classifier without columns: text in, probabilities out. Immutable, so many threads may score at once;
/// each call has its own pass and dispose scope.
/// </summary>
internal sealed class TextClassifier : IDisposable
{
    private readonly AdaptedModel _model;
    private int _disposed;

    public TextClassifier(AdaptedModel model, TextTokenizer tokenizer, LabelSet labels, int maxTokens)
    {
        _model = model;
        Tokenizer = tokenizer;
        Labels = labels;
        MaxTokens = maxTokens;
    }

    public AdaptedModel Model => _model;

    public TextTokenizer Tokenizer { get; }

    public LabelSet Labels { get; }

    public int MaxTokens { get; }

    /// <summary>Tokens of a row as the network takes them.</summary>
    public Example Encode(TextRow row, long number = -1, int label = 0)
    {
        TextEncoding encoding = Tokenizer.Encode(row.First, row.Second, MaxTokens);
        // GPT-2 puts nothing around a text, so that an empty one has no token; a row needs one.
        if (encoding.Ids.Length == 0) return new Example { Ids = [Tokenizer.BosId ?? Tokenizer.EosId ?? Tokenizer.PadId], Label = label, Row = number };
        return new Example { Ids = encoding.Ids, TypeIds = encoding.TypeIds, Label = label, Row = number };
    }

    /// <summary>Scores rows in batches of similar length; results in the order of the rows.</summary>
    public ClassScores[] Score(IReadOnlyList<TextRow> rows)
    {
        if (_disposed != 0)
            throw new ObjectDisposedException(nameof(TextClassificationTransformer),
                "The transformer was disposed. A PredictionEngine that owns it disposes it too: make engines with PredictionEngineOptions { OwnsTransformer = false }.");
        var examples = new Example[rows.Count];
        for (int i = 0; i < examples.Length; i++) examples[i] = Encode(rows[i]);
        return LengthBatches.Score(_model.Backbone, examples, (tokens, _) => _model.Forward(tokens, new Pass(_model.Patches)));
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0) _model.Dispose();
    }
}
