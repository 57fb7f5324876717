// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// What FourierFT and WaveFT share: a few coefficients at random positions of a transformed update, chosen by a seed that
/// stands in the file instead of the positions.
/// </summary>
public abstract class SpectralMethod : BiasedMethod
{
    /// <summary>Number n of coefficients a site, 1 up to in · out. May be changed by <see cref="FrequencyPattern"/>.</summary>
    public abstract int Frequencies { get; set; }

    /// <summary>Factor of the update, finite and not 0.</summary>
    public abstract double Scaling { get; set; }

    /// <summary>Seed of the positions; the same at all sites, so that sites of one shape use the same positions.</summary>
    public long PositionSeed { get; set; } = 777;

    /// <summary>Other numbers of coefficients for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, int> FrequencyPattern { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "spectral";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Frequencies < 1) throw Invalid(nameof(Frequencies), Frequencies, "1 or more");
        if (!double.IsFinite(Scaling) || Scaling == 0) throw Invalid(nameof(Scaling), Scaling, "a finite number other than 0");
        foreach ((string key, int count) in FrequencyPattern)
            if (count < 1) throw Invalid($"{nameof(FrequencyPattern)}['{key}']", count, "1 or more");
    }

    /// <summary>Number of coefficients at a site.</summary>
    /// <param name="site">The site.</param>
    /// <param name="path">Its full module path.</param>
    protected virtual long CoefficientsAt(WeightSite site, string path) =>
        TargetMatcher.FirstKey(FrequencyPattern.Keys, path) is { } key ? FrequencyPattern[key] : Frequencies;

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path)
    {
        long count = CoefficientsAt(site, path);
        if (count > site.Weight.numel())
            throw Invalid(nameof(Frequencies), count, $"at most {site.Weight.numel()} at {path}, whose weight is [{Wide(site)}, {Narrow(site)}]");
        return count;
    }

    /// <summary>Positions of a site's coefficients in its weight, row by row, int64 <c>[n]</c> on the CPU.</summary>
    /// <param name="site">The site.</param>
    /// <param name="path">Its full module path.</param>
    protected long[] Positions(WeightSite site, string path) => new TorchGenerator(PositionSeed).First(site.Weight.numel(), CountSite(site, path));

    /// <summary>Owns what follows from the options and needs no place in a file.</summary>
    /// <param name="adaptation">Its owner.</param>
    /// <param name="name">Name inside the task model.</param>
    /// <param name="value">The numbers.</param>
    protected static NamedParameter AddDerived(PeftAdaptation adaptation, string name, Tensor value) =>
        adaptation.Add(new NamedParameter(name, value.to(adaptation.Backbone.Device), trainable: false) { Saved = false });

    /// <summary>Reads what both types have.</summary>
    /// <param name="config">The whole adapter_config.json.</param>
    /// <param name="frequencies">The number where the file has none.</param>
    /// <param name="scaling">The scaling where the file has none.</param>
    protected void ReadSpectrum(JsonObject config, int frequencies, double scaling)
    {
        ReadTargets(config);
        ReadBias(config);
        Frequencies = AdapterConfig.Get(config, "n_frequency", frequencies);
        Scaling = AdapterConfig.Get(config, "scaling", scaling);
        PositionSeed = AdapterConfig.Get(config, "random_loc_seed", 777);
        FrequencyPattern = new OrderedDictionary<string, int>(AdapterConfig.Table(config, "n_frequency_pattern").Select(p => KeyValuePair.Create(p.Key, (int)p.Value)));
    }

    /// <summary>Writes what both types have.</summary>
    /// <param name="config">The object to fill.</param>
    /// <param name="backbone">The frozen network.</param>
    protected void WriteSpectrum(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["n_frequency"] = Frequencies;
        config["scaling"] = Scaling;
        config["random_loc_seed"] = PositionSeed;
        config["n_frequency_pattern"] = new JsonObject(FrequencyPattern.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)p.Value)));
        config["fan_in_fan_out"] = StoresTransposed(backbone);
    }
}
