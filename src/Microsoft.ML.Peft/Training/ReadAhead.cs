// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Training;

/// <summary>Batches for scoring: the next one is assembled while the network runs over the one before.</summary>
internal static class ReadAhead
{
    /// <summary>Assembles batches in order, at most one ahead; texts, which cost nothing, without another thread.</summary>
    /// <param name="chunks">Rows of each batch.</param>
    /// <param name="assemble">Makes a batch; called on another thread.</param>
    public static IEnumerable<BatchArrays> Of(IEnumerable<Example[]> chunks, Func<Example[], BatchArrays> assemble)
    {
        Task<BatchArrays>? ahead = null;
        try
        {
            foreach (Example[] rows in chunks)
            {
                if (rows[0].Input is null)
                {
                    yield return assemble(rows);
                    continue;
                }
                Task<BatchArrays> next = Task.Run(() => assemble(rows));
                Task<BatchArrays>? ready = ahead;
                ahead = next;
                if (ready is not null) yield return ready.GetAwaiter().GetResult();
            }
            if (ahead is not null) yield return ahead.GetAwaiter().GetResult();
        }
        finally
        {
            // Left half-way: nothing may still run over the rows.
            if (ahead is { IsCompleted: false }) Task.WaitAny(ahead);
        }
    }
}
