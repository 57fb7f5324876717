// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Steps a parameter in place.</summary>
/// <param name="value">The parameter's numbers, to be changed.</param>
/// <param name="gradient">Their gradient, clipped; must not be changed.</param>
/// <param name="rate">Learning rate, schedule included.</param>
/// <param name="decay">Weight decay; 0 where the parameter has none.</param>
public delegate void ParameterUpdate(Tensor value, Tensor gradient, double rate, double decay);

/// <summary>
/// A named tensor that an adaptation or a head owns. Patches hold the <see cref="NamedParameter"/> and read
/// <see cref="Value"/> at each use: the training loop may put a view of its flat buffer in its place.
/// </summary>
public sealed class NamedParameter : IDisposable
{
    /// <summary>Takes ownership of a tensor.</summary>
    /// <param name="name">Name as in Hugging Face files inside the task model, e.g. <c>bert.encoder.layer.0.attention.self.query.lora_A.weight</c>.</param>
    /// <param name="value">The numbers; detached from any dispose scope.</param>
    /// <param name="trainable">False for a buffer: saved, moved, never trained.</param>
    public NamedParameter(string name, Tensor value, bool trainable = true)
    {
        Name = name;
        Value = value.DetachFromDisposeScope();
        Trainable = trainable;
        if (trainable) Value.requires_grad_();
        Decay = value.dim() > 1;
    }

    /// <summary>Name as in Hugging Face files inside the task model.</summary>
    public string Name { get; }

    /// <summary>The numbers.</summary>
    public Tensor Value { get; private set; }

    /// <summary>False for a buffer.</summary>
    public bool Trainable { get; private set; }

    /// <summary>True where weight decay applies; by default for tensors of two or more dimensions.</summary>
    public bool Decay { get; set; }

    /// <summary>Factor on the learning rate (LoRA+).</summary>
    public double RateFactor { get; set; } = 1;

    /// <summary>A learning rate of its own in place of the run's, before the schedule; null for the run's.</summary>
    public double? OwnRate { get; set; }

    /// <summary>The rule by which the parameter is stepped in place of the run's optimizer; null for the optimizer's.</summary>
    public ParameterUpdate? OwnUpdate { get; set; }

    /// <summary>True where the tensor is saved with the adaptation.</summary>
    public bool Saved { get; init; } = true;

    /// <summary>For a buffer that keeps a start: the name of the parameter whose first value it holds; else null.</summary>
    public string? InitialOf { get; init; }

    /// <summary>True for a buffer that training writes though no gradient does: a direction or a mean of what it saw.</summary>
    public bool Learned { get; init; }

    /// <summary>True where the tensor is part of exchanged adapter files; false for what their readers make again themselves.</summary>
    public bool Exchanged { get; init; } = true;

    /// <summary>False for what only training needs: it is in the checkpoints of runs, not in model files.</summary>
    public bool InModels { get; init; } = true;

    /// <summary>
    /// The whole key in exchanged files, where it is not <c>base_model.model.</c> and the name: <c>prompt_embeddings</c>,
    /// <c>base_model.vera_A</c>. Null for the usual. Parameters with the same key lie one after the other along its first axis.
    /// </summary>
    public string? FileKey { get; init; }

    /// <summary>Further names under which exchanged files hold the same numbers: those of the other modules that share the tensor.</summary>
    public IReadOnlyList<string> Copies { get; init; } = [];

    /// <summary>Further names under which exchanged files hold the same matrix turned: those of a map that uses its transpose.</summary>
    public IReadOnlyList<string> TurnedCopies { get; init; } = [];

    /// <summary>Puts another tensor in place of the value; the old one is disposed.</summary>
    /// <param name="value">Same shape; ownership passes here.</param>
    public void Replace(Tensor value)
    {
        Tensor old = Value;
        Value = value.DetachFromDisposeScope();
        if (!ReferenceEquals(old, value)) old.Dispose();
    }

    /// <summary>Copies numbers into the value.</summary>
    /// <param name="source">Same shape; the numbers take the type of the value.</param>
    /// <exception cref="ArgumentException">The shape differs.</exception>
    public void Load(Tensor source)
    {
        if (!source.shape.AsSpan().SequenceEqual(Value.shape))
            throw new ArgumentException(
                $"Parameter {Name}: found shape [{string.Join(", ", source.shape)}], expected [{string.Join(", ", Value.shape)}].");
        using var off = no_grad();
        Value.copy_(source);
    }

    /// <summary>How often the optimizer was told to forget what it knows of this parameter.</summary>
    internal int Restarts { get; private set; }

    /// <summary>Lets the optimizer forget its moments and its count of steps for this parameter: a new phase of training begins.</summary>
    public void RestartState() => Restarts++;

    /// <summary>Stops or resumes training this tensor.</summary>
    /// <param name="trainable">True to train.</param>
    public void SetTrainable(bool trainable)
    {
        Trainable = trainable;
        Value.requires_grad = trainable;
    }

    /// <inheritdoc/>
    public void Dispose() => Value.Dispose();

    /// <inheritdoc/>
    public override string ToString() => $"{Name} [{string.Join(", ", Value.shape)}]{(Trainable ? "" : " frozen")}";
}
