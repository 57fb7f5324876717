// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _partial = new()
    {
        ["head-only"] = () => new HeadOnlyOptions(),
        ["full"] = () => new FullFineTuningOptions(),
        ["full without tables"] = () => new FullFineTuningOptions { TrainEmbeddings = false },
        ["bitfit"] = () => new BitFitOptions(),
        ["bitfit groups"] = () => new BitFitOptions { Groups = ["query", "intermediate"] },
    };
}
