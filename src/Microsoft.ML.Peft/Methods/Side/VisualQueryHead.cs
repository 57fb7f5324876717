// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How the query tokens of a layer become features.</summary>
public enum QueryFeatures
{
    /// <summary>All of them, one after the other: d (1 + layers · T) features.</summary>
    All,
    /// <summary>Their mean a layer: d (1 + layers).</summary>
    Mean,
    /// <summary>Their trained sum a layer, weights 1 at first: d (1 + layers).</summary>
    Mixed,
}

/// <summary>
/// The classifier of visual query tuning: the first token's final state and the query tokens of each layer, each block divided
/// by its own length, through one linear map. Reads <see cref="QueryReading.Tokens"/>.
/// </summary>
public sealed class VisualQueryHead : Head
{
    private readonly NamedParameter _weight, _bias;
    private readonly NamedParameter? _mix;
    private readonly int _layers, _tokens;
    private readonly QueryFeatures _features;

    /// <summary>Makes a head with fresh weights: Kaiming-normal by its outputs, biases −4.595.</summary>
    /// <param name="backbone">The backbone that it reads.</param>
    /// <param name="tokens">T: query tokens a layer.</param>
    /// <param name="classes">Number of scores.</param>
    /// <param name="features">How query tokens become features.</param>
    /// <param name="seed">Seed of the fresh weights.</param>
    /// <exception cref="ArgumentOutOfRangeException">No token or no class.</exception>
    public VisualQueryHead(Backbone backbone, int tokens, int classes, QueryFeatures features = QueryFeatures.All, long seed = 0)
    {
        if (tokens < 1) throw new ArgumentOutOfRangeException(nameof(tokens), tokens, "A layer has at least one query token.");
        if (classes < 1) throw new ArgumentOutOfRangeException(nameof(classes), classes, "A head needs at least one output.");
        (_layers, _tokens, _features) = (backbone.Config.LayerCount, tokens, features);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        long width = backbone.Config.HiddenSize * (1L + _layers * (features == QueryFeatures.All ? tokens : 1));
        _weight = Add(new NamedParameter("head.weight", new Draws(seed, "head.weight").Normal(Math.Sqrt(2.0 / classes), classes, width).to(backbone.Device)));
        _bias = Add(new NamedParameter("head.bias", (zeros([classes]) + -Math.Log(0.99 / 0.01)).to(backbone.Device)));
        _mix = features == QueryFeatures.Mixed ? Add(new NamedParameter("mix", ones([_layers, tokens], device: backbone.Device))) : null;
    }

    /// <inheritdoc/>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) => output.Last;

    /// <summary>The normalised features, <c>[batch, features]</c>.</summary>
    /// <param name="states">What the backbone gave, <c>[batch, 1 + layers · T, hidden]</c>.</param>
    /// <exception cref="InvalidOperationException">The states are not those of the query tokens.</exception>
    public Tensor Blocks(Tensor states)
    {
        if (states.shape[1] != 1 + _layers * _tokens)
            throw new InvalidOperationException($"The head reads 1 + {_layers} · {_tokens} tokens and was given {states.shape[1]}; use vqt with Reading = Tokens and the same T.");
        Tensor x = states.to_type(ScalarType.Float32);
        List<Tensor> blocks = [x.select(1, 0)];
        for (int layer = 0; layer < _layers; layer++)
        {
            Tensor own = x.narrow(1, 1 + layer * _tokens, _tokens);
            blocks.Add(_features switch
            {
                QueryFeatures.All => own.flatten(1),
                QueryFeatures.Mean => own.mean([1]),
                _ => (own * _mix!.Value[layer].view(1, -1, 1)).sum(1),
            });
        }
        return cat([.. blocks.Select(b => b / b.square().sum([1], keepdim: true).sqrt().clamp(1e-12))], 1);
    }

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass) => nn.functional.linear(Blocks(features), _weight.Value, _bias.Value);

    /// <summary>Lengths of the weight's columns: scores of the features, and with their sum the group-sparsity loss.</summary>
    public Tensor ColumnNorms() => _weight.Value.square().sum(0L).sqrt();

    /// <summary>The features that a smaller head keeps: those of the largest column norms, rising.</summary>
    /// <param name="fraction">Share that is kept, in (0, 1]; rounded down.</param>
    /// <exception cref="ArgumentOutOfRangeException">The share is outside of (0, 1].</exception>
    public long[] Select(double fraction)
    {
        if (!(fraction > 0 && fraction <= 1)) throw new ArgumentOutOfRangeException(nameof(fraction), fraction, "The share of kept features is above 0 and at most 1.");
        using var scope = NewDisposeScope();
        using var off = no_grad();
        float[] norms = ColumnNorms().cpu().contiguous().data<float>().ToArray();
        return [.. Enumerable.Range(0, norms.Length).OrderByDescending(i => norms[i]).Take((int)Math.Floor(norms.Length * fraction + 1e-9)).Order().Select(i => (long)i)];
    }
}
