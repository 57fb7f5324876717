// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// The querying transformer of BLIP-2 (Li et al. 2023, arXiv 2301.12597): learned queries see each other in every layer, and the
/// states of an image in every n-th; post-norm. A batch is <see cref="TokenBatch.OfStates"/>.
/// </summary>
public sealed class QFormerBackbone : Backbone
{
    private readonly List<Layers> _layers = [];
    private readonly Constant? _queries;
    private readonly Norm _norm;
    private readonly Sequence _sequence;
    private readonly Func<Tensor, Tensor> _activation;
    private readonly int _width;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors; queries where the file has them.</param>
    public QFormerBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        _activation = Activations.Get(config.Activation);
        _width = read.Int("encoder_hidden_size", 1408);
        int every = read.Int("cross_attention_frequency", 2);
        RequireEvenHeads();
        if (Stored("query_tokens"))
            _queries = Add(new Constant("query_tokens", SiteRole.PoolerToken, -1, LoadOwn("query_tokens", 1, read.Int("num_query_tokens", 32), config.HiddenSize)) { AtRoot = true });
        _norm = AddNorm("layernorm", SiteRole.EmbeddingNorm, -1, config.HiddenSize);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++) _layers.Add(AddLayer($"encoder.layer.{layer}", layer, layer % every == 0));
        Add(new Taps(config.LayerCount));
    }

    private sealed record Attending(AttentionParts Parts, Norm Norm, Block Block, Residual Residual);

    private sealed record Layers(
        Block Whole, Sequence Sequence, Attending Self, Attending? Cross, Projection Up, Projection Down, Norm Norm, Block FeedForward, Residual Residual);

    /// <inheritdoc/>
    public override string Prefix => "qformer";

    /// <inheritdoc/>
    public override int LeadingTokens => 0;

    /// <inheritdoc/>
    public override bool PostNorm => true;

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        JsonObject fields = TowerConfig.Section(raw, "qformer_config", "blip_2_qformer");
        // A whole model's file says beside the section how many queries there are.
        if (!ReferenceEquals(fields, raw) && raw["num_query_tokens"] is { } queries) fields["num_query_tokens"] = queries.DeepClone();
        var read = new ConfigReader(fields);
        return read.Encoder("blip_2_qformer", BackboneInput.Images, read.Int("max_position_embeddings", 512), dropout: 0.1) with { ClassifierDropout = null };
    }

    private Layers AddLayer(string path, int layer, bool cross)
    {
        long width = Config.HiddenSize, inner = Config.IntermediateSize;
        return new Layers(
            Add(new Block(path, SiteRole.LayerBlock, layer)),
            Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer)),
            AddAttention(path + ".attention", layer, width, SiteRole.AttentionCore, SiteRole.AttentionNorm, SiteRole.AttentionBlock, SiteRole.AttentionResidual),
            cross ? AddAttention(path + ".crossattention", layer, _width, SiteRole.CrossAttentionCore, SiteRole.CrossAttentionNorm, SiteRole.CrossAttentionBlock, SiteRole.CrossAttentionResidual) : null,
            AddProjection(path + ".intermediate_query.dense", SiteRole.FeedForwardUp, layer, inner, width),
            AddProjection(path + ".output_query.dense", SiteRole.FeedForwardDown, layer, width, inner),
            AddNorm(path + ".output_query.LayerNorm", SiteRole.FeedForwardNorm, layer, width),
            Add(new Block(path + ".feed_forward", SiteRole.FeedForwardBlock, layer)),
            Add(new Residual(path + ".output_query", SiteRole.FeedForwardResidual, layer)));
    }

    private Attending AddAttention(string path, int layer, long from, SiteRole core, SiteRole norm, SiteRole block, SiteRole residual)
    {
        long width = Config.HiddenSize;
        return new Attending(
            new AttentionParts(
                AddProjection(path + ".attention.query", SiteRole.Query, layer, width, width),
                AddProjection(path + ".attention.key", SiteRole.Key, layer, width, from),
                AddProjection(path + ".attention.value", SiteRole.Value, layer, width, from),
                AddProjection(path + ".output.dense", SiteRole.AttentionOutput, layer, width, width),
                Add(new AttentionCore(path + ".core", layer, Config.HeadCount, Config.HiddenSize / Config.HeadCount, role: core))),
            AddNorm(path + ".output.LayerNorm", norm, layer, width),
            Add(new Block(path, block, layer)),
            Add(new Residual(path + ".output", residual, layer)));
    }

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        if (batch.Encoded is not { } states)
            throw new ArgumentException("A blip_2_qformer backbone reads the states of an image: make the batch with TokenBatch.OfStates.");
        long[] shape = states.Last.shape;
        if (shape.Length != 3 || shape[2] != _width)
            throw new ArgumentException($"States have the shape [{string.Join(", ", shape)}]; expected [batch, tokens, {_width}].");
        Tensor queries = batch.Embeddings ?? _queries?.Weight ?? throw new ArgumentException("The file has no query_tokens: give the queries with the batch.");
        long[] asking = queries.shape;
        if (asking.Length != 3 || asking[2] != Config.HiddenSize || (asking[0] != 1 && asking[0] != shape[0]))
            throw new ArgumentException($"Queries have the shape [{string.Join(", ", asking)}]; expected [1 or {shape[0]}, queries, {Config.HiddenSize}].");
        return new Layout(ones([shape[0], asking[1]], ScalarType.Int64, states.Last.device), padded: false);
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        BackboneOutput states = batch.Encoded!;
        pass.Encode(states.Last.to_type(_norm.Weight.dtype), states.Layout);
        Tensor queries = (batch.Embeddings ?? _queries!.Value(pass)).to_type(_norm.Weight.dtype).expand(states.Last.shape[0], -1, -1);
        return _sequence.Forward(pass.Dropout(_norm.Forward(queries, pass), Config.HiddenDropout), pass);
    }

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Layers parts = _layers[layer];
        return parts.Whole.Forward(parts.Sequence.Forward(hidden, pass), x =>
        {
            x = Attend(parts.Self, x, y => y, pass.Layout, pass);
            if (parts.Cross is { } cross) x = Attend(cross, x, _ => pass.Encoded!, pass.EncodedLayout!, pass);
            Tensor fed = pass.Scoped(() => parts.FeedForward.Forward(x, y =>
                pass.Dropout(parts.Down.Forward(_activation(parts.Up.Forward(y, pass)), pass), Config.HiddenDropout), pass));
            return parts.Residual.Forward(x, fed, (stream, y) => parts.Norm.Forward(stream + y, pass), pass);
        }, pass);
    }

    private Tensor Attend(Attending part, Tensor x, Func<Tensor, Tensor> answering, Layout layout, Pass pass)
    {
        Tensor attended = pass.Scoped(() => part.Block.Forward(x, asking =>
        {
            (Tensor key, Tensor value) = part.Parts.KeyValue(answering(asking), pass);
            return pass.Dropout(part.Parts.Run(asking, key, value, layout.KeyBias(x.dtype), null, Config.AttentionDropout, pass), Config.HiddenDropout);
        }, pass));
        return part.Residual.Forward(x, attended, (stream, y) => part.Norm.Forward(stream + y, pass), pass);
    }

    /// <summary>The first query's state, <c>[batch, hidden]</c>.</summary>
    /// <param name="output">What a forward pass gave.</param>
    /// <param name="pass">The same pass.</param>
    public override Tensor Pool(BackboneOutput output, Pass pass) => output.First();

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new QFormerBackbone(Config, weights);
}
