// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Parameters of an adaptation and its head as one safetensors file inside a model zip.</summary>
internal static class ParameterFile
{
    /// <summary>Writes all that are saved.</summary>
    public static void Write(Stream stream, IEnumerable<NamedParameter> parameters)
    {
        var writer = new SafetensorsWriter();
        foreach (NamedParameter parameter in parameters)
            if (parameter is { Saved: true, InModels: true }) writer.Add(parameter.Name, parameter.Value);
        writer.Save(stream);
    }

    /// <summary>Fills parameters from a file that must hold exactly them.</summary>
    /// <exception cref="CheckpointFormatException">A parameter is missing or unknown.</exception>
    public static void Fill(IEnumerable<NamedParameter> parameters, SafetensorsFile stored)
    {
        using var scope = NewDisposeScope();
        HashSet<string> left = [.. stored.Names];
        foreach (NamedParameter parameter in parameters)
        {
            if (parameter is not { Saved: true, InModels: true }) continue;
            if (!left.Remove(parameter.Name))
                throw new CheckpointFormatException($"{stored.Description}: the parameter '{parameter.Name}' is missing.");
            parameter.Load(stored.Load(parameter.Name));
        }
        if (left.Count > 0)
            throw new CheckpointFormatException($"{stored.Description}: unknown parameters {NearNames.List(left)}.");
    }
}
