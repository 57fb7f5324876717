// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Tests of a network that is too small to share out: one thread, and as many as before afterwards.</summary>
public abstract class OneThread
{
    private static int _threads;

    [ClassInitialize(InheritanceBehavior.BeforeEachDerivedClass)]
    public static void TakeOneThread(TestContext context)
    {
        _threads = CpuThreads.UseCores();
        set_num_threads(1);
    }

    [ClassCleanup(InheritanceBehavior.BeforeEachDerivedClass)]
    public static void TakeAllThreads() => set_num_threads(_threads);
}
