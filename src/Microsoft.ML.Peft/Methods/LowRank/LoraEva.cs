// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// EVA (Paischer et al. 2024, arXiv 2410.07170): A starts with the principal components of what its module reads, B with 0, and
/// the ranks go where the components explain most. The components come from an incremental decomposition over the first
/// batches, again and again until they stay. Afterwards it is a plain LoRA with ranks by module.
/// </summary>
public sealed class EvaStart : LoraStart
{
    private const int MostRounds = 200;

    /// <summary>ρ: the largest rank of a module is ρ times the rank that it was given, 1 or more; 1 leaves all ranks as they are.</summary>
    public double Rho { get; set; } = 2;

    /// <summary>τ in [0, 1]: a component has come to rest when its cosine with its predecessor is at least this.</summary>
    public double Tau { get; set; } = 0.99;

    /// <summary>True to divide the components by the roots of their singular values.</summary>
    public bool Whiten { get; set; }

    /// <summary>True to let α grow with the rank, so that the scaling stays.</summary>
    public bool AdjustScaling { get; set; } = true;

    internal override bool ChangesBase => false;

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        base.Validate(invalid);
        if (!(Rho >= 1) || !double.IsFinite(Rho)) throw invalid(nameof(Rho), Rho, "a finite number, 1 or more");
        if (!(Tau is >= 0 and <= 1)) throw invalid(nameof(Tau), Tau, "0 to 1");
    }

    // Before it is made there is nothing to say of it; afterwards it is a plain LoRA.
    internal override void Write(JsonObject config)
    {
    }

    internal override void Make(LoraAdaptation adaptation, LoraOptions options, Calibration calibration)
    {
        LoraFactors[] maps = Maps(adaptation);
        Dictionary<LoraFactors, int> given = maps.ToDictionary(f => f, f => (int)f.A.Value.shape[0]);
        Dictionary<LoraFactors, int> most = maps.ToDictionary(f => f,
            f => (int)Math.Min(Math.Round(given[f] * Rho, MidpointRounding.ToEven), Math.Min(f.Site.Weight.shape[0], f.Site.Weight.shape[1])));
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Dictionary<LoraFactors, Components> found = Decompose(maps, most, given.Values.Sum(), calibration, out Dictionary<LoraFactors, int> ranks);
        foreach (LoraFactors f in maps)
        {
            if (ranks[f] == 0)
            {
                adaptation.Remove(f);
                continue;
            }
            Tensor a = found[f].Directions!.narrow(0, 0, ranks[f]);
            if (Whiten) a = a / found[f].Singular!.narrow(0, 0, ranks[f]).sqrt().unsqueeze(1);
            Resize(f.A, a.to_type(ScalarType.Float32));
            Resize(f.B, zeros([f.B.Value.shape[0], ranks[f]], device: f.B.Value.device));
            if (!AdjustScaling) f.Scale = options.AlphaAt(adaptation.Backbone.PathOf(f.Site)) / (options.UseRsLora ? Math.Sqrt(ranks[f]) : ranks[f]);
        }
        foreach (Components components in found.Values.Distinct()) components.Dispose();
        Tell(adaptation, options, given);
    }

    private static void Resize(NamedParameter parameter, Tensor value)
    {
        parameter.Replace(value.contiguous().to(parameter.Value.device));
        parameter.SetTrainable(parameter.Trainable);
    }

    // Sites that read one tensor share one decomposition, the first one's. A site whose components rest is not watched.
    private Dictionary<LoraFactors, Components> Decompose(
        LoraFactors[] maps, Dictionary<LoraFactors, int> most, int budget, Calibration calibration, out Dictionary<LoraFactors, int> ranks)
    {
        Dictionary<WeightSite, LoraFactors> bySite = maps.ToDictionary(f => f.Site);
        Dictionary<LoraFactors, LoraFactors> leader = Leaders(maps, bySite, calibration);
        LoraFactors[] leaders = [.. leader.Values.Distinct()];
        Dictionary<LoraFactors, Components> own = leaders.ToDictionary(f => f, f => new Components(leader.Where(l => l.Value == f).Max(l => most[l.Key])));
        ranks = new(most);
        for (int round = 0; ; round++)
        {
            Dictionary<LoraFactors, int> now = ranks;
            WeightSite[] open = [.. leaders.Where(f => !own[f].Rests(now[f], Tau)).Select(f => f.Site)];
            if (open.Length == 0) break;
            if (round == MostRounds)
                throw new InvalidOperationException(
                    $"EVA's components of {string.Join(", ", open.Take(5).Select(s => s.Name))} did not come to rest in {MostRounds} batches; give more rows, a lower Tau, or a lower rank.");
            using var scope = NewDisposeScope();
            Dictionary<WeightSite, Tensor> seen = [];
            Tensor counted = calibration.Inputs(round % calibration.Batches, open, (site, x) => seen[site] = Keep(x));
            foreach ((WeightSite site, Tensor x) in seen) own[bySite[site]].Add(Rows(x, counted));
            if (own.Values.Any(c => c.Directions is null)) continue;
            ranks = Deal(maps, leader, own, most, budget);
        }
        return maps.ToDictionary(f => f, f => own[leader[f]]);
    }

    // The part of the network that made it frees its tensors at its end.
    private static Tensor Keep(Tensor x) => x.detach().clone().DetachFromDisposeScope();

    private static Tensor Rows(Tensor x, Tensor counted)
    {
        Tensor rows = x.reshape(-1, x.shape[^1]).to_type(ScalarType.Float64);
        if (rows.shape[0] == counted.numel()) rows = rows.index_select(0, counted.reshape(-1).nonzero().reshape(-1).to(rows.device));
        x.Dispose();
        return rows;
    }

    private static Dictionary<LoraFactors, LoraFactors> Leaders(LoraFactors[] maps, Dictionary<WeightSite, LoraFactors> bySite, Calibration calibration)
    {
        Dictionary<LoraFactors, LoraFactors> leader = [];
        (Tensor? Input, LoraFactors? First) last = (null, null);
        using var scope = NewDisposeScope();
        calibration.Inputs(0, maps.Select(f => f.Site), (site, x) =>
        {
            if (!ReferenceEquals(x, last.Input)) last = (x, bySite[site]);
            leader[bySite[site]] = last.First!;
        });
        return leader;
    }

    // The components of all modules in the order of what they explain; the budget goes to the first of them.
    private static Dictionary<LoraFactors, int> Deal(
        LoraFactors[] maps, Dictionary<LoraFactors, LoraFactors> leader, Dictionary<LoraFactors, Components> own, Dictionary<LoraFactors, int> most, int budget)
    {
        var pool = maps.SelectMany(f => own[leader[f]].Explained(most[f]).Select(share => (f, share)));
        Dictionary<LoraFactors, int> ranks = maps.ToDictionary(f => f, _ => 0);
        foreach ((LoraFactors f, double _) in pool.OrderByDescending(p => p.share).Take(budget)) ranks[f]++;
        foreach (LoraFactors f in maps)
            if (ranks[leader[f]] < ranks[f]) (ranks[leader[f]], ranks[f]) = (ranks[f], ranks[leader[f]]);
        return ranks;
    }

    private void Tell(LoraAdaptation adaptation, LoraOptions options, Dictionary<LoraFactors, int> given)
    {
        OrderedDictionary<string, int> ranks = [];
        OrderedDictionary<string, double> alphas = [];
        foreach (LoraFactors f in adaptation.Factors)
        {
            string path = adaptation.Backbone.PathOf(f.Site), key = path.Replace(".", @"\.", StringComparison.Ordinal);
            int rank = (int)f.A.Value.shape[0], before = given.GetValueOrDefault(f, rank);
            double alpha = options.AlphaAt(path) * (AdjustScaling ? (double)rank / before : 1);
            if (AdjustScaling && options.UseRsLora) alpha = options.AlphaAt(path) * Math.Sqrt((double)rank / before);
            if (rank != options.Rank) ranks[key] = rank;
            if (alpha != options.Alpha) alphas[key] = alpha;
        }
        (options.RankPattern, options.AlphaPattern, options.DataStart) = (ranks, alphas, null);
        (options.TargetPattern, options.ExcludePattern, options.ExcludeTargets, options.Layers, options.LayersPattern) = (null, null, [], [], []);
        options.Targets = [.. adaptation.Factors.Select(f => adaptation.Backbone.PathOf(f.Site))];
    }
}
