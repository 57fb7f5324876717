// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Methods;

// Several tasks of one MTL-LoRA.
public static partial class AdapterHubFolder
{
    /// <summary>Makes one MTL-LoRA of the adapters of several tasks that share their factors, which each folder repeats.</summary>
    /// <param name="folders">Paths of the folders, one a task, in the order of the task ids.</param>
    /// <param name="backbone">The base model that the adapters were trained on.</param>
    /// <returns>The adaptation; the caller owns it.</returns>
    /// <exception cref="CheckpointFormatException">A folder holds something else, or the shared factors differ.</exception>
    public static PeftAdaptation AttachTasks(IReadOnlyList<string> folders, Backbone backbone)
    {
        MtlLoraOptions[] options = [.. folders.Select(folder => ReadMethod(folder) as MtlLoraOptions
            ?? throw new CheckpointFormatException($"{folder} holds no MTL-LoRA; adapters of other methods are attached one by one."))];
        options[0].FurtherTasks = [.. options.Skip(1).Select(o => o.Name)];
        PeftAdaptation adaptation = options[0].Attach(backbone, seed: 0);
        try
        {
            for (int i = 0; i < options.Length; i++)
            {
                using PeftAdaptation own = Attach(folders[i], backbone);
                foreach (NamedParameter parameter in own.Parameters)
                {
                    NamedParameter? target = adaptation.Find(parameter.Name)
                        ?? adaptation.Find(parameter.Name.Replace($".loras.{options[i].Name}.", $".loras.{options[0].Name}.", StringComparison.Ordinal));
                    if (i > 0 && !ReferenceEquals(target, adaptation.Find(parameter.Name)) && target is not null && !target.Value.eq(parameter.Value).all().item<bool>())
                        throw new CheckpointFormatException($"{folders[i]}: {parameter.Name} differs from that of {folders[0]}; the tasks of one MTL-LoRA share it.");
                    (target ?? throw new CheckpointFormatException($"{folders[i]}: {parameter.Name} has no place beside {folders[0]}; the adapters have other options.")).Load(parameter.Value);
                }
            }
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }
}
