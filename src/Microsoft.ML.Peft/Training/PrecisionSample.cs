// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>The first rows of a run, scored by the untrained model in every precision in question.</summary>
/// <param name="model">The model.</param>
/// <param name="batches">Micro-batches of the first epoch.</param>
/// <param name="assemble">Makes arrays of them.</param>
internal sealed class PrecisionSample(AdaptedModel model, IEnumerable<IReadOnlyList<Example>> batches, Func<IReadOnlyList<Example>, BatchArrays> assemble)
{
    private const int Rows = 32, Tokens = 1024;

    /// <summary>Chooses what the run trains in.</summary>
    public PrecisionChoice Choose()
    {
        var sample = new List<BatchArrays>();
        int rows = 0;
        long tokens = 0;
        foreach (IReadOnlyList<Example> batch in batches)
        {
            sample.Add(assemble(batch));
            rows += batch.Count;
            tokens += batch.Sum(r => (long)r.Length);
            if (rows >= Rows || tokens >= Tokens) break;
        }
        return PrecisionChoice.Make(model.Backbone, training: true, rows, precision => [.. sample.SelectMany(arrays => Scores(arrays, precision))]);
    }

    private float[][] Scores(BatchArrays arrays, Precision precision)
    {
        using var scope = NewDisposeScope();
        return model.Scores(MiniBatch.ToTokens(arrays, model.Backbone.Device), precision);
    }
}
