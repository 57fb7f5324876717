// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

// Counting and attaching.
public sealed partial class LoraOptions
{
    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        IReadOnlyList<WeightSite> sites = AdaptedSites(backbone), whole = SavedWhole(backbone);
        long count = OnceEach(backbone, whole).Sum(TrainedCopies.Count) + ParameterSites(backbone).Sum(site => CountParameter(site, backbone));
        foreach (WeightSite site in sites)
        {
            string path = backbone.PathOf(site);
            long rank = RankAt(path);
            bool table = site is Embedding;
            (long wide, long narrow) = Widths(site);
            (long rankA, long rankB) = (rank, rank / Groups(site));
            if (Variant is not null) (narrow, rankB) = Variant.Stored(path, narrow, rankB);
            if (table || !LoraInit.Parse(Init).FreezesB) count += rankB * wide;
            if (LoraFa == LoraFaMode.Off) count += rankA * narrow;
            count += Variant?.CountBeside((int)rank) ?? 0;
            if (UseDora) count += wide;
            if (LoraBias && !table) count += wide;
            if (BiasMode == BiasMode.LoraOnly) count += site.Bias?.numel() ?? 0;
        }
        count += TokenRows(backbone).Sum(rows => rows.Table.Weight.shape[1] * rows.Ids.Length);
        if (BiasMode == BiasMode.All) count += backbone.Sites.OfType<WeightSite>().Except(whole).Sum(s => s.Bias?.numel() ?? 0);
        return count;
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        CheckStacked(backbone);
        IReadOnlyList<WeightSite> sites = AdaptedSites(backbone);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new LoraAdaptation(this, backbone);
        try
        {
            foreach (WeightSite site in sites) AddSite(adaptation, site, seed);
            foreach ((Embedding table, int[] ids) in TokenRows(backbone)) AddTokens(adaptation, table, ids);
            AddParameters(adaptation, seed);
            AddWhole(adaptation);
            if (BiasMode == BiasMode.All)
                foreach (WeightSite site in backbone.Sites.OfType<WeightSite>())
                    if (site.Bias is not null && !adaptation.Patches.ContainsKey(site))
                        adaptation.Attach(site, new BiasPatch(TrainedCopies.Bias(adaptation, site)));
            adaptation.SetRates();
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    // The axes that B writes and A reads. A grouped convolution's A sees the channels of all groups, its B those of one.
    private static (long Wide, long Narrow) Widths(WeightSite site) => site switch
    {
        Embedding table => (table.Weight.shape[1], table.Weight.shape[0]),
        Convolution c => (c.Out, c.In * c.Kernel.Aggregate(1L, (a, b) => a * b)),
        _ => (site.Weight.shape[0], site.Weight.shape[1]),
    };

    private static int Groups(WeightSite site) => site is Convolution c ? c.Groups : 1;

    private void CheckConvolution(Convolution site, string path, long rank)
    {
        if (!LoraInit.Parse(Init).FitsConvolutions)
            throw new ArgumentException($"LoraOptions.Init is '{Init}' at {path}, which is a convolution; allowed there is default, gaussian or false.", nameof(Init));
        if (site.Groups == 1) return;
        if (rank % site.Groups != 0)
            throw new ArgumentException($"LoraOptions.Rank is {rank} at {path}, a convolution of {site.Groups} groups; allowed are its multiples.", nameof(Rank));
        if (UseDora || LoraFa == LoraFaMode.Project)
            throw new ArgumentException($"LoraOptions.{(UseDora ? "UseDora" : "LoraFa")} does not fit {path}, a convolution of {site.Groups} groups; exclude it.", nameof(Targets));
    }

    private void AddSite(LoraAdaptation adaptation, WeightSite site, long seed)
    {
        Backbone backbone = adaptation.Backbone;
        string path = backbone.PathOf(site);
        bool table = site is Embedding;
        long rank = RankAt(path);
        (long wide, long narrow) = Widths(site);
        var convolution = site as Convolution;
        if (convolution is not null) CheckConvolution(convolution, path, rank);
        if (site.Quantised is { } few && (LoraInit.Parse(Init) is { ChangesBase: true } or { FreezesB: true } || UseDora || Variant is KasaVariant || DataStart is { ChangesBase: true }))
            throw new ArgumentException(
                $"The weight of {path} is kept as {few.Format}; Init = '{Init}'{(UseDora ? ", UseDora" : "")}{(Variant is KasaVariant ? ", KasaVariant" : "")}{(DataStart is null ? "" : $", {DataStart.GetType().Name}")} needs the dense weight. Load the backbone dense, or use the default start.", nameof(Init));
        if (Variant is not null && site is not Projection)
            throw new ArgumentException($"{Variant.GetType().Name} works at a linear map; {path} is none. Exclude it.", nameof(Targets));
        double scale = ScaleAt(path);
        LoraInit init = LoraInit.Parse(Init);
        string nameA = table ? $"{path}.lora_embedding_A" : $"{path}.lora_A.weight";
        string nameB = table ? $"{path}.lora_embedding_B" : $"{path}.lora_B.weight";
        Projection? tied = TiedHead(backbone) is { } head && ReferenceEquals(head.TiedTo, site) ? head : null;
        (Tensor a, Tensor b) = tied is not null ? (zeros([rank, narrow]), new Draws(seed, nameB).Kaiming(rank, wide).t().contiguous())
            : table ? (zeros([rank, narrow]), new Draws(seed, nameB).Normal(1, wide, rank))
            : Variant?.Draw(site.Weight, path, (int)rank, new Draws(seed, nameA)) ?? init.Draw(convolution is null ? site.Weight : site.Weight.new_empty(wide, narrow), (int)rank, scale, new Draws(seed, nameA), new Draws(seed, nameB), path);
        if (convolution is not null)
        {
            long[] ones = [.. convolution.Kernel.Select(_ => 1L)];
            a = a.reshape((long[])[rank, convolution.In, .. convolution.Kernel]);
            b = b.narrow(1, 0, rank / convolution.Groups).reshape((long[])[wide, rank / convolution.Groups, .. ones]);
        }

        NamedParameter Add(string name, Tensor value, bool trainable = true, string? turned = null) =>
            adaptation.Add(new NamedParameter(name, value.to(backbone.Device), trainable) { TurnedCopies = tied is null || turned is null ? [] : [$"{backbone.PathOf(tied)}.{turned}.weight"] });
        NamedParameter AddStart(string name, string of, Tensor value) =>
            adaptation.Add(new NamedParameter(name, value.clone().to(backbone.Device), trainable: false) { Exchanged = false, InitialOf = of });
        var factors = new LoraFactors
        {
            Site = site,
            A = Add(nameA, a, LoraFa == LoraFaMode.Off, "lora_B"),
            B = Add(nameB, b, table || !init.FreezesB, "lora_A"),
            Scale = scale,
            Dropout = Dropout,
            BiasB = LoraBias && !table ? Add($"{path}.lora_B.bias", zeros([wide])) : null,
            Start = init.ChangesBase && !table
                ? (AddStart($"{path}.lora_A0", nameA, a), AddStart($"{path}.lora_B0", nameB, b))
                : DataStart is { ChangesBase: true } && site is Projection
                    ? (AddStart($"{path}.lora_A0", nameA, zeros_like(a)), AddStart($"{path}.lora_B0", nameB, zeros_like(b))) : null,
            Bias = BiasMode != BiasMode.None && site.Bias is not null ? TrainedCopies.Bias(adaptation, site, "base_layer.") : null,
        };
        Variant?.Add(adaptation, factors, path, seed);
        if (UseDora) factors.Magnitude = Add($"{path}.lora_magnitude_vector", factors.OnOutput(factors.Lengths(site.Weight)));
        adaptation.Attach(factors);
        if (tied is not null) adaptation.Attach(tied, new LoraTiedPatch(factors));
    }
}
