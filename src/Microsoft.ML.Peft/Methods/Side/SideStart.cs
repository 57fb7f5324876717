// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The weights of one layer, cut to the kept channels.</summary>
internal sealed record SidePruned(
    SidePruned.Maps Self, SidePruned.Maps? Cross, (Tensor Weight, Tensor? Bias)? Gate, (Tensor Weight, Tensor? Bias) Up, (Tensor Weight, Tensor? Bias) Down,
    (Tensor Weight, Tensor? Bias) Norm1, (Tensor Weight, Tensor? Bias)? NormCross, (Tensor Weight, Tensor? Bias) Norm2)
{
    public sealed record Maps((Tensor Weight, Tensor? Bias) Query, (Tensor Weight, Tensor? Bias) Key, (Tensor Weight, Tensor? Bias) Value, (Tensor Weight, Tensor? Bias) Output);
}

/// <summary>
/// Structural pruning of the backbone for the start of a side network: of each map the 1/r rows of largest magnitude, and as
/// columns what the map before it kept, chained from the embeddings on (Sung et al. 2022, section 3.3; magnitudes in the
/// place of Fisher information).
/// </summary>
internal sealed class SideStart(Backbone backbone, int reduction)
{
    private long[] _channels = [];

    /// <summary>Starts a stack at the embeddings.</summary>
    public void Begin()
    {
        Tensor scores = backbone.Sites.OfType<Embedding>().FirstOrDefault(s => s.Role == SiteRole.WordEmbedding) is { } words
            ? words.Weight.to_type(ScalarType.Float32).abs().sum(0L)
            : backbone.Sites.OfType<Convolution>().First(s => s.Role == SiteRole.PatchEmbedding).Weight.to_type(ScalarType.Float32).abs().flatten(1).sum(1);
        _channels = scores.shape[0] == backbone.Config.HiddenSize ? Top(scores)
            : [.. Enumerable.Range(0, backbone.Config.HiddenSize / reduction).Select(i => (long)i)];       // factorised embeddings say nothing
    }

    // Places of the largest scores, rising; of equal ones the first.
    private long[] Top(Tensor scores)
    {
        float[] values = scores.to_type(ScalarType.Float32).cpu().contiguous().data<float>().ToArray();
        return [.. Enumerable.Range(0, values.Length).OrderByDescending(i => values[i]).Take(values.Length / reduction).Order().Select(i => (long)i)];
    }

    private static Tensor Rows(Tensor weight, long[] rows) => weight.index_select(0, tensor(rows, device: weight.device));

    private static Tensor Columns(Tensor weight, long[] columns) => weight.to_type(ScalarType.Float32).index_select(1, tensor(columns, device: weight.device));

    private static (Tensor Weight, Tensor? Bias) Cut(Tensor columns, Tensor? bias, long[] rows) =>
        (Rows(columns, rows), bias is null ? null : Rows(bias.to_type(ScalarType.Float32), rows));

    private (Tensor, Tensor?) Norm(Norm norm) =>
        (Rows(norm.Weight.to_type(ScalarType.Float32), _channels), norm.Bias is null ? null : Rows(norm.Bias.to_type(ScalarType.Float32), _channels));

    /// <summary>The table of relative positions of the stack whose first layer is given, or null.</summary>
    public Tensor? Relative(int first) =>
        backbone.Sites.OfType<Embedding>().FirstOrDefault(s => s.Role == SiteRole.RelativePosition && s.Layer == first)?.Weight.to_type(ScalarType.Float32, copy: true);

    /// <summary>The norm behind the last layer, where the backbone has one.</summary>
    public (Tensor, Tensor?)? FinalNorm(int layer) =>
        backbone.Sites.OfType<Norm>().FirstOrDefault(s => s.Role == SiteRole.FinalNorm && s.Layer == layer) is { } norm ? Norm(norm) : null;

    /// <summary>The next layer; layers without a side block are walked through as well.</summary>
    public SidePruned Layer(int layer)
    {
        // ALBERT runs the same sites in every layer.
        Site[] all = [.. backbone.Sites.Where(s => s.Layer == layer)];
        Site[] sites = all.OfType<Projection>().Any() ? all : [.. backbone.Sites.Where(s => s.Layer >= 0 && s.Layer < backbone.Config.LayerCount)];
        T One<T>(SiteRole role) where T : Site => sites.OfType<T>().First(s => s.Role == role);
        bool post = backbone.PostNorm;
        Projection[] outputs = [.. sites.OfType<Projection>().Where(p => p.Role == SiteRole.AttentionOutput)];

        (Tensor, Tensor?) norm1 = default, norm2 = default;
        (Tensor, Tensor?)? normCross = null;
        if (!post) norm1 = Norm(One<Norm>(SiteRole.AttentionNorm));
        SidePruned.Maps self = Attention(sites, outputs[0], cross: false), cross = self;
        if (post) norm1 = Norm(One<Norm>(SiteRole.AttentionNorm));
        if (outputs.Length > 1)
        {
            normCross = Norm(One<Norm>(SiteRole.CrossAttentionNorm));
            cross = Attention(sites, outputs[1], cross: true);
        }
        if (!post) norm2 = Norm(One<Norm>(SiteRole.FeedForwardNorm));
        Projection? gateSite = sites.OfType<Projection>().FirstOrDefault(p => p.Role == SiteRole.FeedForwardGate);
        (Tensor, Tensor?)? gate = null;
        (Tensor, Tensor?) up = gateSite is null ? Map(One<Projection>(SiteRole.FeedForwardUp), _channels, out long[] inner)
            : Gated(gateSite, One<Projection>(SiteRole.FeedForwardUp), out gate, out inner);
        (Tensor, Tensor?) down = Map(One<Projection>(SiteRole.FeedForwardDown), inner, out _channels);
        if (post) norm2 = Norm(One<Norm>(SiteRole.FeedForwardNorm));
        return new SidePruned(self, outputs.Length > 1 ? cross : null, gate, up, down, norm1, normCross, norm2);
    }

    private (Tensor, Tensor?) Map(Projection map, long[] columns, out long[] rows)
    {
        Tensor kept = Columns(map.Weight, columns);
        rows = Top(kept.abs().sum(1));
        return Cut(kept, map.Bias, rows);
    }

    // What is multiplied number by number keeps the same rows: those where both are large.
    private (Tensor, Tensor?) Gated(Projection gate, Projection up, out (Tensor, Tensor?)? gated, out long[] rows)
    {
        Tensor first = Columns(gate.Weight, _channels), second = Columns(up.Weight, _channels);
        rows = Top((first.abs() * second.abs()).sum(1));
        gated = Cut(first, gate.Bias, rows);
        return Cut(second, up.Bias, rows);
    }

    // Queries, keys and values keep the same rows: those where all three are large.
    private SidePruned.Maps Attention(Site[] sites, Projection output, bool cross)
    {
        (Tensor Weight, Tensor? Bias)[] maps = Parts(sites, cross);
        Tensor[] kept = [.. maps.Select(m => Columns(m.Weight, _channels))];
        long[] rows = Top(kept.Select(k => k.abs()).Aggregate((a, b) => a * b).sum(1));
        (Tensor, Tensor?) Part(int i) => Cut(kept[i], maps[i].Bias, rows);
        return new SidePruned.Maps(Part(0), Part(1), Part(2), Map(output, rows, out _channels));
    }

    private static (Tensor Weight, Tensor? Bias)[] Parts(Site[] sites, bool cross)
    {
        if (sites.OfType<Projection>().FirstOrDefault(p => p.Role == SiteRole.QueryKeyValue) is { } fused)
        {
            long size = fused.Out / 3;
            return [.. Enumerable.Range(0, 3).Select(i => (fused.Weight.narrow(0, i * size, size), fused.Bias?.narrow(0, i * size, size)))];
        }
        Projection Of(SiteRole role) => sites.OfType<Projection>().Where(p => p.Role == role).ElementAt(cross ? 1 : 0);
        return [.. new[] { SiteRole.Query, SiteRole.Key, SiteRole.Value }.Select(role => (Of(role).Weight, Of(role).Bias))];
    }
}
