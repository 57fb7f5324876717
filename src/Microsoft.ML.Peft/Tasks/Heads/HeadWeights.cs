// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Fills heads from checkpoints of task models.</summary>
public static class HeadWeights
{
    /// <summary>Loads what the checkpoint has of a head.</summary>
    /// <param name="head">The head.</param>
    /// <param name="checkpoint">A checkpoint.</param>
    /// <returns>Names of the parameters that the checkpoint lacks; they keep their fresh values.</returns>
    /// <exception cref="CheckpointFormatException">A tensor has another shape; the message names it.</exception>
    public static IReadOnlyList<string> Load(Head head, CheckpointFolder checkpoint)
    {
        using var scope = NewDisposeScope();
        var missing = new List<string>();
        foreach (NamedParameter parameter in head.Parameters)
        {
            if (checkpoint.Contains(parameter.Name)) parameter.Load(checkpoint.Load(parameter.Name, parameter.Value.shape));
            else missing.Add(parameter.Name);
        }
        return missing;
    }
}
