// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp;

namespace Microsoft.ML.Peft.Tests;

/// <summary>Counts the tensors that are alive in the process, for tests that nothing leaks.</summary>
internal static class LiveTensors
{
    /// <summary>Tensors whose managed object holds a native one, after the garbage of earlier tests is gone.</summary>
    internal static long Count()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        return torch.Tensor.TotalCount;
    }
}
