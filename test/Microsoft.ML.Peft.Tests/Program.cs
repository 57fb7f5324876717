// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
namespace Microsoft.ML.Peft.Tests;

/// <summary>What tests run in a process of its own, to kill it.</summary>
internal static class Program
{
    private static int Main(string[] arguments)
    {
        if (arguments is not ["train", var folder]) return 2;
        Training.ResumeTests.TrainInChild(folder);
        return 0;
    }
}
