// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// What AdapterHub's low-rank methods share: which projections are adapted, by what they do instead of by name. A fused
/// projection to queries, keys and values is adapted block by block.
/// </summary>
public abstract class HubLowRankOptions : PeftMethod
{
    /// <summary>Name of the adapter inside tensor names.</summary>
    public string Name { get; set; } = "default";

    /// <summary>Which of the attention's projections: <c>q</c>, <c>k</c>, <c>v</c>.</summary>
    public string[] AttentionMatrices { get; set; } = ["q", "v"];

    /// <summary>False to leave the attention alone.</summary>
    public bool SelfAttention { get; set; } = true;

    /// <summary>True for the first feed-forward projection.</summary>
    public bool Intermediate { get; set; }

    /// <summary>True for the last feed-forward projection.</summary>
    public bool Output { get; set; }

    /// <summary>Rank r of the update, 1 to 4096.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>α: the update is scaled by α/r.</summary>
    public double Alpha { get; set; } = 8;

    /// <summary>Share of the entries of x, in [0, 1), that the update does not see while training.</summary>
    public double Dropout { get; set; }

    /// <summary>Layers that are left as they are, numbered from 0; in networks with a decoder through both stacks.</summary>
    public int[] LeaveOut { get; set; } = [];

    /// <summary>A seed that AdapterHub's files may hold; kept for them, the seed of <see cref="PeftMethod.Attach"/> draws.</summary>
    public long? InitSeed { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Family => "low rank";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Name.Length == 0 || Name.Contains('.')) throw Invalid(nameof(Name), $"'{Name}'", "a name without dots");
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (!(Alpha > 0) || !double.IsFinite(Alpha)) throw Invalid(nameof(Alpha), Alpha, "a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
        foreach (string matrix in AttentionMatrices)
            if (matrix is not ("q" or "k" or "v")) throw Invalid(nameof(AttentionMatrices), $"'{matrix}'", "q, k and v");
        if (!Intermediate && !Output && (!SelfAttention || AttentionMatrices.Length == 0))
            throw Invalid(nameof(AttentionMatrices), "[]", "at least one of q, k, v, or Intermediate or Output: nothing is adapted");
    }

    /// <summary>The projections that are adapted, in the order of the network, with the adapted blocks of each.</summary>
    /// <param name="backbone">The frozen network.</param>
    private protected IReadOnlyList<HubProjection> Places(Backbone backbone)
    {
        // The package has the two switches of the feed-forward part the other way round on LLaMA.
        bool swapped = backbone.Config.ModelType is "llama" or "mistral";
        bool up = swapped ? Output : Intermediate, down = swapped ? Intermediate : Output;
        List<HubProjection> places = [];
        foreach (Projection site in backbone.Sites.OfType<Projection>())
        {
            if (LeaveOut.Contains(site.Layer)) continue;
            bool Has(string matrix) => SelfAttention && AttentionMatrices.Contains(matrix);
            bool whole = site.Role switch
            {
                SiteRole.Query => Has("q"),
                SiteRole.Key => Has("k"),
                SiteRole.Value => Has("v"),
                SiteRole.FeedForwardUp => up,
                SiteRole.FeedForwardDown => down,
                _ => false,
            };
            string path = $"{HubNames.Path(backbone, site.Name)}.loras.{Name}";
            if (whole) places.Add(new HubProjection(site, path, 1, [0]));
            else if (site.Role == SiteRole.QueryKeyValue && new[] { "q", "k", "v" }.Any(Has))
                places.Add(new HubProjection(site, path, 3, [.. Enumerable.Range(0, 3).Where(i => Has("qkv"[i].ToString()))]));
        }
        return places.Count > 0 ? places : throw new ArgumentException(
            $"No projection is left to adapt in this {backbone.Config.ModelType} backbone of {backbone.Config.LayerCount} layers: LeaveOut is [{string.Join(", ", LeaveOut)}].", nameof(LeaveOut));
    }

    private protected void ReadCommon(JsonObject config)
    {
        AttentionMatrices = config.ContainsKey("attn_matrices") ? [.. AdapterConfig.List<string>(config, "attn_matrices")] : ["q", "v"];
        SelfAttention = AdapterConfig.Get(config, "selfattn_lora", true);
        Intermediate = AdapterConfig.Get(config, "intermediate_lora", false);
        Output = AdapterConfig.Get(config, "output_lora", false);
        Rank = AdapterConfig.Get(config, "r", 8);
        Alpha = AdapterConfig.Get(config, "alpha", 8.0);
        Dropout = AdapterConfig.Get(config, "dropout", 0.0);
        LeaveOut = HubNames.Numbers(config, "leave_out");
        InitSeed = HubNames.ReadSeed(config);
    }

    private protected JsonObject WriteCommon(string architecture) => new()
    {
        ["alpha"] = AdapterConfig.Number(Alpha),
        ["architecture"] = architecture,
        ["attn_matrices"] = AdapterConfig.Array(AttentionMatrices),
        ["dropout"] = Dropout,
        ["dtype"] = null,
        ["init_weights_seed"] = HubNames.Seed(InitSeed),
        ["intermediate_lora"] = Intermediate,
        ["leave_out"] = AdapterConfig.Array(LeaveOut),
        ["output_lora"] = Output,
        ["r"] = Rank,
        ["selfattn_lora"] = SelfAttention,
    };

    /// <summary>Makes an adaptation place by place; a failure leaves nothing behind.</summary>
    private protected PeftAdaptation Build(Backbone backbone, Action<PeftAdaptation> fill)
    {
        Validate();
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new PeftAdaptation(this, backbone);
        try
        {
            fill(adaptation);
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }
}

/// <summary>A projection and the blocks of its outputs that are adapted.</summary>
/// <param name="Site">The projection.</param>
/// <param name="Path">Path of its tensors.</param>
/// <param name="Blocks">Blocks that the outputs are cut into: 3 for a fused projection.</param>
/// <param name="Adapted">The adapted ones, rising.</param>
internal sealed record HubProjection(Projection Site, string Path, int Blocks, int[] Adapted)
{
    /// <summary>Outputs of one block.</summary>
    public long BlockOut => Site.Out / Blocks;

    /// <summary>Adapted outputs.</summary>
    public long Out => BlockOut * Adapted.Length;

    /// <summary>Lays the adapted blocks of a vector out over all outputs, the rest filled.</summary>
    /// <param name="values"><c>[..., adapted outputs]</c>.</param>
    /// <param name="fill">What the other outputs get.</param>
    public Tensor Spread(Tensor values, double fill)
    {
        if (Adapted.Length == Blocks) return values;
        long[] shape = [.. values.shape[..^1], BlockOut];
        return cat([.. Enumerable.Range(0, Blocks).Select(i => Array.IndexOf(Adapted, i) is >= 0 and var at
            ? values.narrow(-1, at * BlockOut, BlockOut)
            : zeros(shape, dtype: values.dtype, device: values.device) + fill)], -1);
    }

    /// <summary>One second factor for all outputs <c>[out, rank · adapted]</c>: block-diagonal, zeros elsewhere.</summary>
    /// <param name="b">The blocks' second factors, one below the other, <c>[adapted outputs, rank]</c>.</param>
    public Tensor Joined(Tensor b)
    {
        if (Blocks == 1) return b;
        long rank = b.shape[1], count = Adapted.Length;
        Tensor Row(int at)
        {
            Tensor block = b.narrow(0, at * BlockOut, BlockOut);
            Tensor Zero(long columns) => zeros([BlockOut, columns], dtype: b.dtype, device: b.device);
            return cat([Zero(at * rank), block, Zero((count - 1 - at) * rank)], 1);
        }
        return cat([.. Enumerable.Range(0, Blocks).Select(i => Array.IndexOf(Adapted, i) is >= 0 and var at
            ? Row(at) : zeros([BlockOut, rank * count], dtype: b.dtype, device: b.device))], 0);
    }
}
