// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>What turns hidden states into scores. A task makes it; it is trained and saved whole.</summary>
public abstract class Head : IDisposable
{
    private readonly List<NamedParameter> _parameters = [];

    /// <summary>All parameters, named as in the task model's file (<c>classifier.weight</c>).</summary>
    public IReadOnlyList<NamedParameter> Parameters => _parameters;

    /// <summary>Takes ownership of a parameter.</summary>
    /// <param name="parameter">The parameter.</param>
    protected NamedParameter Add(NamedParameter parameter)
    {
        _parameters.Add(parameter);
        return parameter;
    }

    /// <summary>True where the head reads nothing but <see cref="BackboneOutput.First"/>.</summary>
    public virtual bool ReadsFirstTokenOnly => false;

    /// <summary>True where the head reads <see cref="BackboneOutput.HiddenStates"/>, which the pass then keeps.</summary>
    public virtual bool ReadsHiddenStates => false;

    /// <summary>Scores of a batch.</summary>
    /// <param name="backbone">The backbone that ran (heads may need its pooler or tied tables).</param>
    /// <param name="output">What it gave.</param>
    /// <param name="pass">The same pass.</param>
    /// <returns>Scores; for sequence classification <c>[batch, classes]</c>.</returns>
    public Tensor Forward(Backbone backbone, BackboneOutput output, Pass pass) =>
        FromFeatures(Features(backbone, output, pass), pass);

    /// <summary>What the head's own parameters read; nothing trainable of the head lies below, so it may be kept.</summary>
    /// <param name="backbone">The backbone that ran.</param>
    /// <param name="output">What it gave.</param>
    /// <param name="pass">The same pass.</param>
    /// <returns>Features; for sequence classification <c>[batch, hidden]</c>.</returns>
    public abstract Tensor Features(Backbone backbone, BackboneOutput output, Pass pass);

    /// <summary>Scores out of features.</summary>
    /// <param name="features">What <see cref="Features"/> gave.</param>
    /// <param name="pass">The running pass.</param>
    public abstract Tensor FromFeatures(Tensor features, Pass pass);

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (NamedParameter parameter in _parameters) parameter.Dispose();
        GC.SuppressFinalize(this);
    }
}
