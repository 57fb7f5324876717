// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

// A table and the output layer that shares it, adapted as one.
public sealed partial class LoraOptions
{
    private static readonly string[] _tiedNames = ["embed_tokens", "lm_head"];

    /// <summary>The sites that get factors of their own: of a tied pair the table.</summary>
    private IReadOnlyList<WeightSite> AdaptedSites(Backbone backbone)
    {
        IReadOnlyList<WeightSite> chosen = SelectSites(backbone);
        if (TiedHead(backbone, chosen) is not { } head) return chosen;
        if (UseDora) throw Invalid(nameof(UseDora), UseDora, "false with EnsureWeightTying, where the table is adapted");
        if (LoraBias) throw Invalid(nameof(LoraBias), LoraBias, "false with EnsureWeightTying, where the table is adapted");
        return [.. chosen.Where(site => site != head).Append(head.TiedTo!).Distinct().OrderBy(site => site.Index)];
    }

    private Projection? TiedHead(Backbone backbone) => EnsureWeightTying ? TiedHead(backbone, SelectSites(backbone)) : null;

    // The output layer whose table the targets adapt, by the names that mean both.
    private Projection? TiedHead(Backbone backbone, IReadOnlyList<WeightSite> chosen)
    {
        if (!EnsureWeightTying || SharedHead(backbone) is not { } head) return null;
        string path = backbone.PathOf(head.TiedTo!);
        bool named = TargetPattern is not null || Targets.Any(name => char.IsAsciiLetterUpper(name[0]) || MeansBoth(name, path));
        return chosen.Contains(head) || (chosen.Contains(head.TiedTo!) && named) ? head : null;
    }

    private static bool MeansBoth(string name, string path) => name == path || _tiedNames.Any(tied => TargetMatcher.Names(tied, name));

    // A role is written as a short name, which would mean the table alone.
    private void NameTied(JsonObject config, Backbone backbone)
    {
        if (TiedHead(backbone) is not { } head || config["target_modules"] is not JsonArray names) return;
        string path = backbone.PathOf(head.TiedTo!);
        if (!names.Any(name => MeansBoth((string)name!, path))) names.Add(backbone.PathOf(head));
    }

    private static Projection? SharedHead(Backbone backbone) => backbone.Sites.OfType<Projection>().FirstOrDefault(site => site.TiedTo is not null);

    // Of a tied pair that is trained whole, the table.
    private List<WeightSite> OnceEach(Backbone backbone, IReadOnlyList<WeightSite> whole) =>
        EnsureWeightTying && SharedHead(backbone) is { } head && whole.Any(site => site == head || site == head.TiedTo)
            ? [.. whole.Where(site => site != head).Append(head.TiedTo!).Distinct()]
            : [.. whole];

    private void AddWhole(LoraAdaptation adaptation)
    {
        Backbone backbone = adaptation.Backbone;
        foreach (WeightSite site in OnceEach(backbone, SavedWhole(backbone)))
        {
            if (!EnsureWeightTying || SharedHead(backbone) is not { } head || head.TiedTo != site)
            {
                TrainedCopies.Whole(adaptation, site);
                continue;
            }
            NamedParameter table = adaptation.Add(new NamedParameter($"{backbone.PathOf(site)}.weight", TrainedCopies.Copy(site.Weight)) { Copies = [$"{backbone.PathOf(head)}.weight"] });
            adaptation.Attach(site, new CopyPatch(table, null));
            adaptation.Attach(head, new CopyPatch(table, null));
        }
    }
}

/// <summary>The update of a table at the output layer that shares it: <c>E' = E + s (B A)ᵀ</c> as a linear map.</summary>
internal sealed class LoraTiedPatch(LoraFactors factors) : WeightPatch
{
    public override PatchForm Form => PatchForm.LowRank;

    public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) =>
        [new LowRankTerm(factors.B.Value.t(), factors.A.Value.t(), factors.Scale, null, factors.Dropout)];

    // To the bit what the table becomes, so that the merged pair is one tensor.
    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
        ((weight.to_type(ScalarType.Float32) + factors.Delta()).to_type(weight.dtype), bias);
}
