// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

// Tensors that are adapted as they lie in their modules.
public sealed partial class LoraOptions
{
    /// <inheritdoc/>
    [JsonIgnore]
    protected override bool SelectsModules => TargetParameters.Length == 0 || Targets.Length > 0 || TargetPattern is not null;

    private void CheckParameters()
    {
        if (TargetParameters.Length == 0) return;
        if (TargetParameters.Any(string.IsNullOrWhiteSpace)) throw Invalid(nameof(TargetParameters), "''", "names of parameters, without empty ones");
        const string With = " with TargetParameters: such an update is a change of the tensor, which sees no input";
        if (Dropout > 0) throw Invalid(nameof(Dropout), Dropout, "0" + With);
        if (LoraBias) throw Invalid(nameof(LoraBias), LoraBias, "false" + With);
        if (UseDora) throw Invalid(nameof(UseDora), UseDora, "false" + With);
        if (Variant is not null) throw Invalid(nameof(Variant), Variant.GetType().Name, "null" + With);
        if (DataStart is not null) throw Invalid(nameof(DataStart), DataStart.GetType().Name, "null" + With);
        if (RiemannianDamping is not null) throw Invalid(nameof(RiemannianDamping), RiemannianDamping, "null" + With);
        if (LoraFa == LoraFaMode.Project) throw Invalid(nameof(LoraFa), LoraFa, "Off or Freeze" + With);
        if (!LoraInit.Parse(Init).FitsConvolutions) throw Invalid(nameof(Init), Init, "default, gaussian or false" + With);
    }

    private IReadOnlyList<WeightSite> ParameterSites(Backbone backbone)
    {
        if (TargetParameters.Length == 0) return [];
        (WeightSite Site, string Name)[] all = [.. backbone.Sites.OfType<WeightSite>().Select(site => (site, ParameterName(backbone, site)))];
        foreach (string name in TargetParameters)
        {
            if (all.Any(one => TargetMatcher.Names(name, one.Name))) continue;
            string[] known = [.. all.Where(one => one.Site.Weight.dim() is 2 or 3).Select(one => one.Name)];
            throw new ArgumentException(
                $"The target parameter '{name}' names no tensor of this {backbone.Config.ModelType} backbone.{NearNames.Hint(name, known)} Its tensors: {NearNames.List(known)}.", nameof(TargetParameters));
        }
        WeightSite[] sites = [.. all.Where(one => TargetParameters.Any(name => TargetMatcher.Names(name, one.Name))).Select(one => one.Site)];
        foreach (WeightSite site in sites)
            if (site.Weight.dim() is not (2 or 3))
                throw new ArgumentException(
                    $"The target parameter '{ParameterName(backbone, site)}' is [{string.Join(", ", site.Weight.shape)}]; adapted are tensors of two axes, or of three (stacked experts).", nameof(TargetParameters));
        return sites;
    }

    private static string ParameterName(Backbone backbone, WeightSite site) => backbone.PathOf(site) + site.WeightSuffix;

    // Experts, and the two widths of one of them.
    private static (long Experts, long Rows, long Columns) Stacked(WeightSite site)
    {
        long[] shape = site.Weight.shape;
        return (shape.Length == 3 ? shape[0] : 1, shape[^2], shape[^1]);
    }

    private long CountParameter(WeightSite site, Backbone backbone)
    {
        (long experts, long rows, long columns) = Stacked(site);
        return experts * RankAt(ParameterName(backbone, site)) * ((LoraFa == LoraFaMode.Off ? columns : 0) + rows);
    }

    // Several tensors of one module lie around each other: the later one outside.
    private void AddParameters(LoraAdaptation adaptation, long seed)
    {
        Backbone backbone = adaptation.Backbone;
        foreach (IGrouping<string, WeightSite> module in ParameterSites(backbone).GroupBy(site => Module(ParameterName(backbone, site))))
        {
            WeightSite[] inside = [.. module];
            for (int i = 0; i < inside.Length; i++)
                AddParameter(adaptation, inside[i], module.Key + string.Concat(Enumerable.Repeat(".base_layer", inside.Length - 1 - i)), seed);
        }
        static string Module(string name) => name[..name.LastIndexOf('.')];
    }

    private void AddParameter(LoraAdaptation adaptation, WeightSite site, string wrapped, long seed)
    {
        Device device = adaptation.Backbone.Device;
        string name = ParameterName(adaptation.Backbone, site), nameA = $"{wrapped}.lora_A.weight", nameB = $"{wrapped}.lora_B.weight";
        (long experts, long rows, long columns) = Stacked(site);
        long rank = RankAt(name), all = experts * rank;
        var draw = new Draws(seed, nameA);
        Tensor a = Init == "gaussian" ? draw.Normal(1.0 / rank, all, columns) : draw.Kaiming(all, columns);
        Tensor b = Init == "false" ? new Draws(seed, nameB).Kaiming(rows, all) : zeros([rows, all]);
        adaptation.Attach(new LoraFactors
        {
            Site = site,
            A = adaptation.Add(nameA, a.to(device), LoraFa == LoraFaMode.Off),
            B = adaptation.Add(nameB, b.to(device)),
            Scale = ScaleAt(name),
            Dropout = 0,
            Bare = true,
        });
    }
}
