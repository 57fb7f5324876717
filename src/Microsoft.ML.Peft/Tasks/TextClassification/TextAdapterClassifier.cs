// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A text and the adapter that shall read it.</summary>
internal readonly record struct AdapterRow(TextRow Text, string Adapter);

/// <summary>Several trained classifiers over one backbone, without columns; each row names its adapter. Immutable but for disposal.</summary>
internal sealed class TextAdapterClassifier : IDisposable
{
    private const int TokensABatch = 2048;
    private int _disposed;

    public TextAdapterClassifier(Backbone backbone, AdapterSet adapters, TextTokenizer tokenizer, LabelSet labels, int maxTokens) =>
        (Backbone, Adapters, Tokenizer, Labels, MaxTokens) = (backbone, adapters, tokenizer, labels, maxTokens);

    public Backbone Backbone { get; }

    public AdapterSet Adapters { get; }

    public TextTokenizer Tokenizer { get; }

    public LabelSet Labels { get; }

    public int MaxTokens { get; }

    /// <summary>Scores rows in batches of similar length, whatever adapters they name; results in the order of the rows.</summary>
    public ClassScores[] Score(IReadOnlyList<AdapterRow> rows)
    {
        ObjectDisposedException.ThrowIf(_disposed != 0, typeof(TextAdapterTransformer));
        var examples = new Example[rows.Count];
        for (int i = 0; i < examples.Length; i++)
        {
            TextEncoding encoding = Tokenizer.Encode(rows[i].Text.First, rows[i].Text.Second, MaxTokens);
            examples[i] = new Example { Ids = encoding.Ids, TypeIds = encoding.TypeIds };
        }
        int[] order = [.. Enumerable.Range(0, examples.Length).OrderBy(i => examples[i].Length)];
        var results = new ClassScores[examples.Length];
        for (int start = 0; start < order.Length;)
        {
            int count = 1;
            while (start + count < order.Length && (count + 1) * examples[order[start + count]].Length <= TokensABatch) count++;
            ScoreBatch(rows, examples, order.AsSpan(start, count), results);
            start += count;
        }
        return results;
    }

    private void ScoreBatch(IReadOnlyList<AdapterRow> rows, Example[] examples, ReadOnlySpan<int> places, ClassScores[] results)
    {
        var batch = new Example[places.Length];
        var names = new string[places.Length];
        for (int i = 0; i < batch.Length; i++) (batch[i], names[i]) = (examples[places[i]], rows[places[i]].Adapter);
        using var off = no_grad();
        using var scope = NewDisposeScope();
        TokenBatch tokens = MiniBatch.ToTokens(BatchArrays.Of(batch, Backbone.Config, 1), Backbone.Device);
        Tensor logits = Adapters.Forward(tokens, names).to_type(ScalarType.Float32).cpu().contiguous();
        float[] scores = logits.data<float>().ToArray(), shares = logits.softmax(-1).data<float>().ToArray();
        int classes = scores.Length / batch.Length;
        for (int i = 0; i < batch.Length; i++)
            results[places[i]] = new ClassScores(shares.AsSpan(i * classes, classes).ToArray(), scores.AsSpan(i * classes, classes).ToArray());
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        Adapters.Dispose();
        Backbone.Dispose();
    }
}
