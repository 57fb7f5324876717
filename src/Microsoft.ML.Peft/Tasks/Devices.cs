// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Persistence;
using Microsoft.ML.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Where a model runs: the GPU that the MLContext names, or the CPU.</summary>
internal static class Devices
{
    /// <summary>The device of <c>MLContext.GpuDeviceId</c>.</summary>
    /// <param name="environment">An MLContext or a host of one.</param>
    /// <exception cref="MissingDeviceException">There is no such GPU and <c>FallbackToCpu</c> is off.</exception>
    public static Device Choose(IHostEnvironment environment)
    {
        (int? gpu, bool fallback) = ModelEntry.Gpu(environment);
        if (gpu is not { } number) return CPU;
        if (cuda.is_available() && number >= 0 && number < cuda.device_count()) return device(DeviceType.CUDA, number);
        if (fallback) return CPU;
        throw new MissingDeviceException(
            $"MLContext.GpuDeviceId is {number}, but libtorch sees {(cuda.is_available() ? cuda.device_count() : 0)} CUDA devices. Set MLContext.FallbackToCpu = true, or install a CUDA libtorch.");
    }
}

/// <summary>The device that was asked for is not there: the machine's fault, not the file's.</summary>
internal sealed class MissingDeviceException(string message) : InvalidOperationException(message);
