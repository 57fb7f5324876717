// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.ExceptionServices;

namespace Microsoft.ML.Peft.Training;

/// <summary>Loops over rows on all cores whose failures come out as they were thrown.</summary>
internal static class Parallelly
{
    /// <summary>Runs over numbers from 0 on.</summary>
    /// <param name="count">How many there are.</param>
    /// <param name="body">What is done for each; may break off.</param>
    public static void For(int count, Action<int, ParallelLoopState> body)
    {
        try
        {
            Parallel.For(0, count, body);
        }
        catch (AggregateException e)
        {
            ExceptionDispatchInfo.Throw(e.Flatten().InnerExceptions[0]);
        }
    }
}
