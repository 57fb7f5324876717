// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>One combination of checked adapters.</summary>
internal sealed class AdapterMerger(LoraAdaptation[] adapters, double[] weights, AdapterMergeOptions options)
{
    private bool OnUpdates => options.Combination == AdapterCombination.Svd || options.Combination.ToString().EndsWith("Svd", StringComparison.Ordinal);

    private bool Elects => options.Combination is AdapterCombination.Ties or AdapterCombination.TiesSvd or AdapterCombination.DareTies or AdapterCombination.DareTiesSvd;

    private bool Drops => options.Combination.ToString().StartsWith("Dare", StringComparison.Ordinal);

    private bool Prunes => options.Combination is AdapterCombination.Ties or AdapterCombination.TiesSvd or AdapterCombination.MagnitudePrune or AdapterCombination.MagnitudePruneSvd;

    public PeftAdaptation Run()
    {
        int rank = Rank();
        Dictionary<WeightSite, List<(LoraFactors Factors, double Weight, int Number)>> sites = [];
        for (int i = 0; i < adapters.Length; i++)
            foreach (LoraFactors factors in adapters[i].Factors)
            {
                if (!sites.TryGetValue(factors.Site, out var list)) sites[factors.Site] = list = [];
                list.Add((factors, weights[i] * factors.Scale, i));
            }
        LoraAdaptation made = Attach(rank, [.. sites.Keys]);
        try
        {
            using var scope = NewDisposeScope();
            using var off = no_grad();
            foreach (LoraFactors target in made.Factors)
            {
                var parts = sites[target.Site];
                (Tensor a, Tensor b) = options.Combination == AdapterCombination.Cat ? SideBySide(parts)
                    : OnUpdates ? CutBack(parts, rank, target) : OnFactors(parts, target);
                Fill(target.A, a, 0);
                Fill(target.B, b, 1);
            }
            CopyWholeModules(made);
            return made;
        }
        catch
        {
            made.Dispose();
            throw;
        }
    }

    // The rank that the options name, patterns included: what any site may have.
    private static int MostOf(LoraOptions lora) => lora.RankPattern.Values.Append(lora.Rank).Max();

    private int Rank()
    {
        int[] ranks = [.. adapters.Select(a => MostOf((LoraOptions)a.Method))];
        if (options.Combination == AdapterCombination.Cat) return ranks.Sum();
        if (OnUpdates) return options.SvdRank ?? ranks.Max();
        if (ranks.Distinct().Count() > 1)
            throw new ArgumentException(
                $"The adapters have the ranks {string.Join(", ", ranks)}; {AdapterMerging.NameOf(options.Combination)} adds factors and needs equal ones. Use cat, svd or one of the _svd forms.");
        return ranks[0];
    }

    // The first adapter's options over the sites of all; by the union of the names where that names exactly these sites.
    private LoraAdaptation Attach(int rank, HashSet<WeightSite> sites)
    {
        LoraOptions[] given = [.. adapters.Select(a => (LoraOptions)a.Method)];
        LoraOptions plain = given[0].Copy();
        (plain.Rank, plain.Alpha, plain.Init, plain.DataStart, plain.RankPattern, plain.AlphaPattern) = (rank, rank, "default", null, [], []);
        plain.ModulesToSave = given.FirstOrDefault(g => g.ModulesToSave.Length > 0)?.ModulesToSave ?? [];
        if (options.PlainScale) plain.UseRsLora = false;
        if (given.All(g => g.TargetPattern is not null)) plain.TargetPattern = string.Join('|', given.Select(g => g.TargetPattern).Distinct().Select(p => $"({p})"));
        else if (given.All(g => g.TargetPattern is null && g.Targets.Length > 0)) plain.Targets = [.. given.SelectMany(g => g.Targets).Distinct()];
        if (given.All(g => (g.TargetPattern is null) == (given[0].TargetPattern is null)))
        {
            var made = (LoraAdaptation)plain.Attach(adapters[0].Backbone, 0);
            if (sites.SetEquals(made.Factors.Select(f => f.Site))) return made;
            made.Dispose();
        }
        (plain.TargetPattern, plain.ExcludePattern, plain.ExcludeTargets, plain.Layers, plain.LayersPattern) = (null, null, [], [], []);
        plain.Targets = [.. sites.OrderBy(s => s.Index).Select(adapters[0].Backbone.PathOf)];
        return (LoraAdaptation)plain.Attach(adapters[0].Backbone, 0);
    }

    // A part of lower rank (a site that an adapter lacks, a rank pattern) is filled up with zeros.
    private static void Fill(NamedParameter target, Tensor value, int axis)
    {
        target.Value.fill_(0);
        long rank = Math.Min(value.shape[axis], target.Value.shape[axis]);
        Tensor place = target.Value.narrow(axis, 0, rank);
        place.copy_(value.narrow(axis, 0, rank).reshape(place.shape));
    }

    private void CopyWholeModules(LoraAdaptation made)
    {
        HashSet<NamedParameter> factors = [.. made.Factors.SelectMany(f => new[] { f.A, f.B })];
        foreach (NamedParameter parameter in made.Parameters.Where(p => !factors.Contains(p)))
            parameter.Load(adapters.Select(a => a.Find(parameter.Name)).First(p => p is not null)!.Value);
    }

    private static Tensor Flat(NamedParameter factor) => factor.Value.detach().to_type(ScalarType.Float32).reshape(factor.Value.shape[0], -1);

    private static (Tensor A, Tensor B) SideBySide(List<(LoraFactors Factors, double Weight, int Number)> parts) => (
        cat([.. parts.Select(p => Flat(p.Factors.A) * p.Weight)], 0),
        cat([.. parts.Select(p => Flat(p.Factors.B))], 1));

    private (Tensor A, Tensor B) OnFactors(List<(LoraFactors Factors, double Weight, int Number)> parts, LoraFactors target)
    {
        double[] roots = [.. parts.Select(p => Math.Sqrt(Math.Abs(p.Weight)))];
        double[] signed = [.. parts.Select((p, i) => p.Weight < 0 ? -roots[i] : roots[i])];
        string Name(NamedParameter p, int number) => $"{p.Name}/{number}";
        return (
            Sum([.. parts.Select(p => (Flat(p.Factors.A), Name(target.A, p.Number)))], signed),
            Sum([.. parts.Select(p => (Flat(p.Factors.B), Name(target.B, p.Number)))], roots));
    }

    // Updates are pruned as they lie in the file; masks then mean the same entries.
    private (Tensor A, Tensor B) CutBack(List<(LoraFactors Factors, double Weight, int Number)> parts, int rank, LoraFactors target)
    {
        bool turned = target.Site is Embedding or Projection { StoredTransposed: true };
        Tensor Stored(LoraFactors f)
        {
            Tensor product = Flat(f.B).matmul(Flat(f.A));
            return turned ? product.t().contiguous() : product;
        }
        // The scaling is part of the update.
        Tensor delta = Sum([.. parts.Select(p => (Stored(p.Factors) * p.Factors.Scale, $"{target.B.Name}/{p.Number}"))], [.. parts.Select(p => weights[p.Number])]);
        (Tensor a, Tensor b) = Factors.Nearest(turned ? delta.t() : delta, _ => rank);
        if (options.SignWith is { } signs) (a, b) = (a * signs(target.Site, a.shape[0]).unsqueeze(1), b * signs(target.Site, a.shape[0]));
        if (options.SvdClamp is not { } clamp) return (a, b);
        Tensor limit = cat([b.flatten(), a.flatten()]).quantile(tensor((float)clamp), 0);
        float most = limit.item<float>();
        return (a.clamp(-most, most), b.clamp(-most, most));
    }

    // The weighted sum of what pruning and the election leave.
    private Tensor Sum((Tensor Value, string Name)[] parts, double[] scales)
    {
        Tensor all = stack([.. parts.Select(p => Thin(p.Value, p.Name))], 0);
        long[] column = [scales.Length, .. all.shape.Skip(1).Select(_ => 1L)];
        Tensor scaled = all * tensor(scales.Select(s => (float)s).ToArray()).to(all.device).view(column);
        if (!Elects) return scaled.sum(0L);
        Tensor sign = all.sign();
        Tensor votes = options.MajoritySign == MajoritySign.Total ? all.sum(0L) : sign.sum(0L);
        Tensor elected = (votes >= 0).to_type(all.dtype) * 2 - 1;
        Tensor agree = sign.eq(elected).to_type(all.dtype);
        return (scaled * agree).sum(0L) / agree.sum(0L).clamp(min: 1);
    }

    private Tensor Thin(Tensor value, string name)
    {
        if (options.Density is not { } density || density >= 1) return value;
        if (Drops) return value * Mask(value, density, name) / density;
        if (!Prunes) return value;
        int count = (int)(density * value.numel());
        Tensor flat = value.flatten(), mask = zeros_like(flat);
        if (count > 0) mask.index_fill_(0, flat.abs().topk(count, 0).indexes, 1);
        return (flat * mask).view(value.shape);
    }

    private Tensor Mask(Tensor value, double density, string name)
    {
        if (options.MaskWith is not null) return options.MaskWith(value.shape).to_type(value.dtype).to(value.device).view(value.shape);
        var draws = new Draws(options.Seed, name);
        var kept = new float[value.numel()];
        for (int i = 0; i < kept.Length; i++) kept[i] = draws.Next() < density ? 1 : 0;
        return tensor(kept, value.shape.AsSpan()).to(value.device);
    }
}
