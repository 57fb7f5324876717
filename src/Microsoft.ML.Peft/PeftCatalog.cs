// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>The front door: <c>mlContext.Peft()</c>.</summary>
public static class PeftExtensions
{
    /// <summary>Parameter-efficient fine-tuning of frozen Hugging Face backbones.</summary>
    /// <param name="mlContext">The context; its seed and GPU choice hold.</param>
    public static PeftCatalog Peft(this MLContext mlContext)
    {
        ArgumentNullException.ThrowIfNull(mlContext);
        return new PeftCatalog(mlContext);
    }
}

/// <summary>The trainers of this library, one file a task.</summary>
public sealed partial class PeftCatalog
{
    internal PeftCatalog(MLContext context) => Environment = context;

    internal IHostEnvironment Environment { get; }
}
