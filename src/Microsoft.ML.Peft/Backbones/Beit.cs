// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// BEiT (Bao et al. 2022, arXiv 2106.08254): a ViT whose attention scores have a bias by the distance of patches in rows and
/// columns, from a table of each layer or one for all, and factors on the output of each part. Its classifier reads the normed
/// mean of the patches, or the class token.
/// </summary>
public sealed class BeitBackbone : ImageEncoder
{
    // Class token to patch, patch to class token, class token to itself.
    private const int ClassRows = 3;

    private readonly Constant? _shared;
    private readonly List<Constant> _own = [];
    private readonly Norm? _norm, _poolerNorm;
    private readonly double _dropPath;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public BeitBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        _dropPath = read.Share("drop_path_rate", 0.1);
        long width = config.HiddenSize;
        AddLeading("embeddings.cls_token", SiteRole.ClassToken, 1, 1, width);
        if (read.Flag("use_mask_token", false) && Stored("embeddings.mask_token")) AddConstant("embeddings.mask_token", SiteRole.MaskToken, 1, 1, width);
        if (read.Flag("use_absolute_position_embeddings", false)) AddPositions("embeddings.position_embeddings");
        AddPatches("embeddings.patch_embeddings.projection");
        if (read.Flag("use_shared_relative_position_bias", false)) _shared = AddTable("encoder", -1);
        bool own = read.Flag("use_relative_position_bias", false), scaled = read.Number("layer_scale_init_value", 0.1) > 0;
        PreNormNames names = PreNormNames.ViT with
        {
            Biases = (true, false, true),
            FeedForwardResidual = "output_adapters",
            AttentionScale = scaled ? "lambda_1" : null,
            FeedForwardScale = scaled ? "lambda_2" : null,
        };
        for (int layer = 0; layer < config.LayerCount; layer++)
        {
            AddLayer($"encoder.layer.{layer}", layer, names);
            if (own) _own.Add(AddTable($"encoder.layer.{layer}.attention.attention", layer));
        }
        if (MeanPooling(config)) _poolerNorm = AddNorm("pooler.layernorm", SiteRole.PoolerNorm, config.LayerCount, width);
        else _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, width);
        Add(new Taps(config.LayerCount));
    }

    private sealed record Patches(long Rows, long Columns);

    /// <inheritdoc/>
    public override string Prefix => "beit";

    private protected override double DropPath => _dropPath;

    internal static BackboneConfig ReadConfig(JsonObject raw) => ReadShared(raw, "beit", leading: 1);

    private static bool MeanPooling(BackboneConfig config) => new ConfigReader(config.Raw).Flag("use_mean_pooling", true);

    private Constant AddTable(string path, int layer) => AddConstant(
        path + ".relative_position_bias.relative_position_bias_table", SiteRole.RelativePosition, layer,
        [(2L * Grid.Rows - 1) * (2L * Grid.Columns - 1) + ClassRows, Config.HeadCount]);

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        (long rows, long columns) = GridOf(batch.Pixels!);
        pass.Once<Patches>(this, () => new(rows, columns));
        return base.Embed(batch, pass);
    }

    private protected override Tensor? ScoreBias(int layer, ScalarType dtype, Pass pass)
    {
        Layout layout = pass.Layout;
        Tensor? bias = base.ScoreBias(layer, dtype, pass);
        Tensor Relative(Constant table) => Widened(Bias(table, pass), layout).to_type(dtype);
        if (_shared is not null)
        {
            Tensor shared = pass.Once((this, layout.Tokens, layout.InsertedAt, dtype), () => Relative(_shared));
            bias = bias is null ? shared : bias + shared;
        }
        if (_own.Count == 0) return bias;
        Tensor own = Relative(_own[layer]);
        return bias is null ? own : bias + own;
    }

    // [1, heads, tokens, tokens] of the row's own tokens.
    private Tensor Bias(Constant site, Pass pass)
    {
        Patches patches = pass.Once<Patches>(this, () => throw new InvalidOperationException("The embeddings come first."));
        Tensor table = site.Value(pass);
        if ((patches.Rows, patches.Columns) != Grid) table = Resized(table, patches);
        long tokens = patches.Rows * patches.Columns + 1;
        Tensor places = pass.Once((this, "places"), () => tensor(Places(patches), ScalarType.Int64, table.device));
        return table.index_select(0, places).view(tokens, tokens, -1).permute(2, 0, 1).unsqueeze(0);
    }

    // Distances lie on a grid of their own; the class token's rows are no distances.
    private Tensor Resized(Tensor table, Patches patches)
    {
        long rows = 2L * Grid.Rows - 1, columns = 2L * Grid.Columns - 1;
        Tensor wide = table.to_type(ScalarType.Float32);
        Tensor grid = wide.narrow(0, 0, rows * columns).view(rows, columns, -1).permute(2, 0, 1);              // [heads, rows, columns]
        Tensor scaled = Interpolation.Resize(grid, 2 * patches.Rows - 1, 2 * patches.Columns - 1, Interpolation.Linear);
        return cat([scaled.flatten(1).t(), wide.narrow(0, rows * columns, ClassRows)], 0).to_type(table.dtype);
    }

    // Row of the table for each pair of tokens, [tokens · tokens].
    private static long[] Places(Patches patches)
    {
        (long rows, long columns) = patches;
        long count = rows * columns, tokens = count + 1, distances = (2 * rows - 1) * (2 * columns - 1);
        var places = new long[tokens * tokens];
        for (long i = 0; i < count; i++)
            for (long j = 0; j < count; j++)
                places[(i + 1) * tokens + j + 1] = (i / columns - j / columns + rows - 1) * (2 * columns - 1) + i % columns - j % columns + columns - 1;
        for (long i = 1; i < tokens; i++) (places[i], places[i * tokens]) = (distances, distances + 1);
        places[0] = distances + 2;
        return places;
    }

    // Inserted tokens have no place: nothing is added to their scores.
    private static Tensor Widened(Tensor own, Layout layout)
    {
        if (layout.Tokens - layout.Inserted != own.shape[2])
            throw new NotSupportedException($"beit has a bias for each pair of its {own.shape[2]} tokens, of which {layout.Tokens - layout.Inserted} are left: methods that drop or join tokens do not fit it.");
        if (layout.Inserted == 0) return own;
        foreach (int axis in (int[])[2, 3])
        {
            long[] shape = own.shape;
            long at = layout.InsertedAt, rest = shape[axis] - at;
            shape[axis] = layout.Inserted;
            own = cat([own.narrow(axis, 0, at), zeros(shape, dtype: own.dtype, device: own.device), own.narrow(axis, at, rest)], axis);
        }
        return own;
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm?.Forward(hidden, pass) ?? hidden;

    /// <inheritdoc/>
    public override Tensor Pool(BackboneOutput output, Pass pass) => _poolerNorm?.Forward(MeanOfPatches(output), pass) ?? output.First();

    /// <inheritdoc/>
    public override bool ClassifierReadsFirstTokenOnly => _norm is not null;

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => Pool(output, pass);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new BeitBackbone(Config, weights);
}
