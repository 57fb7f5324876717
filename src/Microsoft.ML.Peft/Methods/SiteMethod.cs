// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Base of the methods that do the same thing at each of their sites: what is left to a method is what it adds at one site,
/// and how many numbers it trains there.
/// </summary>
public abstract class SiteMethod : TargetedMethod
{
    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        IReadOnlyList<WeightSite> sites = SelectSites(backbone);
        if (FitTo(sites) is { } fitted) return fitted.Attach(backbone, seed);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        PeftAdaptation adaptation = Make(backbone);
        try
        {
            AddShared(adaptation, sites, seed);
            foreach (WeightSite site in sites)
            {
                BeforeSite(adaptation, site);
                AddSite(adaptation, site, backbone.PathOf(site), seed);
            }
            foreach (WeightSite site in SavedWhole(backbone)) TrainedCopies.Whole(adaptation, site);
            AfterSites(adaptation);
            Completed(adaptation, seed);
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        IReadOnlyList<WeightSite> sites = SelectSites(backbone);
        if (FitTo(sites) is { } fitted) return fitted.CountTrainable(backbone);
        return CountShared(backbone, sites) + sites.Sum(site => CountSite(site, backbone.PathOf(site))) + SavedWhole(backbone).Sum(TrainedCopies.Count) + CountBeside(backbone, sites);
    }

    /// <summary>A copy with what the options leave to the sites; null where they leave nothing.</summary>
    /// <param name="sites">All sites that will be adapted.</param>
    protected virtual SiteMethod? FitTo(IReadOnlyList<WeightSite> sites) => null;

    /// <summary>The largest number up to a limit that divides both widths of all sites.</summary>
    /// <param name="sites">Sites.</param>
    /// <param name="limit">The limit, 1 or more.</param>
    protected static int CommonDivisor(IReadOnlyList<WeightSite> sites, int limit)
    {
        long common = sites.Aggregate(0L, (divisor, site) => Greatest(Greatest(divisor, Wide(site)), Narrow(site)));
        int size = limit;
        while (common % size != 0) size--;
        return size;

        static long Greatest(long a, long b) => b == 0 ? a : Greatest(b, a % b);
    }

    // What is trained beside the method's own numbers.
    private protected virtual void BeforeSite(PeftAdaptation adaptation, WeightSite site)
    {
    }

    private protected virtual void AfterSites(PeftAdaptation adaptation)
    {
    }

    private protected virtual long CountBeside(Backbone backbone, IReadOnlyList<WeightSite> sites) => 0;

    /// <summary>Makes the empty adaptation; methods with hooks give one of their own class.</summary>
    /// <param name="backbone">The frozen network.</param>
    protected virtual PeftAdaptation Make(Backbone backbone) => new(this, backbone);

    /// <summary>Adds what several sites share, before the first site.</summary>
    /// <param name="adaptation">The adaptation that is made.</param>
    /// <param name="sites">All sites that will be adapted.</param>
    /// <param name="seed">Seed of the initial values.</param>
    protected virtual void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed)
    {
    }

    /// <summary>Adds the parameters and the patch of one site.</summary>
    /// <param name="adaptation">The adaptation that is made.</param>
    /// <param name="site">The site.</param>
    /// <param name="path">Its full module path.</param>
    /// <param name="seed">Seed of the initial values; <see cref="Draws"/> takes it with the parameter's name.</param>
    protected abstract void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed);

    /// <summary>Called when all sites are there.</summary>
    /// <param name="adaptation">The adaptation that was made.</param>
    /// <param name="seed">Seed of the initial values.</param>
    protected virtual void Completed(PeftAdaptation adaptation, long seed)
    {
    }

    /// <summary>Trained numbers that sites share.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="sites">All sites that are adapted.</param>
    protected virtual long CountShared(Backbone backbone, IReadOnlyList<WeightSite> sites) => 0;

    /// <summary>Trained numbers of one site, by the formula of the paper.</summary>
    /// <param name="site">The site.</param>
    /// <param name="path">Its full module path.</param>
    protected abstract long CountSite(WeightSite site, string path);

    /// <summary>Width of what a site writes: outputs of a map, channels, columns of a table.</summary>
    /// <param name="site">A site.</param>
    protected static long Wide(WeightSite site) => site is Embedding ? site.Weight.shape[1] : site.Weight.shape[0];

    /// <summary>Width of what a site reads, as a matrix: inputs of a map, channels times kernel, rows of a table.</summary>
    /// <param name="site">A site.</param>
    protected static long Narrow(WeightSite site) => site is Embedding ? site.Weight.shape[0] : site.Weight.numel() / site.Weight.shape[0];

    /// <summary>Owns a parameter on the backbone's device.</summary>
    /// <param name="adaptation">Its owner.</param>
    /// <param name="name">Name inside the task model.</param>
    /// <param name="value">The numbers.</param>
    /// <param name="trainable">False for a buffer.</param>
    protected static NamedParameter Add(PeftAdaptation adaptation, string name, Tensor value, bool trainable = true) =>
        adaptation.Add(name, value.to(adaptation.Backbone.Device), trainable);
}
