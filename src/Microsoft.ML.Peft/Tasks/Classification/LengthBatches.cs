// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Scores rows in batches of similar length.</summary>
internal static class LengthBatches
{
    // Padded tokens of one forward pass: large enough to keep the products busy, small enough for the caches.
    private const int TokensABatch = 2048;

    // The same where each core has a batch of its own, and the least that is worth one.
    private const int TokensACore = 256, FewTokens = 128, BatchesACore = 4;

    // Images and sounds are as many numbers as thousands of tokens, and are assembled while the batch before is scored.
    private const int RowsABatch = 64;

    /// <summary>Scores rows; results in their order.</summary>
    /// <param name="backbone">The network that reads them.</param>
    /// <param name="examples">The rows as the network takes them.</param>
    /// <param name="score">Logits <c>[batch, classes]</c> of a batch, and the numbers of its rows.</param>
    /// <param name="unreadable">Gives the scores of an image or sound that cannot be read; null to throw.</param>
    /// <exception cref="UnreadableInputException">An image or sound cannot be read.</exception>
    public static ClassScores[] Score(Backbone backbone, Example[] examples, Func<TokenBatch, int[], Tensor> score, Func<ClassScores>? unreadable = null)
    {
        var results = new ClassScores[examples.Length];
        var places = new Dictionary<Example, int>(ReferenceEqualityComparer.Instance);
        for (int i = 0; i < examples.Length; i++) places[examples[i]] = i;
        void Take(BatchArrays arrays)
        {
            foreach (Example row in arrays.Unreadable) results[places[row]] = unreadable!();
            if (arrays.Rows.Count > 0) ScoreBatch(backbone, arrays, [.. arrays.Rows.Select(r => places[r])], score, results);
        }

        BatchArrays Make(Example[] rows) => Assemble(backbone, rows, unreadable is not null);

        // A lone row is scored at once: what differs is the rounding.
        using CpuThreads.Lent? threads = examples.Length > 1 ? CpuThreads.Lend(ask: false) : null;
        // On the CPU each core takes batches of its own: cores that share one wait for each other after each product.
        int cores = backbone.Device.type == DeviceType.CPU && examples.Length > 1 ? get_num_threads() : 1;
        List<Example[]> batches = Batches(examples, cores);
        if (cores > 1 && batches.Count > 1)
            CpuThreads.Share(batches.Count, i => Take(Make(batches[^(i + 1)])));
        else
            foreach (BatchArrays arrays in ReadAhead.Of(batches, Make)) Take(arrays);
        return results;
    }

    // The longest come last; several cores get batches enough that none of them waits long for the last one.
    private static List<Example[]> Batches(Example[] examples, int cores)
    {
        Example[] order = [.. examples.OrderBy(e => e.Length)];
        long most = TokensABatch;
        if (cores > 1) most = Math.Clamp(order.Sum(e => (long)e.Length) / (BatchesACore * cores), FewTokens, TokensACore);
        List<Example[]> batches = [];
        for (int start = 0; start < order.Length;)
        {
            int count = 1;
            while (start + count < order.Length && Fits(order[start], order[start + count], count + 1, most)) count++;
            batches.Add(order[start..(start + count)]);
            start += count;
        }
        return batches;
    }

    // Padding that a network takes for silence would change the scores of the rows beside it.
    private static bool Fits(Example first, Example longest, int count, long tokens) => (long)count * longest.Length <= tokens
        && (longest.Input is not { } input || (count <= RowsABatch && (input.StandsAlone || longest.Length == first.Length)));

    private static BatchArrays Assemble(Backbone backbone, Example[] rows, bool skip)
    {
        try
        {
            return BatchArrays.Of(rows, backbone.Config, 1);
        }
        catch (UnreadableInputException e) when (skip)
        {
            Example[] unreadable = [.. e.Places.Select(p => rows[p])];
            return BatchArrays.Without(unreadable, [.. rows.Except(unreadable)], backbone.Config);
        }
    }

    private static void ScoreBatch(Backbone backbone, BatchArrays arrays, int[] rows, Func<TokenBatch, int[], Tensor> score, ClassScores[] results)
    {
        using var off = no_grad();
        using var scope = NewDisposeScope();
        Tensor logits = score(MiniBatch.ToTokens(arrays, backbone.Device), rows).to_type(ScalarType.Float32).cpu().contiguous();
        float[] scores = logits.data<float>().ToArray(), shares = logits.softmax(-1).data<float>().ToArray();
        int classes = scores.Length / rows.Length;
        for (int i = 0; i < rows.Length; i++)
            results[rows[i]] = new ClassScores(shares.AsSpan(i * classes, classes).ToArray(), scores.AsSpan(i * classes, classes).ToArray());
    }
}
