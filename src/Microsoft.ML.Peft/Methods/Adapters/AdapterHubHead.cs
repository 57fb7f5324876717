// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// A head of AdapterHub's package, made from its <c>head_config.json</c>: <c>classification</c> and
/// <c>image_classification</c> (the first token, or the last real one of decoders), <c>tagging</c> and
/// <c>question_answering</c> (every token), <c>masked_lm</c>, <c>causal_lm</c> and <c>seq2seq_lm</c>, which undo an invertible
/// adapter in front of their frozen output table.
/// </summary>
public sealed class AdapterHubHead : Head
{
    private static readonly string[] _rows = ["classification", "image_classification"], _tokens = ["tagging", "question_answering"],
        _language = ["masked_lm", "causal_lm", "seq2seq_lm"];

    private sealed record Layer(NamedParameter Weight, NamedParameter? Bias, (NamedParameter Weight, NamedParameter Bias)? Norm);

    private readonly JsonObject _config;
    private readonly Backbone _backbone;
    private readonly List<Layer> _layers = [];
    private readonly Func<Tensor, Tensor> _activation;
    private readonly double _dropout;
    private readonly bool _pooled;

    /// <summary>Makes a head: maps normal with the backbone's initializer range, a language head's output table the word embeddings.</summary>
    /// <param name="backbone">The backbone that it reads.</param>
    /// <param name="name">Name inside tensor names.</param>
    /// <param name="config">The table <c>config</c> of head_config.json.</param>
    /// <param name="seed">Seed of the fresh weights.</param>
    /// <exception cref="ArgumentException">Another type of head, or a field out of range; the message names it.</exception>
    public AdapterHubHead(Backbone backbone, string name, JsonObject config, long seed = 0)
    {
        (Name, _backbone, _config) = (name, backbone, config.DeepClone().AsObject());
        Type = AdapterConfig.Get(config, "head_type", "");
        string[] known = [.. _rows, .. _tokens, .. _language];
        if (!known.Contains(Type)) throw new ArgumentException($"the field 'head_type' is '{Type}'; known: {string.Join(", ", known)}.{NearNames.Hint(Type, known)}", nameof(config));
        int layers = AdapterConfig.Get(config, "layers", 1);
        if (layers < 1) throw new ArgumentException($"the field 'layers' is {layers}; expected is 1 or more.", nameof(config));
        _activation = Activations.Get(AdapterConfig.Get<string?>(config, "activation_function", null) ?? "linear");
        _dropout = HubNames.OptionalNumber(config, "dropout_prob") ?? backbone.Config.ClassifierDropout ?? backbone.Config.HiddenDropout;
        _pooled = AdapterConfig.Get(config, "use_pooler", false);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        if (_language.Contains(Type)) MakeLanguage(layers, seed);
        else MakeStack(layers, seed);
    }

    /// <summary>Name inside tensor names.</summary>
    public string Name { get; }

    /// <summary>The field <c>head_type</c>.</summary>
    public string Type { get; }

    /// <summary>The table <c>config</c> of head_config.json.</summary>
    public JsonObject Configuration() => _config.DeepClone().AsObject();

    private NamedParameter Make(int index, string part, Tensor value, bool trainable = true) =>
        Add(new NamedParameter($"heads.{Name}.{index}.{part}", value.to(_backbone.Device), trainable));

    // Dropout, map, activation count as three in the package's list of parts.
    private void MakeStack(int layers, long seed)
    {
        long width = _backbone.Config.HiddenSize;
        int outputs = AdapterConfig.Get(_config, "num_labels", 2);
        if (outputs < 1) throw new ArgumentException($"the field 'num_labels' is {outputs}; expected is 1 or more.", nameof(layers));
        bool biased = AdapterConfig.Get(_config, "bias", true);
        for (int i = 0; i < layers; i++)
            _layers.Add(MakeMap(3 * i + 1, i == layers - 1 ? outputs : width, width, biased, seed));
    }

    private Layer MakeMap(int index, long outputs, long inputs, bool biased, long seed) => new(
        Make(index, "weight", new Draws(seed, $"{Name}.{index}").Normal(_backbone.Config.InitializerRange, outputs, inputs)),
        biased ? Make(index, "bias", zeros([outputs])) : null, null);

    // Map, activation, norm; at the end the frozen table of word embeddings.
    private void MakeLanguage(int layers, long seed)
    {
        bool norms = AdapterConfig.Get(_config, "layer_norm", true), biased = AdapterConfig.Get(_config, "bias", true);
        Embedding words = _backbone.Sites.OfType<Embedding>().First(s => s.Role == SiteRole.WordEmbedding);
        long width = _backbone.Config.HiddenSize;
        int index = 0;
        for (int i = 0; i < layers - 1; i++)
        {
            Layer map = MakeMap(index, width, width, true, seed);
            index += norms ? 3 : 2;
            _layers.Add(norms ? map with { Norm = (Make(index - 1, "weight", ones([width])), Make(index - 1, "bias", zeros([width]))) } : map);
        }
        _layers.Add(new Layer(
            Make(index, "weight", words.Weight.to_type(ScalarType.Float32, copy: true), trainable: false),
            biased ? Make(index, "bias", zeros([words.Weight.shape[0]]), trainable: false) : null, null));
    }

    /// <inheritdoc/>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass)
    {
        if (!_rows.Contains(Type)) return output.Last;
        if (_pooled) return backbone.Pool(output, pass);
        // Prompts in front are read in the first token's stead, as the package does.
        if (!backbone.Causal) return output.Last.select(1, 0);
        Tensor mask = output.Layout.Mask.ne(0).to_type(ScalarType.Int64);
        Tensor last = (mask.shape[1] - 1 - mask.flip(1).argmax(1)).view(-1, 1, 1).expand(-1, 1, output.Last.shape[2]);
        return output.Last.gather(1, last).squeeze(1);
    }

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass)
    {
        pass.BeginSegment(int.MaxValue);
        Tensor x = features.to_type(ScalarType.Float32);
        bool language = _language.Contains(Type);
        for (int i = 0; i < _layers.Count; i++)
        {
            Layer layer = _layers[i];
            bool last = i == _layers.Count - 1;
            if (!language) x = pass.Dropout(x, _dropout);
            else if (last) x = BeforeTable(x, pass);
            x = nn.functional.linear(x, layer.Weight.Value, layer.Bias?.Value);
            if (!last) x = _activation(x);
            if (layer.Norm is { } norm) x = nn.functional.layer_norm(x, [x.shape[^1]], norm.Weight.Value, norm.Bias.Value, _backbone.Config.NormEpsilon);
        }
        return x;
    }

    private Tensor BeforeTable(Tensor x, Pass pass)
    {
        foreach (Sequence site in _backbone.Sites.OfType<Sequence>())
            if (pass.Patches[site] is IInvertible block) x = block.Inverse(x);
        // T5 divides where table and embeddings are one.
        return Type == "seq2seq_lm" && _backbone.Config.ModelType is "t5" or "mt5" && AdapterConfig.Get(_backbone.Config.Raw, "tie_word_embeddings", true)
            ? x * (1 / Math.Sqrt(_backbone.Config.HiddenSize)) : x;
    }
}
