// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>The rows of a batch that wear the same adapter.</summary>
internal sealed class RowGroup(string name, long[] rows, Device device)
{
    public string Name { get; } = name;

    public long[] Rows { get; } = rows;

    /// <summary>Row numbers <c>[rows]</c>; the tensor lives in the scope in which the group is made.</summary>
    public Tensor Index { get; } = tensor(rows, device: device);

    /// <summary>Where each row of the batch stands once the groups are laid end to end.</summary>
    public static long[] Inverse(IReadOnlyList<RowGroup> groups)
    {
        long[] order = [.. groups.SelectMany(g => g.Rows)], inverse = new long[order.Length];
        for (int i = 0; i < order.Length; i++) inverse[order[i]] = i;
        return inverse;
    }
}

/// <summary>Patches that give each row of a batch its own adapter's patch, beside frozen products that run once for all rows.</summary>
internal static class RowPatches
{
    /// <summary>True where rows with this adaptation may share a pass with others: it changes no token and looks at no batch.</summary>
    public static bool CanShare(PeftAdaptation adaptation)
    {
        MethodInfo hook = adaptation.GetType().GetMethod(nameof(PeftAdaptation.BeforePass))!;
        return hook.DeclaringType == typeof(PeftAdaptation)
            && adaptation.Patches.Values.All(patch => patch is WeightPatch or BlockPatch or ResidualPatch);
    }

    /// <summary>One patch a site that some group wears.</summary>
    public static PatchTable Table(Backbone backbone, RowGroup[] groups, PeftAdaptation[] worn)
    {
        Tensor inverse = tensor(RowGroup.Inverse(groups), device: backbone.Device);
        var patches = new Dictionary<Site, Patch>();
        foreach (Site site in worn.SelectMany(a => a.Patches.Keys).Distinct())
        {
            Patch?[] each = [.. worn.Select(a => a.Patches.GetValueOrDefault(site))];
            patches[site] = site switch
            {
                WeightSite weights => new Weights(weights, groups, each, inverse),
                Block => new Blocks(groups, each, inverse),
                _ => new Residuals(groups, each, inverse),
            };
        }
        return new PatchTable(patches, backbone.Device.type);
    }

    // Runs each group's rows with what they wear, and puts the results in the order of the batch. What lies inside (the
    // projections of a block) sees the group's rows alone.
    private static Tensor Route(Tensor[] inputs, RowGroup[] groups, Tensor inverse, Pass pass, Func<int, Tensor[], Tensor> run)
    {
        var parts = new Tensor[groups.Length];
        for (int i = 0; i < groups.Length; i++)
        {
            Tensor rows = groups[i].Index;
            using Pass.GroupScope _ = pass.Narrow(i, rows);
            parts[i] = run(i, [.. inputs.Select(x => x.index_select(0, rows))]);
        }
        return cat(parts).index_select(0, inverse);
    }

    private sealed class Weights(WeightSite site, RowGroup[] groups, Patch?[] each, Tensor inverse) : WeightPatch
    {
        // Terms beside the product, and no bias of their own: the frozen product may run over all rows.
        private readonly bool _terms = site is Projection && each.OfType<WeightPatch>().All(p => p.Form == PatchForm.LowRank && ReferenceEquals(p.RewriteBias(site.Bias, null), site.Bias));

        public override PatchForm Form => PatchForm.Around;

        public override bool Trainable => false;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            if (pass.Group >= 0) return site.Forward(x, (WeightPatch?)each[pass.Group], pass);
            // Positions are looked up once for all rows.
            if (x.shape[0] == 1 && inverse.shape[0] > 1) x = x.expand([inverse.shape[0], .. x.shape[1..]]);
            if (!_terms) return Route([x], groups, inverse, pass, (i, own) => site.Forward(own[0], (WeightPatch?)each[i], pass));
            Tensor y = next(x);
            for (int i = 0; i < groups.Length; i++)
            {
                if (each[i] is not WeightPatch patch) continue;
                Tensor rows = groups[i].Index;
                using Pass.GroupScope _ = pass.Narrow(i, rows);
                Tensor own = x.index_select(0, rows);
                foreach (LowRankTerm term in patch.Terms(pass)) y = y.index_add(0, rows, term.Apply(own, pass), 1);
            }
            return y;
        }
    }

    private sealed class Blocks(RowGroup[] groups, Patch?[] each, Tensor inverse) : BlockPatch
    {
        public override bool Trainable => false;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor Run(int i, Tensor[] own) => each[i] is BlockPatch patch ? patch.Around(own[0], next, pass) : next(own[0]);
            return pass.Group >= 0 ? Run(pass.Group, [x]) : Route([x], groups, inverse, pass, Run);
        }
    }

    private sealed class Residuals(RowGroup[] groups, Patch?[] each, Tensor inverse) : ResidualPatch
    {
        public override bool Trainable => false;

        public override Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass)
        {
            Tensor Run(int i, Tensor[] own) => each[i] is ResidualPatch patch ? patch.Around(own[0], own[1], next, pass) : next(own[0], own[1]);
            return pass.Group >= 0 ? Run(pass.Group, [stream, output]) : Route([stream, output], groups, inverse, pass, Run);
        }
    }
}
