// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>Copies of all parameters and buffers, to go back to.</summary>
internal sealed class WeightSnapshot : IDisposable
{
    private readonly List<(NamedParameter Parameter, Tensor Value)> _values = [];

    public static WeightSnapshot Of(IEnumerable<NamedParameter> parameters)
    {
        using var off = no_grad();
        var made = new WeightSnapshot();
        foreach (NamedParameter parameter in parameters.Where(p => p.Saved))
            made._values.Add((parameter, parameter.Value.detach().clone().DetachFromDisposeScope()));
        return made;
    }

    /// <summary>Takes up saved numbers; they are checked against the parameters as they are now.</summary>
    public static WeightSnapshot Of(IEnumerable<NamedParameter> parameters, IReadOnlyDictionary<string, Tensor> saved)
    {
        var made = new WeightSnapshot();
        foreach (NamedParameter parameter in parameters.Where(p => p.Saved))
        {
            if (!saved.TryGetValue(parameter.Name, out Tensor? value))
                throw new CheckpointFormatException($"The checkpoint lacks {parameter.Name}{NearNames.Hint(parameter.Name, saved.Keys)}.");
            made._values.Add((parameter, value.clone().DetachFromDisposeScope()));
        }
        return made;
    }

    public IEnumerable<KeyValuePair<string, Tensor>> Tensors => _values.Select(v => KeyValuePair.Create(v.Parameter.Name, v.Value));

    public void Restore()
    {
        using var off = no_grad();
        foreach ((NamedParameter parameter, Tensor value) in _values)
        {
            if (value.shape.AsSpan().SequenceEqual(parameter.Value.shape))
            {
                parameter.Value.copy_(value);
                continue;
            }
            // Ranks may have changed since: the shape goes back as well.
            Tensor own = value.clone();
            own.requires_grad = parameter.Trainable;
            parameter.Replace(own);
        }
    }

    public void Dispose()
    {
        foreach ((_, Tensor value) in _values) value.Dispose();
    }
}

/// <summary>Named tensors in one safetensors file.</summary>
internal static class TensorFile
{
    public static void Save(string path, IEnumerable<KeyValuePair<string, Tensor>> tensors)
    {
        var writer = new SafetensorsWriter();
        foreach ((string name, Tensor value) in tensors) writer.Add(name, value);
        writer.Save(path);
    }

    /// <summary>Reads all tensors of a file; they belong to the caller's dispose scope.</summary>
    public static Dictionary<string, Tensor> Load(string path)
    {
        using SafetensorsFile file = SafetensorsFile.Open(path);
        return file.Names.ToDictionary(name => name, name => file.Load(name));
    }
}
