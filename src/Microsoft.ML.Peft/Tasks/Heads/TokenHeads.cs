// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>One linear map on each token, <c>[batch, tokens, outputs]</c>: tagging, or start and end scores of answers.</summary>
public sealed class TokenHead : Head
{
    private readonly NamedParameter _weight, _bias;
    private readonly double _dropout;

    /// <summary>Makes a head with fresh weights, normal with the backbone's initializer range.</summary>
    /// <param name="backbone">The backbone that it reads.</param>
    /// <param name="outputs">Number of scores a token.</param>
    /// <param name="name">Module name in Hugging Face files: <c>classifier</c> or <c>qa_outputs</c>.</param>
    /// <param name="seed">Seed of the fresh weights.</param>
    /// <param name="dropout">Dropout before the map while training; null for the backbone's setting.</param>
    public TokenHead(Backbone backbone, int outputs, string name = "classifier", long seed = 0, double? dropout = null)
    {
        if (outputs < 1) throw new ArgumentOutOfRangeException(nameof(outputs), outputs, "A head needs at least one output.");
        BackboneConfig config = backbone.Config;
        _dropout = dropout ?? config.ClassifierDropout ?? config.HiddenDropout;
        using var scope = NewDisposeScope();
        using var generator = new Generator(unchecked((ulong)seed), CPU);
        Tensor fresh = randn([outputs, config.HiddenSize], generator: generator) * config.InitializerRange;
        _weight = Add(new NamedParameter(name + ".weight", fresh.to(backbone.Device)));
        _bias = Add(new NamedParameter(name + ".bias", zeros([outputs], device: backbone.Device)));
    }

    /// <inheritdoc/>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) =>
        output.Layout.Own(output.Last);

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass)
    {
        pass.BeginSegment(int.MaxValue);
        return nn.functional.linear(pass.Dropout(features.to_type(_weight.Value.dtype), _dropout), _weight.Value, _bias.Value);
    }
}

/// <summary>ELECTRA's replaced-token head: dense, the backbone's activation, one score a token, <c>[batch, tokens]</c>.</summary>
public sealed class DiscriminatorHead : Head
{
    private readonly NamedParameter _denseWeight, _denseBias, _outWeight, _outBias;
    private readonly Func<Tensor, Tensor> _activation;

    /// <summary>Makes a head of zeros, to be filled from a checkpoint.</summary>
    /// <param name="backbone">The backbone that it reads.</param>
    public DiscriminatorHead(Backbone backbone)
    {
        int width = backbone.Config.HiddenSize;
        _activation = Activations.Get(backbone.Config.Activation);
        NamedParameter Make(string name, params long[] shape) => Add(new NamedParameter("discriminator_predictions." + name, zeros(shape, device: backbone.Device)));
        (_denseWeight, _denseBias) = (Make("dense.weight", width, width), Make("dense.bias", width));
        (_outWeight, _outBias) = (Make("dense_prediction.weight", 1, width), Make("dense_prediction.bias", 1));
    }

    /// <inheritdoc/>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) => output.Last;

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass)
    {
        Tensor x = _activation(nn.functional.linear(features, _denseWeight.Value, _denseBias.Value));
        return nn.functional.linear(x, _outWeight.Value, _outBias.Value).squeeze(-1);
    }
}
