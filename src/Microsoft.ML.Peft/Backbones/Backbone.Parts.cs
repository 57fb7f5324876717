// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <content>Sites made of a source of weights.</content>
public abstract partial class Backbone
{
    private readonly IWeightSource? _weights;

    /// <summary>Makes an empty backbone whose parts take their numbers from a source.</summary>
    private protected Backbone(BackboneConfig config, IWeightSource weights) : this(config) => _weights = weights;

    private protected bool Stored(string name) => _weights!.Has(name);

    private Tensor Load(string name, params long[] shape) => Own(_weights!.Load(name, shape));

    private protected Projection AddProjection(
        string name, SiteRole role, int layer, long outWidth, long inWidth, bool bias = true, bool transposed = false, string? biasName = null) =>
        Add(new Projection(
            name, role, layer, transposed ? Own(_weights!.LoadTransposed(name + ".weight", outWidth, inWidth)) : Load(name + ".weight", outWidth, inWidth),
            bias || Made(biasName ?? name + ".bias") ? Load(biasName ?? name + ".bias", outWidth) : null, transposed)
        {
            BiasName = biasName ?? name + ".bias",
        });

    // Several maps in one, whose numbers files keep as `name_weight` and `name_bias`.
    private protected Projection AddPackedProjection(string name, SiteRole role, int layer, long outWidth, long inWidth) =>
        Add(new Projection(name, role, layer, Load(name + "_weight", outWidth, inWidth), Load(name + "_bias", outWidth)) { WeightSuffix = "_weight", BiasName = name + "_bias" });

    // The map into the space of two towers stands beside them; a tower's own file need not have it.
    private protected void AddJointProjection(string name)
    {
        if (Config.JointWidth is not { } width || !Stored(name + ".weight")) return;
        string biasName = name + ".bias";
        Add(new Projection(name, SiteRole.JointProjection, Config.LayerCount, Load(name + ".weight", width, Config.HiddenSize), Made(biasName) ? Load(biasName, width) : null) { AtRoot = true });
    }

    private protected Tensor LoadOwn(string name, params long[] shape) => Load(name, shape);

    // Merging may give a bias to a part that has none in files.
    private bool Made(string biasName) => _weights is SharedWeights && Stored(biasName);

    // Old files store a tied head a second time; a stored head that differs is one of its own, whatever config.json says.
    private protected Projection AddLanguageHead(string name, Embedding words, bool tied)
    {
        Tensor? stored = tied && !Stored(name + ".weight") ? null : _weights!.Load(name + ".weight", Config.VocabularySize, Config.HiddenSize);
        if (stored is not null && !(tied && stored.eq(words.Weight).all().item<bool>()))
            return Add(new Projection(name, SiteRole.LanguageHead, Config.LayerCount, Own(stored), null));
        stored?.Dispose();
        return Add(new Projection(name, SiteRole.LanguageHead, Config.LayerCount, words.Weight, null) { TiedTo = words });
    }

    private protected Norm AddNorm(string name, SiteRole role, int layer, long width, bool rootMeanSquare = false, double? epsilon = null, bool overTime = false) =>
        Add(new Norm(name, role, layer, Load(name + ".weight", width), rootMeanSquare && !Made(name + ".bias") ? null : Load(name + ".bias", width), epsilon ?? Config.NormEpsilon, rootMeanSquare)
        {
            OverTime = overTime,
        });

    private protected BatchNorm AddBatchNorm(string name, SiteRole role, int layer, long width) => Add(new BatchNorm(
        name, role, layer, Load(name + ".weight", width), Load(name + ".bias", width), Load(name + ".running_mean", width), Load(name + ".running_var", width)));

    private protected Embedding AddEmbedding(string name, SiteRole role, long rows, long width, int layer = -1, string? stored = null) =>
        Add(new Embedding(name, role, layer, Load((stored ?? name) + ".weight", rows, width)));

    private protected Constant AddConstant(string name, SiteRole role, params long[] shape) =>
        AddConstant(name, role, -1, shape);

    private protected Constant AddConstant(string name, SiteRole role, int layer, long[] shape) =>
        Add(new Constant(name, role, layer, Load(name, shape)));

    private protected Convolution AddConvolution(string name, SiteRole role, int layer, long[] shape, long stride = 1, long padding = 0, int groups = 1, bool bias = true)
    {
        long[] kernel = shape[2..];
        return Add(new Convolution(name, role, layer, Load(name + ".weight", shape), bias || Made(name + ".bias") ? Load(name + ".bias", shape[0]) : null,
            [.. kernel.Select(_ => stride)], [.. kernel.Select(_ => padding)], groups));
    }

    private protected Convolution AddConvolution(string name, SiteRole role, long[] stride, bool bias, params long[] shape) =>
        Add(new Convolution(name, role, -1, Load(name + ".weight", shape), bias || Made(name + ".bias") ? Load(name + ".bias", shape[0]) : null, stride));

    private protected Sequence AddWordSequence() => Add(new Sequence("embeddings.word_sequence", SiteRole.WordSequence, -1));

    private protected Sequence AddEmbeddingSequence() => Add(new Sequence("embeddings", SiteRole.EmbeddingSequence, -1));
}
