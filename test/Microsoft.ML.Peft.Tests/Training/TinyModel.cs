// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Training;

/// <summary>A small network with dropout: embeddings, layers of two projections, a norm.</summary>
internal sealed class TinyBackbone : Backbone
{
    private readonly Embedding _words;
    private readonly List<(Projection Up, Projection Down, Norm Norm)> _layers = [];

    /// <summary>How often a layer was run, with and without a graph.</summary>
    public int Runs, GraphRuns;

    public TinyBackbone(int layers = 2, int hidden = 16, int inner = 32, int vocabulary = 50, int maxTokens = 64, double dropout = 0.1, long seed = 7)
        : base(new BackboneConfig
        {
            ModelType = "tiny",
            HiddenSize = hidden,
            LayerCount = layers,
            HeadCount = 1,
            IntermediateSize = inner,
            VocabularySize = vocabulary,
            MaxTokens = maxTokens,
            HiddenDropout = dropout,
            Raw = new JsonObject(),
        })
    {
        using var generator = new Generator((ulong)seed, CPU);
        Tensor Draw(params long[] shape) => Own(randn(shape, generator: generator) * (1 / Math.Sqrt(shape[^1])));
        _words = Add(new Embedding("words", SiteRole.WordEmbedding, -1, Draw(vocabulary, hidden)));
        for (int i = 0; i < layers; i++)
        {
            _layers.Add((
                Add(new Projection($"layer.{i}.up", SiteRole.FeedForwardUp, i, Draw(inner, hidden), Draw(inner))),
                Add(new Projection($"layer.{i}.down", SiteRole.FeedForwardDown, i, Draw(hidden, inner), Draw(hidden))),
                Add(new Norm($"layer.{i}.norm", SiteRole.FeedForwardNorm, i, Own(ones(hidden)), Own(zeros(hidden)), 1e-5))));
        }
        Add(new Taps(layers));
    }

    public override string Prefix => "tiny";

    protected override Tensor Embed(TokenBatch batch, Pass pass) => pass.Dropout(_words.Forward(batch.Ids, pass), Config.HiddenDropout);

    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Runs++;
        if (is_grad_enabled()) GraphRuns++;
        (Projection up, Projection down, Norm norm) = _layers[layer];
        // Rows see one another's tokens through a mean, so that padding matters.
        Tensor mask = pass.Layout.Mask.to_type(hidden.dtype).unsqueeze(-1);
        Tensor mean = (hidden * mask).sum(1, keepdim: true) / mask.sum(1, keepdim: true);
        Tensor inner = nn.functional.gelu(up.Forward(hidden + mean, pass));
        return norm.Forward(hidden + pass.Dropout(down.Forward(inner, pass), Config.HiddenDropout), pass);
    }

    protected override Backbone Rebuild(IWeightSource weights) =>
        throw new NotSupportedException();
}

/// <summary>Low-rank terms at the first projection of every layer from a given one on.</summary>
internal sealed class TinyMethod : PeftMethod
{
    public int Rank { get; set; } = 4;

    public int FirstLayer { get; set; }

    public double Dropout { get; set; } = 0.1;

    public override string Id => "tiny-lora";

    public override string Family => "low rank";

    public override bool Mergeable => true;

    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator((ulong)seed, CPU);
        var adaptation = new PeftAdaptation(this, backbone);
        foreach (Projection site in backbone.Sites.OfType<Projection>().Where(s => s.Role == SiteRole.FeedForwardUp && s.Layer >= FirstLayer))
        {
            NamedParameter a = adaptation.Add($"{site.Name}.A", randn([Rank, site.In], generator: generator) * 0.3);
            NamedParameter b = adaptation.Add($"{site.Name}.B", zeros(site.Out, Rank));
            adaptation.Attach(site, new Term(a, b, Dropout));
        }
        return adaptation;
    }

    public override long CountTrainable(Backbone backbone) => 0;

    private sealed class Term(NamedParameter a, NamedParameter b, double dropout) : WeightPatch
    {
        public override PatchForm Form => PatchForm.LowRank;

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) => [new LowRankTerm(a.Value, b.Value, 2, Dropout: dropout)];
    }
}

/// <summary>Mean over the tokens, then a linear map.</summary>
internal sealed class TinyHead : Head
{
    private readonly NamedParameter _weight, _bias;
    private readonly double _dropout;

    public TinyHead(Backbone backbone, int outputs, double dropout = 0.1)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(3, CPU);
        _weight = Add(new NamedParameter("head.weight", randn([outputs, backbone.Config.HiddenSize], generator: generator) * 0.1));
        _bias = Add(new NamedParameter("head.bias", zeros(outputs)));
        _dropout = dropout;
    }

    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass)
    {
        Tensor mask = output.Layout.Mask.to_type(output.Last.dtype).unsqueeze(-1);
        return (output.Last * mask).sum(1) / mask.sum(1);
    }

    public override Tensor FromFeatures(Tensor features, Pass pass)
    {
        pass.BeginSegment(int.MaxValue);
        return nn.functional.linear(pass.Dropout(features, _dropout), _weight.Value, _bias.Value);
    }
}

internal static class Tiny
{
    public static AdaptedModel Model(
        int layers = 2, int firstLayer = 0, double dropout = 0.1, int outputs = 3, bool headOnly = false, int hidden = 16, int inner = 32)
    {
        using var scope = NewDisposeScope();
        var backbone = new TinyBackbone(layers, hidden, inner, dropout: dropout);
        PeftAdaptation? adaptation = headOnly ? null : new TinyMethod { FirstLayer = firstLayer, Dropout = dropout }.Attach(backbone, 5);
        return new AdaptedModel(backbone, adaptation, new TinyHead(backbone, outputs, dropout), ownsBackbone: true);
    }

    /// <summary>Rows whose class shows in their tokens; lengths vary.</summary>
    public static Example[] Rows(int count, int seed = 1, int classes = 3, int longest = 20)
    {
        var random = new Random(seed);
        return
        [
            .. Enumerable.Range(0, count).Select(i =>
            {
                int label = random.Next(classes);
                int[] ids = [.. Enumerable.Range(0, random.Next(1, longest + 1)).Select(_ => 1 + label * 10 + random.Next(14))];
                return new Example { Ids = ids, Label = label, Target = label, Row = i };
            }),
        ];
    }

    public static byte[] Bits(AdaptedModel model)
    {
        using var scope = NewDisposeScope();
        return [.. model.Parameters.SelectMany(p => p.Value.detach().contiguous().bytes.ToArray())];
    }

    public static byte[] BaseBits(AdaptedModel model)
    {
        using var scope = NewDisposeScope();
        return [.. model.Backbone.Sites.OfType<WeightSite>().SelectMany(s => s.Weight.contiguous().bytes.ToArray().Concat(s.Bias?.contiguous().bytes.ToArray() ?? []))];
    }

    public static TrainingOptions Options(int epochs = 2) => new()
    {
        Epochs = epochs,
        BatchSize = 4,
        LearningRate = 0.01,
        Seed = 11,
        LogEvery = 3,
        WarmupShare = 0.2,
    };
}
