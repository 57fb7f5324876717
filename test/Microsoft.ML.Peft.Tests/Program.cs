// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
namespace Microsoft.ML.Peft.Tests;

/// <summary>What tests run in a process of its own: to kill it, or to begin with nothing loaded.</summary>
internal static class Program
{
    private static int Main(string[] arguments)
    {
        switch (arguments)
        {
            case ["train", var folder]:
                Training.ResumeTests.TrainInChild(folder);
                return 0;
            case ["score", var zip]:
                TextClassification.ModelZipTests.ScoreInChild(zip);
                return 0;
            default:
                return 2;
        }
    }
}
