// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Scores of every vocabulary entry for each token, <c>[batch, tokens, vocabulary]</c>: dense, activation, norm, and a
/// decoder that is the word-embedding table. Made of zeros, to be filled from a checkpoint.
/// </summary>
public sealed class MaskedLanguageHead : Head
{
    private sealed record Names(string Dense, string Norm, string Bias);

    private readonly NamedParameter _denseWeight, _denseBias, _normWeight, _normBias, _bias;
    private readonly Func<Tensor, Tensor> _activation;
    private readonly double _epsilon;
    private readonly Embedding _words;

    /// <summary>Makes the head of the backbone's family.</summary>
    /// <param name="backbone">The backbone that it reads and whose word embeddings it shares.</param>
    public MaskedLanguageHead(Backbone backbone)
    {
        BackboneConfig config = backbone.Config;
        Names names = config.ModelType switch
        {
            "roberta" or "xlm-roberta" or "camembert" or "mpnet" => new("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
            "distilbert" => new("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
            "albert" => new("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
            "bert" => new("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
            _ => throw new NotSupportedException($"{config.ModelType} has no masked-language head here."),
        };
        // RoBERTa's and MPNet's heads use the exact gelu whatever config.json says.
        _activation = names.Dense.StartsWith("lm_head", StringComparison.Ordinal) ? nn.functional.gelu : Activations.Get(config.Activation);
        _epsilon = config.NormEpsilon;
        _words = backbone.Sites.OfType<Embedding>().First(s => s.Role == SiteRole.WordEmbedding);
        long width = _words.Weight.shape[1];
        NamedParameter Make(string name, params long[] shape) => Add(new NamedParameter(name, zeros(shape, device: backbone.Device)));
        (_denseWeight, _denseBias) = (Make(names.Dense + ".weight", width, config.HiddenSize), Make(names.Dense + ".bias", width));
        (_normWeight, _normBias) = (Make(names.Norm + ".weight", width), Make(names.Norm + ".bias", width));
        _bias = Make(names.Bias, config.VocabularySize);
    }

    /// <inheritdoc/>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) => output.Last;

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass)
    {
        Tensor x = _activation(nn.functional.linear(features, _denseWeight.Value, _denseBias.Value));
        x = nn.functional.layer_norm(x, [_normWeight.Value.shape[0]], _normWeight.Value, _normBias.Value, _epsilon);
        return Products.Linear(x, _words.Table(pass), _bias.Value);
    }
}
