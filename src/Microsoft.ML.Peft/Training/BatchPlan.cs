// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Training;

/// <summary>
/// Orders of rows. They depend on (seed, epoch) through a generator of our own, so that a run resumed years later on
/// another runtime sees the same batches.
/// </summary>
public static class RowOrder
{
    /// <summary>A random permutation of 0 .. rows-1.</summary>
    /// <param name="rows">Number of rows.</param>
    /// <param name="seed">Seed of the run.</param>
    /// <param name="epoch">Number of the epoch.</param>
    public static int[] Permutation(int rows, ulong seed, int epoch)
    {
        int[] order = new int[rows];
        for (int i = 0; i < rows; i++) order[i] = i;
        ulong state = Pass.Mix(Pass.Mix(seed) ^ (ulong)(uint)epoch);
        for (int i = rows - 1; i > 0; i--)
        {
            int j = (int)Below(ref state, (ulong)(i + 1));
            (order[i], order[j]) = (order[j], order[i]);
        }
        return order;
    }

    /// <summary>
    /// Rows of like lengths side by side: mega-batches of the permutation are sorted by falling length, and the longest
    /// row of all comes first, so that a lack of memory shows at once.
    /// </summary>
    /// <param name="permutation">A permutation of the rows.</param>
    /// <param name="lengths">Length of each row.</param>
    /// <param name="batch">Rows in a batch.</param>
    /// <param name="megaBatches">Batches in a mega-batch; null for <c>rows / (4 · batch)</c>, at most 50 and at least 1.</param>
    public static int[] GroupByLength(IReadOnlyList<int> permutation, IReadOnlyList<int> lengths, int batch, int? megaBatches = null)
    {
        int rows = permutation.Count;
        if (rows == 0) return [];
        int mega = (megaBatches ?? Math.Clamp(rows / (4 * batch), 1, 50)) * batch;
        int[] order = [.. permutation.Chunk(mega).SelectMany(chunk => chunk.OrderByDescending(row => lengths[row]))];
        int longest = 0;
        for (int start = mega; start < rows; start += mega)
            if (lengths[order[start]] > lengths[order[longest]]) longest = start;
        (order[0], order[longest]) = (order[longest], order[0]);
        return order;
    }

    /// <summary>The rows of one process among several: rank, rank + world, ...</summary>
    /// <param name="order">All rows.</param>
    /// <param name="rank">Number of the process.</param>
    /// <param name="world">Number of processes.</param>
    /// <param name="dropLast">True to cut to a multiple of the world; false to fill up from the start.</param>
    /// <exception cref="ArgumentException">The rank is outside the world.</exception>
    public static int[] Shard(IReadOnlyList<int> order, int rank, int world, bool dropLast = false)
    {
        if (world < 1 || rank < 0 || rank >= world)
            throw new ArgumentException($"Rank {rank} is outside a world of {world} processes; ranks run from 0 to world - 1.");
        int each = dropLast ? order.Count / world : (order.Count + world - 1) / world;
        int[] shard = new int[each];
        for (int i = 0; i < each; i++) shard[i] = order[(rank + i * world) % order.Count];
        return shard;
    }

    /// <summary>Share of padding among all tokens when each batch is padded to its longest row.</summary>
    /// <param name="order">Rows in the order of the batches.</param>
    /// <param name="lengths">Length of each row.</param>
    /// <param name="batch">Rows in a batch.</param>
    /// <param name="multiple">Batches are padded to a multiple of this.</param>
    public static double PaddingShare(IReadOnlyList<int> order, IReadOnlyList<int> lengths, int batch, int multiple = 1)
    {
        long real = 0, padded = 0;
        foreach (int[] rows in order.Chunk(batch))
        {
            int longest = rows.Max(r => lengths[r]);
            padded += (long)rows.Length * ((longest + multiple - 1) / multiple * multiple);
            real += rows.Sum(r => (long)lengths[r]);
        }
        return padded == 0 ? 0 : 1 - (double)real / padded;
    }

    // Unbiased numbers below a bound: the few values that would favour small results are drawn again.
    private static ulong Below(ref ulong state, ulong bound)
    {
        ulong limit = ulong.MaxValue - ulong.MaxValue % bound;
        ulong drawn;
        do
        {
            state += 0x9E3779B97F4A7C15UL;
            drawn = Pass.Mix(state);
        }
        while (drawn >= limit);
        return drawn % bound;
    }
}

/// <summary>Which rows make up which micro-batch of which epoch.</summary>
internal class BatchPlan
{
    private readonly IReadOnlyList<Example> _rows;
    private readonly int[] _lengths;
    private readonly TrainingOptions _options;

    public BatchPlan(IReadOnlyList<Example> rows, TrainingOptions options)
    {
        _rows = rows;
        _options = options;
        _lengths = [.. rows.Select(r => r.Length)];
    }

    public IReadOnlyList<Example> Rows => _rows;

    public virtual int MicroBatchesAnEpoch => (_rows.Count + _options.BatchSize - 1) / _options.BatchSize;

    public int StepsAnEpoch => (MicroBatchesAnEpoch + _options.Accumulation - 1) / _options.Accumulation;

    public long TotalSteps => _options.MaxSteps > 0 ? _options.MaxSteps : (long)_options.Epochs * StepsAnEpoch;

    /// <summary>The micro-batches of an epoch: every row exactly once.</summary>
    public virtual IReadOnlyList<int[]> Epoch(int epoch)
    {
        int[] order = RowOrder.Permutation(_rows.Count, (ulong)_options.Seed, epoch);
        if (_options.GroupByLength) order = RowOrder.GroupByLength(order, _lengths, _options.BatchSize);
        return [.. order.Chunk(_options.BatchSize)];
    }

    /// <summary>All steps from a position on, each with its micro-batches; the last step of an epoch may have fewer.</summary>
    public IEnumerable<PlannedStep> Steps(long from)
    {
        int epoch = (int)(from / StepsAnEpoch), inEpoch = (int)(from % StepsAnEpoch);
        IReadOnlyList<int[]> batches = Epoch(epoch);
        for (long step = from; step < TotalSteps; step++)
        {
            int first = inEpoch * _options.Accumulation;
            int count = Math.Min(_options.Accumulation, batches.Count - first);
            yield return new PlannedStep(
                step, epoch, [.. Enumerable.Range(first, count).Select(i => (IReadOnlyList<Example>)Array.ConvertAll(batches[i], r => _rows[r]))],
                (long)epoch * MicroBatchesAnEpoch + first, inEpoch == StepsAnEpoch - 1);
            if (++inEpoch < StepsAnEpoch) continue;
            inEpoch = 0;
            batches = Epoch(++epoch);
        }
    }
}

/// <summary>An optimizer step to come.</summary>
/// <param name="Step">Number from 0.</param>
/// <param name="Epoch">Epoch from 0.</param>
/// <param name="MicroBatches">Rows of each micro-batch.</param>
/// <param name="FirstMicroStep">Number of the first micro-batch over the whole run.</param>
/// <param name="EndsEpoch">True for the last step of an epoch.</param>
internal sealed record PlannedStep(
    long Step, int Epoch, IReadOnlyList<IReadOnlyList<Example>> MicroBatches, long FirstMicroStep, bool EndsEpoch);
