// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// The audio spectrogram transformer (Gong et al. 2021, arXiv 2104.01778): ViT over overlapping patches of a log-mel
/// spectrogram, frequency by frequency, behind a class and a distillation token. A batch is <see cref="TokenBatch.OfSound"/> of
/// <c>[batch, frames, mel bins]</c>.
/// </summary>
public sealed class AstBackbone : PreNormEncoder
{
    private const int Leading = 2;

    private readonly Convolution _patches;
    private readonly Constant _class, _distillation, _positions;
    private readonly Sequence _sequence;
    private readonly Norm _norm;
    private readonly Geometry _geometry;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public AstBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _geometry = Geometry.Of(config.Raw);
        long width = config.HiddenSize;
        _class = AddConstant("embeddings.cls_token", SiteRole.ClassToken, 1, 1, width);
        _distillation = AddConstant("embeddings.distillation_token", SiteRole.DistillationToken, 1, 1, width);
        _positions = AddConstant("embeddings.position_embeddings", SiteRole.PositionEmbedding, 1, config.MaxTokens, width);
        _patches = AddConvolution("embeddings.patch_embeddings.projection", SiteRole.PatchEmbedding,
            [_geometry.FrequencyStride, _geometry.TimeStride], bias: true, width, 1, _geometry.Patch, _geometry.Patch);
        _sequence = AddEmbeddingSequence();
        bool bias = new ConfigReader(config.Raw).Flag("qkv_bias", true);
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layer.{layer}", layer, PreNormNames.ViT with { Biases = (bias, bias, bias) });
        _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, width);
        Add(new Taps(config.LayerCount));
    }

    private readonly record struct Geometry(int Bins, int Frames, int Patch, int FrequencyStride, int TimeStride)
    {
        public int Rows => Patches(Bins, FrequencyStride);

        public int Columns => Patches(Frames, TimeStride);

        public int Patches(long size, int stride) => (int)((size - Patch) / stride + 1);

        public static Geometry Of(JsonObject raw)
        {
            var read = new ConfigReader(raw);
            var made = new Geometry(read.Int("num_mel_bins", 128), read.Int("max_length", 1024), read.Int("patch_size", 16), read.Int("frequency_stride", 10), read.Int("time_stride", 10));
            if (made.Patch > made.Bins || made.Patch > made.Frames)
                throw new CheckpointFormatException($"config.json: patch_size {made.Patch} is larger than a spectrogram of max_length {made.Frames} and num_mel_bins {made.Bins}.");
            if ((long)made.Rows * made.Columns > int.MaxValue - Leading)
                throw new CheckpointFormatException($"config.json: max_length {made.Frames} and num_mel_bins {made.Bins} make more patches than any network has.");
            return made;
        }
    }

    /// <inheritdoc/>
    public override string Prefix => "audio_spectrogram_transformer";

    /// <inheritdoc/>
    public override int LeadingTokens => Leading;

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        Geometry geometry = Geometry.Of(raw);
        return new ConfigReader(raw).Encoder("audio-spectrogram-transformer", BackboneInput.Sound, geometry.Rows * geometry.Columns + Leading);
    }

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        if (batch.Sound is not { } sound)
            throw new ArgumentException($"A {Config.ModelType} backbone hears: make the batch with TokenBatch.OfSound.");
        if (sound.shape is not [var rows, var frames, var bins] || bins != _geometry.Bins)
            throw new ArgumentException($"The spectrograms have the shape [{string.Join(", ", sound.shape)}]; expected [batch, frames, {_geometry.Bins} mel bins].");
        if (frames < _geometry.Patch)
            throw new ArgumentException($"The spectrograms have {frames} frames, fewer than one patch of {_geometry.Patch}.");
        int columns = _geometry.Patches(frames, _geometry.TimeStride);
        if (columns != _geometry.Columns && !batch.InterpolatePositions && !(batch.CutPositions && columns < _geometry.Columns))
            throw new ArgumentException(
                $"The spectrograms have {frames} frames, but this backbone is for {_geometry.Frames}; pad or cut them, or set InterpolatePositions or, for shorter ones, CutPositions.");
        return new Layout(ones([rows, _geometry.Rows * (long)columns + Leading], ScalarType.Int64, sound.device), padded: false);
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor sound = batch.Sound!.to_type(_patches.Weight.dtype).transpose(1, 2).unsqueeze(1);       // [batch, 1, mel bins, frames]
        Tensor maps = _patches.Forward(sound, pass);                                                  // [batch, hidden, rows, columns]
        IEnumerable<Tensor> leading = ((Constant[])[_class, _distillation]).Select(token => token.Value(pass).expand(maps.shape[0], 1, Config.HiddenSize).to_type(maps.dtype));
        Tensor hidden = cat([.. leading, maps.flatten(2).transpose(1, 2)], 1);
        hidden = maps.shape[3] == _geometry.Columns
            ? _positions.Forward(hidden, pass)
            : hidden + Positions(maps.shape[3], batch.CutPositions && maps.shape[3] < _geometry.Columns, pass).to_type(hidden.dtype);
        return _sequence.Forward(pass.Dropout(hidden, Config.HiddenDropout), pass);
    }

    /// <summary>The table of positions for another length, <c>[1, tokens, hidden]</c>: the middle of it, or scaled linearly along time.</summary>
    internal Tensor Positions(long columns, bool cut, Pass pass)
    {
        (long rows, long old) = (_geometry.Rows, _geometry.Columns);
        Tensor table = _positions.Value(pass).to_type(ScalarType.Float32);
        Tensor grid = table.narrow(1, Leading, rows * old).view(rows, old, -1).permute(2, 0, 1);      // [hidden, rows, columns]
        grid = cut ? grid.narrow(2, old / 2 - columns / 2, columns) : Interpolation.Resize(grid, rows, columns, Interpolation.Linear);
        return cat([table.narrow(1, 0, Leading), grid.permute(1, 2, 0).reshape(1, rows * columns, -1)], 1);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm.Forward(hidden, pass);

    /// <summary>Mean of the class and the distillation token, <c>[batch, hidden]</c>.</summary>
    /// <param name="output">What <see cref="Backbone.Forward"/> gave.</param>
    /// <param name="pass">The same pass.</param>
    public override Tensor Pool(BackboneOutput output, Pass pass) => output.Layout.Own(output.Last).narrow(1, 0, Leading).mean([1]);

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => Pool(output, pass);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new AstBackbone(Config, weights);
}
