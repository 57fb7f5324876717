// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Scores of a whole row, <c>[batch, outputs]</c>, by the head that the family's task model has in Hugging Face, under
/// the same names: BERT and ALBERT a linear map on the pooler; RoBERTa, MPNet and ELECTRA a dense layer first; DistilBERT
/// likewise with ReLU; decoders a linear map without bias on the last real token; networks of images and sounds what
/// <see cref="FamilyHead"/> says of them. Or one linear map on the mean or the first token.
/// </summary>
public sealed partial class SequenceClassificationHead : Head
{
    private readonly Pooling _pooling;
    private readonly bool _usesPooler, _dropsFirst, _readsLast, _readsFamily, _readsFirst = true;
    private readonly int? _padId;
    private readonly double _dropout;
    private readonly NamedParameter? _denseWeight, _denseBias;
    private readonly NamedParameter _outWeight;
    private readonly NamedParameter? _outBias, _normWeight, _normBias, _secondWeight, _secondBias, _layerWeights;
    private readonly double _normEpsilon;
    private readonly string _activation = "linear";

    /// <summary>Makes a head with fresh weights, normal with the backbone's initializer range.</summary>
    /// <param name="backbone">The backbone that it reads.</param>
    /// <param name="outputs">Number of scores a row; 1 or more.</param>
    /// <param name="pooling">How tokens become one vector.</param>
    /// <param name="seed">Seed of the fresh weights.</param>
    /// <param name="dropout">Dropout before the last map while training; null for the backbone's setting.</param>
    public SequenceClassificationHead(Backbone backbone, int outputs, Pooling pooling = Pooling.Family, long seed = 0, double? dropout = null)
    {
        if (outputs < 1) throw new ArgumentOutOfRangeException(nameof(outputs), outputs, "A head needs at least one output.");
        BackboneConfig config = backbone.Config;
        if (backbone.Causal && pooling == Pooling.FirstToken)
            throw new ArgumentException($"Pooling.FirstToken: the first token of a {config.ModelType} backbone sees nothing of the text; use Family (the last token) or Mean.", nameof(pooling));
        if (config.Input != BackboneInput.Text && backbone.LeadingTokens == 0 && pooling == Pooling.FirstToken)
            throw new ArgumentException($"Pooling.FirstToken: no token of a {config.ModelType} backbone stands for the row; use Family or Mean.", nameof(pooling));
        _pooling = pooling;
        _dropout = dropout ?? config.ClassifierDropout ?? config.HiddenDropout;
        string family = pooling == Pooling.Family ? config.ModelType : "";
        using var generator = new Generator(unchecked((ulong)seed), CPU);
        NamedParameter Weight(string name, long rows, long width)
        {
            Tensor fresh = randn([rows, width], generator: generator) * config.InitializerRange;
            return Add(new NamedParameter(name, fresh.to(backbone.Device)));
        }
        NamedParameter Bias(string name, long width) => Add(new NamedParameter(name, zeros([width], device: backbone.Device)));

        using var scope = NewDisposeScope();
        string last = "classifier";
        string? second = null;
        long width = config.HiddenSize;
        switch (family)
        {
            case not "" when config.Input != BackboneInput.Text:
                FamilyHead shape = FamilyHead.Of(config);
                (_readsFamily, _readsFirst, width, last) = (true, backbone.ClassifierReadsFirstTokenOnly, backbone.ClassifierWidth, shape.Output);
                if (shape.MixedStates(config) is var states and > 0)
                    _layerWeights = Add(new NamedParameter("layer_weights", full([states], 1.0 / states, device: backbone.Device)));
                if (shape.Norm is { } norm)
                {
                    _normEpsilon = shape.NormEpsilon ?? config.NormEpsilon;
                    (_normWeight, _normBias) = (Add(new NamedParameter(norm + ".weight", ones([width], device: backbone.Device))), Bias(norm + ".bias", width));
                }
                if (shape.Dense is { } dense)
                {
                    long rows = shape.DenseWidth!(config);
                    (_denseWeight, _denseBias) = (Weight(dense + ".weight", rows, width), Bias(dense + ".bias", rows));
                    width = rows;
                }
                second = shape.Second(config);
                if (second is not null) width /= 2;
                break;
            case "bert" or "albert" when backbone.Pooler is not null:
                _usesPooler = true;
                break;
            case "bert" or "albert":
                // A checkpoint without pooler (masked language models): the dense map is new and belongs to the head.
                string pooler = family == "bert" ? "bert.pooler.dense" : "albert.pooler";
                (_denseWeight, _denseBias) = (Weight(pooler + ".weight", config.HiddenSize, config.HiddenSize), Bias(pooler + ".bias", config.HiddenSize));
                _activation = "tanh";
                break;
            case "roberta" or "xlm-roberta" or "camembert" or "mpnet" or "electra":
                (_denseWeight, _denseBias) = (Weight("classifier.dense.weight", config.HiddenSize, config.HiddenSize), Bias("classifier.dense.bias", config.HiddenSize));
                _activation = family == "electra" ? "gelu" : "tanh";
                _dropsFirst = true;
                last = "classifier.out_proj";
                break;
            case "distilbert":
                (_denseWeight, _denseBias) = (Weight("pre_classifier.weight", config.HiddenSize, config.HiddenSize), Bias("pre_classifier.bias", config.HiddenSize));
                _activation = "relu";
                break;
            case not "" when backbone.Causal:
                _readsLast = true;
                // None, or the -1 of old files: padding is known by the mask alone.
                _padId = new ConfigReader(config.Raw).Int("pad_token_id", -1, -1) is >= 0 and var pad ? pad : null;
                last = "score";
                break;
        }
        _outWeight = Weight(last + ".weight", outputs, width);
        if (!_readsLast) _outBias = Bias(last + ".bias", outputs);
        if (second is not null) (_secondWeight, _secondBias) = (Weight(second + ".weight", outputs, width), Bias(second + ".bias", outputs));
        Outputs = outputs;
    }

    /// <summary>Number of scores a row.</summary>
    public int Outputs { get; }

    /// <inheritdoc/>
    public override bool ReadsFirstTokenOnly => _pooling != Pooling.Mean && !_readsLast && _readsFirst;

    /// <inheritdoc/>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) => _pooling switch
    {
        Pooling.Mean => Pooled.Mean(output),
        _ when _usesPooler => backbone.Pool(output, pass),
        _ when _readsLast => output.LastReal(_padId),
        _ when _readsFamily => backbone.ClassifierFeatures(output, pass),
        _ => output.First(),
    };

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass)
    {
        pass.BeginSegment(int.MaxValue);
        Tensor x = features.to_type(_outWeight.Value.dtype);
        if (_layerWeights is not null) x = (x * _layerWeights.Value.softmax(-1).unsqueeze(-1)).sum(1);   // [batch, states, width] to [batch, width]
        if (_normWeight is not null) x = nn.functional.layer_norm(x, [x.shape[^1]], _normWeight.Value, _normBias!.Value, _normEpsilon);
        if (_denseWeight is not null)
        {
            if (_dropsFirst) x = pass.Dropout(x, _dropout);
            x = Activations.Get(_activation)(nn.functional.linear(x, _denseWeight.Value, _denseBias!.Value));
        }
        x = pass.Dropout(x, _dropout);
        if (_secondWeight is null) return nn.functional.linear(x, _outWeight.Value, _outBias?.Value);
        Tensor[] halves = x.chunk(2, -1);
        return (nn.functional.linear(halves[0], _outWeight.Value, _outBias!.Value) + nn.functional.linear(halves[1], _secondWeight.Value, _secondBias!.Value)) / 2;
    }
}
