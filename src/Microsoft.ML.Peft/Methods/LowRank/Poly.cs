// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Poly (Ponti et al. 2022, arXiv 2202.13914) and its multi-head form (Caccia et al. 2023, arXiv 2211.03831): an inventory of
/// low-rank skills, of which every task mixes its own share, apart for each part of the width: <c>y += x A_t B_t / r</c> with
/// <c>A_t = Σ_k w_tk A_k</c>, <c>w = σ(logits_t) / Σ σ</c>. While training the shares are drawn (relaxed Bernoulli). The task of each
/// row is <see cref="TokenBatch.TaskIds"/>. Trained numbers a site: splits · skills · r (in + out) / splits + tasks · splits · skills.
/// Cannot be merged.
/// </summary>
public sealed class PolyOptions : SiteMethod
{
    /// <summary>Rank r of a skill, 1 or more.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>Number of tasks, 1 or more.</summary>
    public int Tasks { get; set; } = 1;

    /// <summary>Number of skills, 1 or more.</summary>
    public int Skills { get; set; } = 4;

    /// <summary>Number of parts of the width that mix apart, 1 or more; it must divide inputs and outputs.</summary>
    public int Splits { get; set; } = 1;

    /// <summary>False to start B at random, too: the output does not start as the base model's; for tests.</summary>
    public bool InitWeights { get; set; } = true;

    /// <summary>Gives uniform numbers by module and shape in place of random ones: recorded ones, in tests.</summary>
    internal Func<string, long[], Tensor>? DrawWith { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "poly";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "skills r (in + out) + tasks splits skills a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "POLY";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        foreach ((string option, int value) in (ReadOnlySpan<(string, int)>)[(nameof(Rank), Rank), (nameof(Tasks), Tasks), (nameof(Skills), Skills), (nameof(Splits), Splits)])
            if (value < 1) throw Invalid(option, value, "1 or more");
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => (Skills * Rank * (Narrow(site) + Wide(site))) + (Tasks * Splits * Skills);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long wide = Wide(site), narrow = Narrow(site);
        if (wide % Splits != 0 || narrow % Splits != 0)
            throw Invalid(nameof(Splits), Splits, $"a divisor of the {narrow} inputs and {wide} outputs of {path}");
        Draws Of(string name) => new(seed, $"{path}.{name}");
        NamedParameter a = Add(adaptation, $"{path}.poly_lora_A", Of("poly_lora_A").Uniform(1 / Math.Sqrt((double)narrow / Splits), Splits, Skills, narrow / Splits, Rank));
        NamedParameter b = Add(adaptation, $"{path}.poly_lora_B", InitWeights ? zeros([Splits, Skills, Rank, wide / Splits])
            : Of("poly_lora_B").Uniform(1 / Math.Sqrt(Rank), Splits, Skills, Rank, wide / Splits));
        NamedParameter logits = Add(adaptation, $"{path}.poly_router.module_logits", Of("module_logits").Uniform(1e-3, Tasks, Splits * Skills));
        adaptation.Attach(site, new PolyPatch(this, path, a, b, logits));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        if (AdapterConfig.Get(config, "poly_type", "poly") is var kind && kind != "poly")
            throw new ArgumentException($"adapter_config.json: the field 'poly_type' is '{kind}'; supported is poly.", "poly_type");
        Rank = AdapterConfig.Get(config, "r", 8);
        Tasks = AdapterConfig.Get(config, "n_tasks", 1);
        Skills = AdapterConfig.Get(config, "n_skills", 4);
        Splits = AdapterConfig.Get(config, "n_splits", 1);
        InitWeights = AdapterConfig.Get(config, "init_weights", true);
        Validate();
    }

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (true, false);

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        (config["r"], config["n_tasks"], config["n_skills"], config["n_splits"]) = (Rank, Tasks, Skills, Splits);
        (config["poly_type"], config["init_weights"]) = ("poly", InitWeights);
    }

    private sealed class PolyPatch(PolyOptions options, string path, NamedParameter a, NamedParameter b, NamedParameter logits) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        // Shares of each row, [rows, splits, skills].
        private Tensor Shares(long rows, Pass pass)
        {
            Tensor tasks = pass.TaskIds ?? (options.Tasks == 1
                ? zeros([rows], dtype: ScalarType.Int64, device: logits.Value.device)
                : throw new InvalidOperationException($"Poly with {options.Tasks} tasks needs the task of each row: give TokenBatch.TaskIds."));
            Tensor chosen = logits.Value.index_select(0, tasks).view(rows, options.Splits, options.Skills);
            if (pass.Training)
            {
                Tensor u = Uniform(pass, chosen.shape).to(chosen.device).clamp(1e-6, 1 - 1e-6);
                chosen = chosen + u.log() - (1 - u).log();
            }
            Tensor shares = chosen.sigmoid();
            return shares / (shares.sum([-1L], keepdim: true) + 1e-12);
        }

        private Tensor Uniform(Pass pass, long[] shape)
        {
            if (options.DrawWith is { } recorded) return recorded(path, shape);
            if (pass.Seed is not { } seed) return rand(shape);
            var draws = new Draws(unchecked((long)seed), path);
            return tensor(Enumerable.Range(0, (int)shape.Aggregate(1L, (x, y) => x * y)).Select(_ => (float)draws.Next()).ToArray(), shape.AsSpan());
        }

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor y = next(x);
            long rows = x.shape[0], rank = options.Rank, narrow = x.shape[^1];
            Tensor shares = Shares(rows, pass);
            Tensor first = einsum("bqs,qsdr->bqdr", shares, a.Value).reshape(rows, narrow, rank);                      // [rows, in, rank]
            Tensor second = einsum("bqs,qsrd->bqrd", shares, b.Value).transpose(1, 2).reshape(rows, rank, y.shape[^1]); // [rows, rank, out]
            Tensor change = x.to_type(ScalarType.Float32).reshape(rows, -1, narrow).bmm(first).bmm(second) / rank;
            return y + change.reshape(y.shape).to_type(y.dtype);
        }
    }
}
