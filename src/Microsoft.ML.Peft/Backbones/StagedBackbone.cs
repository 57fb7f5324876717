// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// A network of images in stages: each has fewer places and more channels than the one before. Hidden states are
/// <c>[batch, places, channels]</c>, row by row of the map in <see cref="Layout.Grid"/>; what leads from one stage to the next
/// belongs to the first layer of the next. Layers are numbered through all stages.
/// </summary>
public abstract class StagedBackbone : Backbone
{
    private const int MostLayers = 10_000, MostStages = 16;

    private readonly int[] _depths, _widths;
    private readonly int _channels;
    private readonly (int Stage, int Place)[] _layers;

    private protected StagedBackbone(BackboneConfig config, IWeightSource weights, int[] depths, int[] widths) : base(config, weights)
    {
        (_depths, _widths, _channels) = (depths, widths, new ConfigReader(config.Raw).Int("num_channels", 3));
        _layers = [.. depths.SelectMany((depth, stage) => Enumerable.Range(0, depth).Select(place => (stage, place)))];
    }

    /// <summary>Number of layers a stage.</summary>
    public IReadOnlyList<int> Depths => _depths;

    /// <summary>Channels a stage.</summary>
    public IReadOnlyList<int> Widths => _widths;

    /// <inheritdoc/>
    public override int LeadingTokens => 0;

    /// <inheritdoc/>
    public override int WidthAt(int layer) => layer < 0 ? StemWidth : _widths[layer >= _layers.Length ? ^1 : _layers[layer].Stage];

    /// <inheritdoc/>
    public override bool HasOneWidth => false;

    /// <inheritdoc/>
    public override bool TakesTokens => false;

    private protected override bool LayersStandAlone => false;

    /// <summary>Channels of an image.</summary>
    private protected int Channels => _channels;

    /// <summary>Channels before the first stage.</summary>
    private protected virtual int StemWidth => _widths[0];

    /// <summary>The map of the embeddings of an image.</summary>
    private protected abstract MapGrid Stem(long height, long width);

    /// <summary>The map that a stage makes of the one before it.</summary>
    private protected abstract MapGrid Next(int stage, MapGrid before);

    /// <summary>Stage of a layer, and its number inside of that.</summary>
    private protected (int Stage, int Place) At(int layer) => _layers[layer];

    /// <summary>Numbers of layers, read and checked.</summary>
    private protected static int[] ReadDepths(ConfigReader read, int[] missing, int? count = null)
    {
        int[] depths = count is { } stages ? read.Stages("depths", missing, stages) : read.Ints("depths", missing);
        if (depths.Length > MostStages || depths.Sum(d => (long)d) > MostLayers)
            throw new CheckpointFormatException(
                $"config.json: field 'depths' describes {depths.Length} stages of {depths.Sum(d => (long)d)} layers together; expected at most {MostStages} stages and {MostLayers} layers.");
        return depths;
    }

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        Tensor pixels = ImagesOf(batch, _channels);
        long[] shape = pixels.shape;                                             // [batch, channels, height, width]
        IReadOnlyList<MapGrid> grids = Grids(shape[2], shape[3]);
        int empty = grids.ToList().FindIndex(g => g.Rows < 1 || g.Columns < 1);
        if (empty >= 0)
            throw new ArgumentException(
                $"Images are {shape[2]}x{shape[3]} (height x width), too small for this {Config.ModelType} backbone: {(empty == 0 ? "its embeddings" : $"its stage {empty}")} would have no place left.");
        return LayoutOver(grids[0] with { WholeWindows = batch.WholeWindows }, shape[0], pixels.device);
    }

    private static Layout LayoutOver(MapGrid grid, long batch, Device device) =>
        new(ones([batch, grid.Places], ScalarType.Int64, device), padded: false) { Grid = grid };

    // Embeddings, then each stage.
    private IReadOnlyList<MapGrid> Grids(long height, long width)
    {
        List<MapGrid> grids = [Stem(height, width)];
        for (int stage = 0; stage < _depths.Length; stage++) grids.Add(Next(stage, grids[^1]));
        return grids;
    }

    /// <summary>Sets the pass's layout to the map of a stage; inserted tokens stay.</summary>
    private protected void Enter(int stage, Pass pass)
    {
        Layout before = pass.Layout;
        Layout own = LayoutOver(Next(stage, before.Grid!), before.Batch, before.Mask.device);
        pass.Layout = before.Inserted == 0 ? own : own.Insert(before.Inserted, before.InsertedAt, before.ReadsInserted);
    }

    /// <inheritdoc/>
    public override IReadOnlyList<Tensor> StageMaps(BackboneOutput output)
    {
        if (output.HiddenStates is not { } states || output.Batch?.Pixels is not { } pixels)
            throw new ArgumentException("Maps of the stages are made of the hidden states: run the pass with KeepHiddenStates.", nameof(output));
        IReadOnlyList<MapGrid> grids = Grids(pixels.shape[2], pixels.shape[3]);
        var maps = new List<Tensor>();
        int end = 0;
        for (int i = 0; i < grids.Count; i++)
        {
            if (i > 0) end += _depths[i - 1];
            // Inserted tokens stand in front.
            maps.Add(Map(states[end].narrow(1, states[end].shape[1] - grids[i].Places, grids[i].Places), grids[i]));
        }
        return maps;
    }

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => output.Layout.Own(output.Last).mean([1]);

    /// <summary><c>[batch, places, channels]</c> to <c>[batch, channels, rows, columns]</c>; the numbers stay where they are.</summary>
    private protected static Tensor Map(Tensor tokens, MapGrid grid) =>
        tokens.reshape(tokens.shape[0], grid.Rows, grid.Columns, tokens.shape[2]).permute(0, 3, 1, 2);

    /// <summary><c>[batch, channels, rows, columns]</c> to <c>[batch, places, channels]</c>.</summary>
    private protected static Tensor Tokens(Tensor map) => map.permute(0, 2, 3, 1).reshape(map.shape[0], map.shape[2] * map.shape[3], map.shape[1]);

    /// <summary>
    /// Leaves a part out in some rows while training (stochastic depth, Huang et al. 2016, arXiv 1603.09382): a share that grows
    /// over the layers up to <paramref name="last"/>.
    /// </summary>
    /// <param name="x">Output of the part <c>[batch, places, channels]</c>.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="last">Share of the last layer.</param>
    /// <param name="pass">The running forward pass.</param>
    private protected Tensor DropPath(Tensor x, int layer, double last, Pass pass)
    {
        double share = _layers.Length < 2 ? 0 : last * layer / (_layers.Length - 1);
        if (!pass.Training || share <= 0) return x;
        return x * pass.Dropout(ones([x.shape[0], 1, 1], dtype: x.dtype, device: x.device), share);
    }

    /// <summary>Length of an axis after a convolution.</summary>
    private protected static long Convolved(long length, long kernel, long stride, long padding) =>
        length + 2 * padding < kernel ? 0 : (length + 2 * padding - kernel) / stride + 1;
}
