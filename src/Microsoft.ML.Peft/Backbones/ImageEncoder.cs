// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// An encoder of images in patches: a convolution makes a token of each patch, row by row; tokens of the family's own stand in
/// front; a table holds a position for each. A batch is <see cref="TokenBatch.OfImages"/>; no token of it is padding.
/// </summary>
public abstract class ImageEncoder : PreNormEncoder
{
    private readonly List<Constant> _leading = [];
    private readonly int _channels;
    private readonly (int Height, int Width) _image, _patch;
    private Convolution _patches = null!;
    private WeightSite? _positions;
    private Norm? _norm;
    private Sequence _sequence = null!;

    private protected ImageEncoder(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _channels = new ConfigReader(config.Raw).Int("num_channels", 3);
        (_image, _patch) = Sizes(config.Raw, DefaultPatch(config.ModelType));
    }

    /// <summary>Patches of an image of the network's size, rows and columns.</summary>
    private protected (int Rows, int Columns) Grid => (_image.Height / _patch.Height, _image.Width / _patch.Width);

    /// <summary>Width of images, in colours.</summary>
    private protected int Channels => _channels;

    /// <summary>Height and width of the network's images.</summary>
    internal (int Height, int Width) Image => _image;

    /// <summary>Height and width of a patch.</summary>
    private protected (int Height, int Width) Patch => _patch;

    /// <inheritdoc/>
    public override int LeadingTokens => _leading.Count;

    /// <summary>The tokens in front of the patches.</summary>
    internal IReadOnlyList<Constant> Leading => _leading;

    /// <summary>True where positions are fitted to images of another size without being asked.</summary>
    private protected virtual bool InterpolatesUnasked => false;

    private static int DefaultPatch(string modelType) => modelType switch { "dinov2" => 14, "clip_vision_model" => 32, _ => 16 };

    /// <summary>The fields of config.json that ViT and its relatives share.</summary>
    /// <param name="raw">The file.</param>
    /// <param name="modelType">The <c>model_type</c>.</param>
    /// <param name="leading">Tokens in front of the patches.</param>
    /// <param name="epsilon">Added to the variance in norms where the file does not say.</param>
    internal static BackboneConfig ReadShared(JsonObject raw, string modelType, int leading, double epsilon = 1e-12)
    {
        ((int height, int width), (int patchHeight, int patchWidth)) = Sizes(raw, DefaultPatch(modelType));
        int tokens = height / patchHeight * (width / patchWidth) + leading;
        return new ConfigReader(raw).Encoder(modelType, BackboneInput.Images, tokens, epsilon);
    }

    private static ((int Height, int Width) Image, (int Height, int Width) Patch) Sizes(JsonObject raw, int missingPatch)
    {
        (int height, int width) = Size(raw, "image_size", 224);
        (int patchHeight, int patchWidth) = Size(raw, "patch_size", missingPatch);
        if (height % patchHeight != 0 || width % patchWidth != 0)
            throw new CheckpointFormatException(
                $"config.json: image_size {height}x{width} is not a multiple of patch_size {patchHeight}x{patchWidth} (height x width).");
        if ((long)(height / patchHeight) * (width / patchWidth) >= int.MaxValue)
            throw new CheckpointFormatException($"config.json: image_size {height}x{width} makes more tokens than any network has; found patch_size {patchHeight}x{patchWidth}.");
        return ((height, width), (patchHeight, patchWidth));
    }

    // One number for a square, or [height, width].
    private static (int Height, int Width) Size(JsonObject raw, string name, int missing)
    {
        if (raw[name] is not JsonArray pair)
        {
            int side = new ConfigReader(raw).Int(name, missing);
            return (side, side);
        }
        int[] sides = [.. pair.Select(n => n is JsonValue v && v.GetValueKind() == JsonValueKind.Number && v.TryGetValue(out double d) && d >= 1 && d == Math.Floor(d) && d <= int.MaxValue ? (int)d : 0)];
        return sides is [> 0, > 0]
            ? (sides[0], sides[1])
            : throw new CheckpointFormatException($"config.json: field '{name}' is {pair.ToJsonString()}; expected a whole number, or two: height and width.");
    }

    /// <summary>Adds a token in front of the patches, behind those that are there.</summary>
    private protected void AddLeading(string name, SiteRole role, params long[] shape) => _leading.Add(AddConstant(name, role, shape));

    /// <summary>Adds the table of positions, under a name of its own or as the weight of a module.</summary>
    private protected void AddPositions(string name, bool module = false) => _positions = module
        ? AddEmbedding(name, SiteRole.PositionEmbedding, Config.MaxTokens, Config.HiddenSize)
        : AddConstant(name, SiteRole.PositionEmbedding, 1, Config.MaxTokens, Config.HiddenSize);

    /// <summary>Adds the convolution that makes tokens of patches, and a norm behind the positions where there is one.</summary>
    private protected void AddPatches(string name, bool bias = true, string? norm = null)
    {
        _patches = AddConvolution(name, SiteRole.PatchEmbedding, [_patch.Height, _patch.Width], bias, Config.HiddenSize, _channels, _patch.Height, _patch.Width);
        if (norm is not null) _norm = AddNorm(norm, SiteRole.EmbeddingNorm, -1, Config.HiddenSize);
        _sequence = AddEmbeddingSequence();
    }

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        Tensor pixels = ImagesOf(batch, _channels);
        long[] shape = pixels.shape;                                             // [batch, channels, height, width]
        (long height, long width) = (shape[2], shape[3]);
        if ((height, width) != _image && !batch.InterpolatePositions && !InterpolatesUnasked)
            throw new ArgumentException(
                $"Images are {height}x{width} (height x width), but this backbone is for {_image.Height}x{_image.Width}; resize them or set InterpolatePositions.");
        if (height < _patch.Height || width < _patch.Width)
            throw new ArgumentException($"Images are {height}x{width} (height x width), smaller than one patch of {_patch.Height}x{_patch.Width}.");
        (long rows, long columns) = GridOf(pixels);
        return new Layout(ones([shape[0], rows * columns + LeadingTokens], ScalarType.Int64, pixels.device), padded: false);
    }

    /// <summary>Patches of a batch's images, rows and columns.</summary>
    private protected (long Rows, long Columns) GridOf(Tensor pixels) => (pixels.shape[^2] / _patch.Height, pixels.shape[^1] / _patch.Width);

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor maps = _patches.Forward(batch.Pixels!.to_type(_patches.Weight.dtype), pass);                // [batch, hidden, rows, columns]
        (long rows, long columns) = (maps.shape[2], maps.shape[3]);
        IEnumerable<Tensor> leading = _leading.Select(token => token.Value(pass).view(1, 1, -1).expand(maps.shape[0], 1, Config.HiddenSize).to_type(maps.dtype));
        Tensor hidden = cat([.. leading, maps.flatten(2).transpose(1, 2)], 1);
        if (_positions is not null) hidden = Positioned(hidden, _positions, rows, columns, pass);
        if (_norm is not null) hidden = _norm.Forward(hidden, pass);
        return _sequence.Forward(pass.Dropout(hidden, Config.HiddenDropout), pass);
    }

    private Tensor Positioned(Tensor hidden, WeightSite positions, long rows, long columns, Pass pass)
    {
        if ((rows, columns) != Grid) return hidden + PositionTable(positions, rows, columns, pass).to_type(hidden.dtype);
        return positions is Embedding rowsOf
            ? hidden + rowsOf.Forward(arange(hidden.shape[1], ScalarType.Int64, hidden.device), pass)
            : positions.Forward(hidden, pass);
    }

    private Tensor PositionTable(WeightSite positions, long rows, long columns, Pass pass)
    {
        Tensor table = positions is Embedding e ? e.Table(pass).unsqueeze(0) : ((Constant)positions).Value(pass);
        return (rows, columns) == Grid ? table : Interpolated(table, rows, columns);
    }

    /// <summary>The table of positions for images of a size, <c>[1, tokens, hidden]</c>; null where there is none.</summary>
    internal Tensor? PositionsFor(long height, long width, Pass pass) =>
        _positions is null ? null : PositionTable(_positions, height / _patch.Height, width / _patch.Width, pass);

    // Tokens in front keep their positions; the others lie on a grid, which is scaled by cubic convolution.
    private Tensor Interpolated(Tensor table, long rows, long columns)
    {
        (long oldRows, long oldColumns) = Grid;
        Tensor wide = table.to_type(ScalarType.Float32);
        Tensor grid = wide.narrow(1, LeadingTokens, oldRows * oldColumns).view(oldRows, oldColumns, -1).permute(2, 0, 1);   // [hidden, rows, columns]
        Tensor scaled = Interpolation.Resize(grid, rows, columns, Interpolation.Cubic);                                     // [hidden, new rows, new columns]
        return cat([wide.narrow(1, 0, LeadingTokens), scaled.permute(1, 2, 0).reshape(1, rows * columns, -1)], 1);
    }

    /// <summary>
    /// The patches of a state as a map, <c>[batch, hidden, rows, columns]</c>: what networks for detection and segmentation read.
    /// </summary>
    /// <param name="output">What a pass that keeps the hidden states gave.</param>
    /// <param name="state">Number of the state: 0 for the embeddings, k for the output of layer k - 1.</param>
    /// <param name="pass">The same pass.</param>
    /// <exception cref="InvalidOperationException">The pass kept no hidden states.</exception>
    /// <exception cref="ArgumentOutOfRangeException">There is no such state.</exception>
    public Tensor FeatureMap(BackboneOutput output, int state, Pass pass)
    {
        if (output.HiddenStates is not { } states || output.Batch?.Pixels is not { } pixels)
            throw new InvalidOperationException("The pass kept no hidden states; set KeepHiddenStates before the images go through.");
        if (state < 0 || state >= states.Count) throw new ArgumentOutOfRangeException(nameof(state), state, $"Expected a state from 0 to {states.Count - 1}.");
        Tensor tokens = output.Layout.Own(NormOfMaps is { } norm ? norm.Forward(states[state], pass) : states[state]);
        (long rows, long columns) = GridOf(pixels);
        if (tokens.shape[1] != rows * columns + LeadingTokens)
            throw new InvalidOperationException($"Of {rows}x{columns} patches there are {tokens.shape[1] - LeadingTokens} tokens left; a map needs all of them.");
        return tokens.narrow(1, LeadingTokens, rows * columns).transpose(1, 2).reshape(tokens.shape[0], -1, rows, columns);
    }

    /// <summary>The norm that every feature map goes through; null for none.</summary>
    private protected virtual Norm? NormOfMaps => null;

    /// <summary>Mean of the patches' final states, <c>[batch, hidden]</c>.</summary>
    private protected Tensor MeanOfPatches(BackboneOutput output)
    {
        Tensor own = output.Layout.Own(output.Last);
        return own.narrow(1, LeadingTokens, own.shape[1] - LeadingTokens).mean([1]);
    }
}
