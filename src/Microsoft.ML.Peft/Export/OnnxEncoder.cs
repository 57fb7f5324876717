// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Export;

/// <summary>Encoders as graphs, read off their sites by role: what <see cref="Backbone.Forward"/> computes without patches and dropout.</summary>
internal sealed class OnnxEncoder
{
    private readonly Backbone _backbone;
    private readonly OnnxGraph _graph;
    private readonly Dictionary<(SiteRole Role, int Layer), Site> _sites = [];

    public OnnxEncoder(Backbone backbone, OnnxGraph graph)
    {
        (_backbone, _graph) = (backbone, graph);
        foreach (Site site in backbone.Sites) _sites.TryAdd((site.Role, site.Layer), site);
    }

    private BackboneConfig Config => _backbone.Config;

    /// <summary>Tokens of the mask that count as 1, float <c>[batch, tokens]</c>; null where none is padding.</summary>
    public string? Mask { get; private set; }

    /// <summary>True where there is a form of the network in ONNX.</summary>
    public static bool Knows(Backbone backbone) => backbone is PostNormEncoder or ViTBackbone;

    /// <summary>Adds the network with its inputs.</summary>
    /// <returns>The hidden states after the last layer, <c>[batch, tokens, hidden]</c>.</returns>
    public string Build() => _backbone is PostNormEncoder encoder ? Text(encoder) : Image((ViTBackbone)_backbone);

    private T Site<T>(SiteRole role, int layer) where T : Site => (T)_sites[(role, layer)];

    private T? Maybe<T>(SiteRole role, int layer) where T : Site => _sites.GetValueOrDefault((role, layer)) as T;

    private string Rows(string ids, Embedding table) =>
        _graph.Node("Gather", [_graph.Tensor((table, "weight"), table.Name + ".weight", () => table.Weight), ids], ("axis", 0L));

    private string Text(PostNormEncoder encoder)
    {
        string ids = _graph.Input("input_ids", OnnxType.Int64, "batch", "tokens"), mask = _graph.Input("attention_mask", OnnxType.Int64, "batch", "tokens");
        Embedding? types = Maybe<Embedding>(SiteRole.TokenTypeEmbedding, -1);
        string? kinds = types is null ? null : _graph.Input("token_type_ids", OnnxType.Int64, "batch", "tokens");
        _graph.Enter("embeddings");
        Mask = _graph.Node("Cast", [mask], ("to", (long)OnnxType.Single));
        string hidden = _graph.Add(Rows(ids, Site<Embedding>(SiteRole.WordEmbedding, -1)), Rows(Positions(ids), Site<Embedding>(SiteRole.PositionEmbedding, -1)));
        if (types is not null) hidden = _graph.Add(hidden, Rows(kinds!, types));
        hidden = _graph.LayerNorm(hidden, Site<Norm>(SiteRole.EmbeddingNorm, -1));
        if (Maybe<Projection>(SiteRole.EmbeddingProjection, -1) is { } project) hidden = _graph.Linear(hidden, project);
        string bias = ScoreBias(encoder, ids);
        for (int layer = 0; layer < Config.LayerCount; layer++) hidden = PostNormLayer(hidden, layer, FirstApplication(encoder, layer), bias);
        return hidden;
    }

    // Shared layers have their sites under the number of their first application.
    private static int FirstApplication(PostNormEncoder encoder, int layer)
    {
        int shared = encoder.LayerOf(layer), first = 0;
        while (encoder.LayerOf(first) != shared) first++;
        return first;
    }

    // Counted from 0, or over the tokens that are not padding, from the padding id on.
    private string Positions(string ids)
    {
        int? pad = Config.ModelType switch
        {
            "roberta" or "xlm-roberta" or "camembert" => Config.PadId,
            "mpnet" => 1,
            _ => null,
        };
        if (pad is not { } start)
        {
            string tokens = _graph.Node("Gather", [_graph.Node("Shape", [ids]), _graph.Number(1)], ("axis", 0L));
            return _graph.Node("Range", [_graph.Number(0), tokens, _graph.Number(1)]);
        }
        string real = _graph.Node("Cast", [_graph.Node("Not", [_graph.Node("Equal", [ids, _graph.Number(start)])])], ("to", (long)OnnxType.Int64));
        return _graph.Add(_graph.Mul(_graph.Node("CumSum", [real, _graph.Number(1)]), real), _graph.Number(start));
    }

    // 0 for real keys, the lowest number for padding, [batch, 1, 1, tokens]; and what goes by distance.
    private string ScoreBias(PostNormEncoder encoder, string ids)
    {
        string keys = _graph.Mul(_graph.Node("Sub", [_graph.Scalar(1), Mask!]), _graph.Scalar(float.MinValue));
        string bias = _graph.Node("Unsqueeze", [keys, _graph.Numbers(1, 2)]);
        using var scope = NewDisposeScope();
        if (encoder.ScoreBias(Config.MaxTokens, new Pass()) is not { } relative) return bias;
        string all = _graph.Tensor("relative", "relative_position_bias", () => relative);
        string tokens = _graph.Node("Slice", [_graph.Node("Shape", [ids]), _graph.Numbers(1), _graph.Numbers(2)]);
        string ends = _graph.Node("Concat", [tokens, tokens], ("axis", 0L));
        return _graph.Add(bias, _graph.Node("Slice", [all, _graph.Numbers(0, 0), ends, _graph.Numbers(2, 3)]));
    }

    private string PostNormLayer(string x, int layer, int at, string bias)
    {
        _graph.Enter($"layer.{layer}");
        x = _graph.LayerNorm(_graph.Add(x, Attention(x, at, bias)), Site<Norm>(SiteRole.AttentionNorm, at));
        return _graph.LayerNorm(_graph.Add(x, FeedForward(x, at)), Site<Norm>(SiteRole.FeedForwardNorm, at));
    }

    private string Attention(string x, int at, string? bias) => _graph.Attention(
        x, Site<Projection>(SiteRole.Query, at), Site<Projection>(SiteRole.Key, at), Site<Projection>(SiteRole.Value, at),
        Site<Projection>(SiteRole.AttentionOutput, at), Site<AttentionCore>(SiteRole.AttentionCore, at), bias);

    private string FeedForward(string x, int at) => _graph.Linear(
        _graph.Activation(_graph.Linear(x, Site<Projection>(SiteRole.FeedForwardUp, at)), Config.Activation), Site<Projection>(SiteRole.FeedForwardDown, at));

    private string Image(ViTBackbone network)
    {
        Convolution patches = Site<Convolution>(SiteRole.PatchEmbedding, -1);
        Constant positions = Site<Constant>(SiteRole.PositionEmbedding, -1);
        (long height, long width) = network.Image;
        string pixels = _graph.Input("pixel_values", OnnxType.Single, "batch", (long)patches.In, height, width);
        _graph.Enter("embeddings");
        string weight = _graph.Tensor((patches, "weight"), patches.Name + ".weight", () => patches.Weight);
        string maps = _graph.Node("Conv", patches.Bias is { } bias ? [pixels, weight, _graph.Tensor((patches, "bias"), patches.Name + ".bias", () => bias)] : [pixels, weight],
            ("strides", patches.Stride), ("kernel_shape", patches.Kernel));
        string tokens = _graph.Node("Transpose", [_graph.Node("Reshape", [maps, _graph.Numbers(0, Config.HiddenSize, -1)])], ("perm", new long[] { 0, 2, 1 }));
        string batch = _graph.Node("Slice", [_graph.Node("Shape", [pixels]), _graph.Numbers(0), _graph.Numbers(1)]);
        string rows = _graph.Node("Concat", [batch, _graph.Numbers(1, Config.HiddenSize)], ("axis", 0L));
        string[] leading = [.. network.Leading.Select(token => _graph.Node("Expand", [_graph.Tensor(token, token.Name, () => token.Weight), rows]))];
        string x = _graph.Add(_graph.Node("Concat", [.. leading, tokens], ("axis", 1L)), _graph.Tensor(positions, positions.Name, () => positions.Weight));
        for (int layer = 0; layer < Config.LayerCount; layer++)
        {
            _graph.Enter($"layer.{layer}");
            x = _graph.Add(x, Attention(_graph.LayerNorm(x, Site<Norm>(SiteRole.AttentionNorm, layer)), layer, null));
            x = _graph.Add(x, FeedForward(_graph.LayerNorm(x, Site<Norm>(SiteRole.FeedForwardNorm, layer)), layer));
        }
        _graph.Enter("end");
        return _graph.LayerNorm(x, Site<Norm>(SiteRole.FinalNorm, Config.LayerCount));
    }
}
