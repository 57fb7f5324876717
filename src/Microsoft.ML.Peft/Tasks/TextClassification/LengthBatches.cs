// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Scores rows in batches of similar length.</summary>
internal static class LengthBatches
{
    // Padded tokens of one forward pass: large enough to keep the products busy, small enough for the caches.
    private const int TokensABatch = 2048;

    /// <summary>Scores rows; results in their order.</summary>
    /// <param name="backbone">The network that reads them.</param>
    /// <param name="examples">Tokens of the rows.</param>
    /// <param name="score">Logits <c>[batch, classes]</c> of a batch, and the numbers of its rows.</param>
    public static ClassScores[] Score(Backbone backbone, Example[] examples, Func<TokenBatch, int[], Tensor> score)
    {
        int[] order = [.. Enumerable.Range(0, examples.Length).OrderBy(i => examples[i].Length)];
        var results = new ClassScores[examples.Length];
        for (int start = 0; start < order.Length;)
        {
            int count = 1;
            while (start + count < order.Length && (count + 1) * examples[order[start + count]].Length <= TokensABatch) count++;
            ScoreBatch(backbone, examples, order[start..(start + count)], score, results);
            start += count;
        }
        return results;
    }

    private static void ScoreBatch(Backbone backbone, Example[] examples, int[] rows, Func<TokenBatch, int[], Tensor> score, ClassScores[] results)
    {
        using var off = no_grad();
        using var scope = NewDisposeScope();
        TokenBatch tokens = MiniBatch.ToTokens(BatchArrays.Of(Array.ConvertAll(rows, r => examples[r]), backbone.Config, 1), backbone.Device);
        Tensor logits = score(tokens, rows).to_type(ScalarType.Float32).cpu().contiguous();
        float[] scores = logits.data<float>().ToArray(), shares = logits.softmax(-1).data<float>().ToArray();
        int classes = scores.Length / rows.Length;
        for (int i = 0; i < rows.Length; i++)
            results[rows[i]] = new ClassScores(shares.AsSpan(i * classes, classes).ToArray(), scores.AsSpan(i * classes, classes).ToArray());
    }
}
