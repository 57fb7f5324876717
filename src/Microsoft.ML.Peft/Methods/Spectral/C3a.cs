// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// C³A (Chen et al. 2024, arXiv 2407.19342): the update is made of circulant blocks of width n, each given by one kernel of n
/// numbers: <c>ΔW[p n + r, q n + c] = k[p, q, (c − r) mod n] / in</c>. Trained numbers: in · out / n a site; the update's rank
/// is not bounded by their number. A fresh kernel is random, so the output does not start as the base model's. Merging: W + ΔW.
/// </summary>
public sealed class C3aOptions : BiasedMethod
{
    /// <summary>
    /// Width n of the blocks; must divide both sides of every target's weight. Null for the largest number up to 256 that does,
    /// which the adaptation's options then hold.
    /// </summary>
    public int? BlockSize { get; set; }

    /// <summary>Other widths for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, int> BlockSizePattern { get; set; } = [];

    /// <summary>
    /// Initial kernels: <c>xavier_uniform</c> (uniform in ±√(6 / (in + out))), <c>kaiming_uniform</c> (±√(1 / in)),
    /// <c>gaussian</c> (standard normal), or <c>zeros</c>, with which a fresh adaptation is the base model.
    /// </summary>
    public string Init { get; set; } = "xavier_uniform";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "c3a";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "spectral";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => Init == "zeros";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-1;

    /// <inheritdoc/>
    protected override double HighestLearningRate => 3e-1;

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, true);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "in · out / n a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "C3A";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (BlockSize < 1) throw Invalid(nameof(BlockSize), BlockSize, "null, or 1 or more");
        foreach ((string key, int size) in BlockSizePattern)
            if (size < 1) throw Invalid($"{nameof(BlockSizePattern)}['{key}']", size, "1 or more");
        if (Init is not ("xavier_uniform" or "kaiming_uniform" or "gaussian" or "zeros"))
            throw Invalid(nameof(Init), $"'{Init}'", "xavier_uniform, kaiming_uniform, gaussian or zeros");
    }

    /// <inheritdoc/>
    protected override SiteMethod? FitTo(IReadOnlyList<WeightSite> sites)
    {
        if (BlockSize is not null) return null;
        var fitted = (C3aOptions)MemberwiseClone();
        fitted.BlockSize = CommonDivisor(sites, 256);
        return fitted;
    }

    private long SizeAt(WeightSite site, string path)
    {
        long size = TargetMatcher.FirstKey(BlockSizePattern.Keys, path) is { } key ? BlockSizePattern[key] : BlockSize!.Value;
        if (Wide(site) % size == 0 && Narrow(site) % size == 0) return size;
        (long a, long b) = (Wide(site), Narrow(site));
        while (b != 0) (a, b) = (b, a % b);
        throw Invalid(nameof(BlockSize), size, $"a divisor of both sides of {path}, whose weight is [{Wide(site)}, {Narrow(site)}]: {a} or one of its divisors; BlockSizePattern gives modules their own");
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        string name = $"{path}.c3a_kernel";
        long size = SizeAt(site, path), down = Wide(site) / size, across = Narrow(site) / size;
        var draws = new Draws(seed, name);
        NamedParameter kernel = Add(adaptation, name, Init switch
        {
            "zeros" => zeros(down, across, size),
            "gaussian" => draws.Normal(1, down, across, size),
            "kaiming_uniform" => draws.Uniform(Math.Sqrt(1.0 / Narrow(site)), down, across, size),
            _ => draws.Uniform(Math.Sqrt(6.0 / (Narrow(site) + Wide(site))), down, across, size),
        });
        double scale = 1.0 / Narrow(site);
        adaptation.Attach(site, new DeltaPatch(pass =>
        {
            Tensor shift = pass is null ? Shifts(size, kernel.Value.device) : pass.Once((typeof(C3aOptions), size), () => Shifts(size, kernel.Value.device));
            Tensor blocks = kernel.Value.index_select(2, shift).reshape(down, across, size, size);
            return blocks.permute(0, 2, 1, 3).reshape(down * size, across * size) * scale;
        }));
    }

    // (column - row) mod n of a block, row by row.
    private static Tensor Shifts(long size, Device device)
    {
        Tensor at = arange(size, dtype: ScalarType.Int64, device: device);
        return (at.unsqueeze(0) - at.unsqueeze(1)).remainder(size).reshape(-1);
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => site.Weight.numel() / SizeAt(site, path);

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        ReadBias(config);
        BlockSize = AdapterConfig.Get(config, "block_size", 256);
        BlockSizePattern = new OrderedDictionary<string, int>(AdapterConfig.Table(config, "block_size_pattern").Select(p => KeyValuePair.Create(p.Key, (int)p.Value)));
        Init = config["init_weights"] is JsonValue value && value.TryGetValue(out bool flag)
            ? flag ? "zeros" : "xavier_uniform" : AdapterConfig.Get(config, "init_weights", "xavier_uniform");
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["block_size"] = BlockSize;
        config["block_size_pattern"] = new JsonObject(BlockSizePattern.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)p.Value)));
        config["init_weights"] = Init == "zeros" ? true : Init;
    }
}
