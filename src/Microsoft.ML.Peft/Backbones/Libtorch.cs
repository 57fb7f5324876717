// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>libtorch as a library to load: that alone takes a core half a second, before its first tensor.</summary>
internal static class Libtorch
{
    /// <summary>
    /// Loads it on another thread, while the caller reads files. Whoever needs it meanwhile waits, and so does whoever loads any other
    /// library; where it cannot be loaded, whoever needs it hears of it.
    /// </summary>
    public static void LoadAhead() => ThreadPool.UnsafeQueueUserWorkItem(
        static _ =>
        {
            try
            {
                torch.get_num_threads();
            }
            catch (Exception)
            {
                // The same exception comes from the first use.
            }
        },
        null);
}
