// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
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

    /// <summary>
    /// Says in what numbers a model scores from now on, be it trained or loaded, alone or in a chain. It is no part of the model zip.
    /// </summary>
    /// <param name="model">A model that holds transformers of this library.</param>
    /// <param name="precision">The precision; what each costs: docs/speed.md.</param>
    /// <exception cref="ArgumentException">The model holds no transformer of this library.</exception>
    /// <exception cref="ArgumentOutOfRangeException">No such precision.</exception>
    public void SetScoringPrecision(ITransformer model, Precision precision)
    {
        ArgumentNullException.ThrowIfNull(model);
        PrecisionCheck.Known(precision);
        IScoresInPrecision[] found = [.. Scoring(model)];
        if (found.Length == 0) throw new ArgumentException($"The model is a {model.GetType().Name} and holds no transformer of this library; nothing in it has a precision.", nameof(model));
        foreach (IScoresInPrecision transformer in found) transformer.ScoringPrecision = precision;
    }

    private static IEnumerable<IScoresInPrecision> Scoring(ITransformer model) => model switch
    {
        IScoresInPrecision one => [one],
        IEnumerable<ITransformer> chain => chain.SelectMany(Scoring),
        _ => [],
    };
}
