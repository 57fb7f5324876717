// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How X-LoRA weighs its experts.</summary>
public sealed record XLoraOptions
{
    /// <summary>Number of linear maps of the classifier, 1 or more.</summary>
    public int Depth { get; init; } = 1;

    /// <summary>Width between its maps, 1 or more.</summary>
    public int Size { get; init; } = 2048;

    /// <summary>Share of the classifier's inner numbers that is dropped while training, in [0, 1).</summary>
    public double Dropout { get; init; } = 0.2;

    /// <summary>True for weights of each module apart; false for the same ones everywhere.</summary>
    public bool LayerwiseScalings { get; init; }

    /// <summary>True to take a softmax over the experts.</summary>
    public bool Softmax { get; init; } = true;

    /// <summary>Divides the logits before their softmax, above 0.</summary>
    public double Temperature { get; init; } = 1;

    /// <summary>Number of experts that a token uses; null for all.</summary>
    public int? TopK { get; init; }

    /// <summary>True to take a softmax over the weights that <see cref="TopK"/> keeps.</summary>
    public bool SoftmaxOfTopK { get; init; }

    /// <summary>Factor of the whole mixture.</summary>
    public double GlobalWeight { get; init; } = 1;

    /// <summary>Weight of every expert in the first pass, which the classifier reads; 0 for the base model.</summary>
    public double ScalingPassValue { get; init; }
}

/// <summary>
/// X-LoRA (Buehler and Buehler 2024, arXiv 2402.07148): trained LoRA adapters, frozen, mixed token by token by a small classifier
/// that reads the last hidden state of a first pass. The classifier alone is trained.
/// </summary>
public static class XLora
{
    /// <summary>Makes a mixture of trained adapters with a fresh classifier.</summary>
    /// <param name="experts">Plain LoRA adapters of one backbone; their factors are copied.</param>
    /// <param name="options">How to weigh; null for the default.</param>
    /// <param name="seed">Seed of the classifier.</param>
    /// <returns>An adaptation whose <see cref="PeftAdaptation.BeforePass"/> runs the first pass; the caller disposes it.</returns>
    /// <exception cref="ArgumentException">Options do not fit.</exception>
    /// <exception cref="NotSupportedException">An adapter is no plain LoRA at linear maps.</exception>
    public static PeftAdaptation Mix(IReadOnlyList<PeftAdaptation> experts, XLoraOptions? options = null, long seed = 0)
    {
        options ??= new XLoraOptions();
        ArgumentException Bad(string name, object? value, string allowed) => new($"XLoraOptions.{name} is {value}; allowed is {allowed}.", nameof(options));
        if (options.Depth < 1) throw Bad(nameof(options.Depth), options.Depth, "1 or more");
        if (options.Size < 1) throw Bad(nameof(options.Size), options.Size, "1 or more");
        if (!(options.Dropout is >= 0 and < 1)) throw Bad(nameof(options.Dropout), options.Dropout, "0 up to, not including, 1");
        if (!(options.Temperature > 0)) throw Bad(nameof(options.Temperature), options.Temperature, "above 0");
        if (options.TopK is { } k && (k < 1 || k > experts.Count)) throw Bad(nameof(options.TopK), k, $"null, or 1 to the {experts.Count} experts");
        return new Mixture(experts, options, seed);
    }

    internal sealed class Mixture : ExpertMixture
    {
        private readonly XLoraOptions _options;
        private readonly List<(NamedParameter Weight, NamedParameter Bias)> _maps = [];

        public Mixture(IReadOnlyList<PeftAdaptation> experts, XLoraOptions options, long seed) : base("xlora", experts)
        {
            _options = options;
            Take(experts, (_, a, b) => (a, b), (site, taken) =>
            {
                int place = Sites.Count - 1;
                return new MixturePatch(taken, (x, pass) => Weights(x, pass, place), trainable: true);
            });
            long[] widths = [Backbone.Config.HiddenSize, .. Enumerable.Repeat((long)options.Size, options.Depth - 1), Experts * (options.LayerwiseScalings ? Sites.Count : 1)];
            int step = options.Dropout > 0 ? 3 : 2;
            using var scope = NewDisposeScope();
            for (int i = 0; i < options.Depth; i++)
            {
                string name = $"internal_xlora_classifier.layers.{i * step}";
                NamedParameter Own(string end, Tensor value) => Add(new NamedParameter($"{name}.{end}", value.to(Backbone.Device)) { FileKey = $"base_model.{name}.{end}" });
                _maps.Add((Own("weight", new Draws(seed, name).Kaiming(widths[i + 1], widths[i])),
                    Own("bias", new Draws(seed, name + ".bias").Uniform(1 / Math.Sqrt(widths[i]), widths[i + 1]))));
            }
        }

        /// <summary>Weights of the experts, <c>[batch, tokens, sites, experts]</c>, before masking; for inspection.</summary>
        public Tensor Scalings(Pass pass) => pass.Once<Tensor>(this, () => throw new InvalidOperationException("X-LoRA needs its first pass: run PeftAdaptation.BeforePass before the backbone."));

        public override void BeforePass(Pass pass, TokenBatch batch) => pass.Once<Tensor>(this, () => Classify(FirstPass(batch), pass));

        private Tensor FirstPass(TokenBatch batch)
        {
            using var off = no_grad();
            var pass = new Pass(Table());
            pass.Once<Tensor>(this, () => full([batch.Ids.shape[0], batch.Ids.shape[1], Sites.Count, Experts], _options.ScalingPassValue, device: Backbone.Device));
            return Backbone.Forward(batch, pass).Last.to_type(ScalarType.Float32);
        }

        private Tensor Classify(Tensor hidden, Pass pass)
        {
            Tensor h = hidden;
            for (int i = 0; i < _maps.Count; i++)
            {
                h = nn.functional.linear(h, _maps[i].Weight.Value, _maps[i].Bias.Value);
                if (i < _maps.Count - 1) h = pass.Dropout(nn.functional.relu(h), _options.Dropout);
            }
            Tensor logits = h.view(h.shape[0], h.shape[1], _options.LayerwiseScalings ? Sites.Count : 1, Experts).expand(-1, -1, Sites.Count, -1);
            return _options.Softmax ? (logits / _options.Temperature).softmax(-1) : logits;
        }

        private Tensor Weights(Tensor x, Pass pass, int place)
        {
            Tensor weights = Scalings(pass).select(2, place);                                     // [batch, tokens, experts]
            if (_options.TopK is { } count)
            {
                weights = Largest(weights, count);
                if (_options.SoftmaxOfTopK)
                {
                    Tensor kept = weights.ne(0);
                    weights = weights.masked_fill(kept.logical_not(), double.NegativeInfinity).softmax(-1).masked_fill(kept.logical_not(), 0);
                }
            }
            if (x.dim() == 2) weights = weights.select(1, 0);
            return weights * _options.GlobalWeight;
        }
    }
}
