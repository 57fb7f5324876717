// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _bottleneck = new()
    {
        ["pfeiffer"] = () => new PfeifferOptions { ReductionFactor = 4 },
        ["houlsby"] = () => new HoulsbyOptions { ReductionFactor = 4 },
        ["bottleneck exact"] = () => new BottleneckOptions { ReductionFactor = 4, Init = "mam_adapter", Dropout = 0.1, LeaveOut = [0] },
        ["bottleneck parallel"] = () => new BottleneckOptions { Parallel = true, ReductionFactor = 2, Init = "mam_adapter", Scaling = "learned" },
        ["bottleneck norms and gate"] = () => new BottleneckOptions { ReductionFactor = 4, ReductionFactors = { ["1"] = 8 }, OwnNormBefore = true, OwnNormAfter = true, Gate = true, Scaling = "channel", Init = "houlsby" },
    };
}
