// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477): convolutions make frames of samples, a grouped convolution gives them
/// positions; then post-norm layers (base), or pre-norm ones with a norm at the end (<c>do_stable_layer_norm</c>). A batch is
/// <see cref="TokenBatch.OfSound"/> of <c>[batch, samples]</c>. Frames are masked in training where a batch asks for it (<see cref="TokenBatch.MaskFrames"/>); layers are
/// never skipped.
/// </summary>
public sealed class Wav2Vec2Backbone : Backbone
{
    // Norms of convolutions have an epsilon of their own, whatever the file says.
    private const double ConvolutionEpsilon = 1e-5;
    private const int MostFrames = 1_000_000;

    private readonly List<(Convolution Map, Norm? Norm)> _front = [];
    private readonly List<Layers> _layers = [];
    private readonly Norm _frontNorm, _norm;
    private readonly Projection _projection;
    private readonly Convolution _positions;
    private readonly Sequence _sequence;
    private readonly Constant? _masked;
    private readonly FrameMasks _frameMasks, _channelMasks;
    private readonly Func<Tensor, Tensor> _activation, _frontActivation;
    private readonly bool _preNorm, _mixesLayers;
    private readonly double _projectionDropout, _innerDropout;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public Wav2Vec2Backbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        (_activation, _frontActivation) = (Activations.Get(config.Activation), Activations.Get(read.Text("feat_extract_activation", "gelu")));
        (_preNorm, _mixesLayers) = (read.Flag("do_stable_layer_norm", false), read.Flag("use_weighted_layer_sum", false));
        (_projectionDropout, _innerDropout) = (read.Share("feat_proj_dropout", 0), read.Share("activation_dropout", 0.1));
        if (read.Flag("apply_spec_augment", true)) (_frameMasks, _channelMasks) = (FrameMasks.Of(read, "time", 0.05, 2), FrameMasks.Of(read, "feature", 0, 0));
        RequireEvenHeads();
        int channels = AddFront(read);
        _frontNorm = AddNorm("feature_projection.layer_norm", SiteRole.EmbeddingNorm, -1, channels);
        _projection = AddProjection("feature_projection.projection", SiteRole.EmbeddingProjection, -1, config.HiddenSize, channels);
        if (Stored("masked_spec_embed")) _masked = AddConstant("masked_spec_embed", SiteRole.MaskToken, config.HiddenSize);
        _positions = AddPositions(read, weights);
        Norm? first = _preNorm ? null : AddNorm("encoder.layer_norm", SiteRole.EmbeddingNorm, -1, config.HiddenSize);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++) _layers.Add(AddLayer($"encoder.layers.{layer}", layer));
        _norm = first ?? AddNorm("encoder.layer_norm", SiteRole.FinalNorm, config.LayerCount, config.HiddenSize);
        Add(new Taps(config.LayerCount));
    }

    private sealed record Layers(
        Block Whole, Sequence Sequence, PreNormPart Attention, AttentionParts Parts, PreNormPart FeedForward, Projection Up, Projection Down);

    private readonly record struct Step(int Channels, int Kernel, int Stride);

    /// <inheritdoc/>
    public override string Prefix => "wav2vec2";

    /// <inheritdoc/>
    public override int LeadingTokens => 0;

    /// <inheritdoc/>
    public override bool PostNorm => !_preNorm;

    private protected override bool ClassifierReadsHiddenStates => _mixesLayers;

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        if (read.Flag("add_adapter", false))
            throw new CheckpointFormatException("config.json: add_adapter is set; convolutions behind the encoder are not supported.");
        _ = Steps(read);
        return read.Encoder("wav2vec2", BackboneInput.Sound, MostFrames, 1e-5, 0.1, "hidden_dropout", "attention_dropout");
    }

    private static Step[] Steps(ConfigReader read)
    {
        int[] channels = read.Ints("conv_dim", [512, 512, 512, 512, 512, 512, 512]);
        int[] kernels = read.Ints("conv_kernel", [10, 3, 3, 3, 3, 2, 2]), strides = read.Ints("conv_stride", [5, 2, 2, 2, 2, 2, 2]);
        if (channels.Length != kernels.Length || channels.Length != strides.Length)
            throw new CheckpointFormatException($"config.json: conv_dim, conv_kernel and conv_stride have {channels.Length}, {kernels.Length} and {strides.Length} numbers; expected one each a convolution.");
        string norm = read.Text("feat_extract_norm", "group");
        if (norm is not ("group" or "layer")) throw new CheckpointFormatException($"config.json: feat_extract_norm is '{norm}'; expected group or layer.");
        return [.. channels.Select((width, i) => new Step(width, kernels[i], strides[i]))];
    }

    // With "group" the first convolution alone has a norm: of each channel over time.
    private int AddFront(ConfigReader read)
    {
        bool every = read.Text("feat_extract_norm", "group") == "layer", bias = read.Flag("conv_bias", false);
        int channels = 1;
        foreach (Step step in Steps(read))
        {
            string path = $"feature_extractor.conv_layers.{_front.Count}";
            Convolution map = AddConvolution(path + ".conv", SiteRole.OtherConvolution, -1, [step.Channels, channels, step.Kernel], step.Stride, bias: bias);
            Norm? norm = every || _front.Count == 0
                ? AddNorm(path + ".layer_norm", SiteRole.OtherNorm, -1, step.Channels, epsilon: ConvolutionEpsilon, overTime: !every)
                : null;
            _front.Add((map, norm));
            channels = step.Channels;
        }
        return channels;
    }

    // Files hold the kernel as directions and lengths, one a tap, under names that changed once; here it is one tensor.
    private Convolution AddPositions(ConfigReader read, IWeightSource weights)
    {
        const string Path = "encoder.pos_conv_embed.conv";
        long width = Config.HiddenSize, kernel = read.Int("num_conv_pos_embeddings", 128), groups = read.Int("num_conv_pos_embedding_groups", 16);
        if (width % groups != 0)
            throw new CheckpointFormatException($"config.json: hidden_size {width} is not divisible by num_conv_pos_embedding_groups {groups}.");
        long[] shape = [width, width / groups, kernel];
        Tensor whole;
        if (weights.Has(Path + ".weight"))
        {
            whole = weights.Load(Path + ".weight", shape);
        }
        else
        {
            bool old = weights.Has(Path + ".weight_v");
            Tensor lengths = weights.Load(Path + (old ? ".weight_g" : ".parametrizations.weight.original0"), 1, 1, kernel);
            Tensor directions = weights.Load(Path + (old ? ".weight_v" : ".parametrizations.weight.original1"), shape);
            Tensor wide = directions.to_type(ScalarType.Float32);
            whole = (wide * (lengths.to_type(ScalarType.Float32) / wide.square().sum([0, 1], keepdim: true).sqrt())).to_type(directions.dtype);
        }
        Tensor bias = weights.Load(Path + ".bias", width);
        return Add(new Convolution(Path, SiteRole.PositionEmbedding, -1, Own(whole), Own(bias), padding: [kernel / 2], groups: (int)groups));
    }

    private Layers AddLayer(string path, int layer)
    {
        long width = Config.HiddenSize;
        Projection Map(string name, SiteRole role) => AddProjection($"{path}.attention.{name}", role, layer, width, width);
        return new Layers(
            Add(new Block(path, SiteRole.LayerBlock, layer)),
            Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer)),
            new PreNormPart(
                AddNorm(path + ".layer_norm", SiteRole.AttentionNorm, layer, width),
                Add(new Block(path + ".attention", SiteRole.AttentionBlock, layer)),
                Add(new Residual(path + ".attention_adapters", SiteRole.AttentionResidual, layer))),
            new AttentionParts(
                Map("q_proj", SiteRole.Query), Map("k_proj", SiteRole.Key), Map("v_proj", SiteRole.Value), Map("out_proj", SiteRole.AttentionOutput),
                Add(new AttentionCore(path + ".attention.core", layer, Config.HeadCount, Config.HiddenSize / Config.HeadCount))),
            new PreNormPart(
                AddNorm(path + ".final_layer_norm", SiteRole.FeedForwardNorm, layer, width),
                Add(new Block(path + ".feed_forward", SiteRole.FeedForwardBlock, layer)),
                Add(new Residual(path + ".output_adapters", SiteRole.FeedForwardResidual, layer))),
            AddProjection(path + ".feed_forward.intermediate_dense", SiteRole.FeedForwardUp, layer, Config.IntermediateSize, width),
            AddProjection(path + ".feed_forward.output_dense", SiteRole.FeedForwardDown, layer, width, Config.IntermediateSize));
    }

    // Frames that the convolutions make of a number of samples.
    private long Frames(long samples)
    {
        foreach ((Convolution map, _) in _front) samples = samples < map.Kernel[0] ? 0 : (samples - map.Kernel[0]) / map.Stride[0] + 1;
        return samples;
    }

    private long LeastSamples => _front.AsEnumerable().Reverse().Aggregate(1L, (frames, front) => (frames - 1) * front.Map.Stride[0] + front.Map.Kernel[0]);

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        if (batch.Sound is not { } sound)
            throw new ArgumentException("A wav2vec2 backbone hears: make the batch with TokenBatch.OfSound.");
        if (sound.shape is not [var rows, var samples])
            throw new ArgumentException($"The sounds have the shape [{string.Join(", ", sound.shape)}]; expected [batch, samples].");
        long frames = Frames(samples);
        long[] real = batch.Padded ? [.. batch.Mask.sum(1).to_type(ScalarType.Int64).to(CPU).data<long>()] : [samples];
        if (real.Min() is var shortest && Frames(shortest) < 1)
            throw new ArgumentException($"A sound has {shortest} samples; this backbone needs at least {LeastSamples}. Pad it with silence or leave it out.");
        if (!batch.Padded) return new Layout(ones([rows, frames], ScalarType.Int64, sound.device), padded: false);
        var mask = new long[rows * frames];
        for (int row = 0; row < rows; row++) mask.AsSpan((int)(row * frames), (int)Frames(real[row])).Fill(1);
        return new Layout(tensor(mask, [rows, frames]).to(sound.device), padded: true);
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor x = Listen(batch.Sound!.to_type(_front[0].Map.Weight.dtype), pass);                       // [batch, frames, channels]
        x = pass.Dropout(_projection.Forward(_frontNorm.Forward(x, pass), pass), _projectionDropout);
        if (pass.Training && batch.MaskFrames) x = Masked(x, pass);
        if (pass.Layout.Padded) x = x * pass.Layout.Mask.unsqueeze(-1).to_type(x.dtype);
        Tensor places = _positions.Forward(x.transpose(1, 2), pass);                                     // [batch, hidden, frames or one more]
        x = x + _frontActivation(places.narrow(2, 0, x.shape[1]).transpose(1, 2).contiguous());
        if (!_preNorm) x = _norm.Forward(x, pass);
        return _sequence.Forward(pass.Dropout(x, Config.HiddenDropout), pass);
    }

    // Masked frames are a learned one, masked channels zero.
    private Tensor Masked(Tensor x, Pass pass)
    {
        long[] lengths = [.. pass.Layout.Mask.sum(1).to_type(ScalarType.Int64).to(CPU).data<long>()], widths = [.. lengths.Select(_ => x.shape[2])];
        ulong key = Pass.Mix(pass.Seed ?? unchecked((ulong)Random.Shared.NextInt64()));
        Tensor instead = (_masked?.Value(pass) ?? zeros([x.shape[2]], device: x.device)).to_type(x.dtype);
        if (_frameMasks.Draw(lengths, x.shape[1], key) is { } frames) x = where(frames.to(x.device).unsqueeze(-1), instead, x);
        return _channelMasks.Draw(widths, x.shape[2], ~key) is { } channels ? x.masked_fill(channels.to(x.device).unsqueeze(1), 0) : x;
    }

    // The activation always gets a contiguous gradient: libtorch 1.13's gelu needs that.
    private Tensor Listen(Tensor sound, Pass pass)
    {
        Tensor x = sound.unsqueeze(1);                                                                   // [batch, 1, samples]
        for (int i = 0; i < _front.Count; i++)
        {
            x = _front[i].Map.Forward(x, pass).transpose(1, 2);                                          // [batch, frames, channels]
            if (_front[i].Norm is { } norm) x = norm.Forward(x, pass);
            x = _frontActivation((i == _front.Count - 1 ? x : x.transpose(1, 2)).contiguous());
        }
        return x;
    }

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Layers parts = _layers[layer];
        return parts.Whole.Forward(parts.Sequence.Forward(hidden, pass), x =>
        {
            x = Run(parts.Attention, x, y =>
            {
                pass.Share(y, parts.Parts.Query, parts.Parts.Key, parts.Parts.Value);
                (Tensor key, Tensor value) = parts.Parts.KeyValue(y, pass);
                return pass.Dropout(parts.Parts.Run(y, key, value, pass.Layout.KeyBias(y.dtype), null, Config.AttentionDropout, pass), Config.HiddenDropout);
            }, pass);
            return Run(parts.FeedForward, x, y =>
                pass.Dropout(parts.Down.Forward(pass.Dropout(_activation(parts.Up.Forward(y, pass)), _innerDropout), pass), Config.HiddenDropout), pass);
        }, pass);
    }

    private Tensor Run(PreNormPart part, Tensor stream, Func<Tensor, Tensor> body, Pass pass) => _preNorm
        ? part.Run(stream, body, pass)
        : part.Residual.Forward(stream, pass.Scoped(() => part.Block.Forward(stream, body, pass)), (x, y) => part.Norm.Forward(x + y, pass), pass);

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _preNorm ? _norm.Forward(hidden, pass) : hidden;

    /// <summary>
    /// Mean over the real frames, <c>[batch, hidden]</c>; where layers are mixed that of each state, <c>[batch, layers + 1, hidden]</c>.
    /// </summary>
    /// <param name="output">What <see cref="Backbone.Forward"/> gave.</param>
    /// <param name="pass">The same pass.</param>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => _mixesLayers
        ? stack([.. output.HiddenStates!.Select(state => MeanOfFrames(state, output.Layout))], 1)
        : MeanOfFrames(output.Last, output.Layout);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new Wav2Vec2Backbone(Config, weights);
}
