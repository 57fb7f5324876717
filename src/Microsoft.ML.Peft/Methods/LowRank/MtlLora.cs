// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// MTL-LoRA (Yang et al. 2025, arXiv 2410.09437) as AdapterHub's package has it: <c>y = W x + b + (α/r) Σ_i p_i B_i diag(v) A x</c>,
/// <c>p = softmax(w / sharpness)</c>. A <c>[r, in]</c> and the k second factors B_i <c>[out, r]</c> belong to all tasks; v <c>[r]</c> and
/// w <c>[k]</c> to one. Rows take the task that <see cref="Pass.TaskIds"/> says. Trained numbers a site: r in + k out r + tasks (r + k).
/// </summary>
public sealed class MtlLoraOptions : HubLowRankOptions, IAdapterHubMethod
{
    /// <summary>Names of further tasks beside <see cref="HubLowRankOptions.Name"/>; a row's task id counts from 0, which is Name itself.</summary>
    public string[] FurtherTasks { get; set; } = [];

    /// <summary>k: number of second factors, 1 or more.</summary>
    public int UpProjections { get; set; } = 1;

    /// <summary>Temperature of the shares p, above 0; small ones choose.</summary>
    public double WeightsSharpness { get; set; } = 0.05;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "mtl-lora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => FurtherTasks.Length == 0;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r in + k out r + tasks (r + k) a projection";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (UpProjections < 1) throw Invalid(nameof(UpProjections), UpProjections, "1 or more");
        if (!(WeightsSharpness > 0) || !double.IsFinite(WeightsSharpness)) throw Invalid(nameof(WeightsSharpness), WeightsSharpness, "a finite number above 0");
        string[] tasks = [Name, .. FurtherTasks];
        foreach (string task in tasks)
            if (task.Length == 0 || task.Contains('.')) throw Invalid(nameof(FurtherTasks), $"'{task}'", "names without dots");
        if (tasks.Distinct().Count() < tasks.Length) throw Invalid(nameof(FurtherTasks), string.Join(", ", tasks), "names that differ from each other and from Name");
    }

    private IReadOnlyList<HubProjection> Checked(Backbone backbone)
    {
        IReadOnlyList<HubProjection> places = Places(backbone);
        return places.FirstOrDefault(p => p.Blocks > 1) is { } fused
            ? throw new ArgumentException($"{fused.Site.Name} is one projection to queries, keys and values: mtl-lora does not fit it; use Intermediate and Output with SelfAttention = false.", nameof(SelfAttention))
            : places;
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) =>
        Checked(backbone).Sum(p => Rank * (p.Site.In + UpProjections * p.Out) + (1 + FurtherTasks.Length) * (Rank + UpProjections));

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed) => Build(backbone, adaptation =>
    {
        NamedParameter Add(string name, Func<Draws, Tensor> draw) => adaptation.Add(name, draw(new Draws(seed, name)).to(backbone.Device));
        foreach (HubProjection place in Checked(backbone))
        {
            NamedParameter a = Add($"{place.Path}.lora_A", draws => draws.Kaiming(Rank, place.Site.In));
            NamedParameter b = Add($"{place.Path}.lora_B", _ => zeros([UpProjections, place.Out, Rank]));
            string parent = place.Path[..^Name.Length];
            (NamedParameter, NamedParameter)[] tasks = [.. new[] { Name }.Concat(FurtherTasks).Select(task =>
                (Add($"{parent}{task}.task_specific.values", _ => ones([Rank])), Add($"{parent}{task}.weights", _ => ones([UpProjections]))))];
            adaptation.Attach(place.Site, new MtlLoraPatch(a, b, tasks, Alpha / Rank, WeightsSharpness, Dropout));
        }
    });

    string IAdapterHubMethod.Architecture => "mtl_lora";

    void IAdapterHubMethod.ReadAdapterHub(JsonObject config)
    {
        ReadCommon(config);
        HubNames.Require(config, "dtype", "null", "null", "\"float32\"");
        HubNames.Require(config, "composition_mode", "'add'", "\"add\"");
        HubNames.Require(config, "use_dora", "false", "false");
        HubNames.Require(config, "use_gating", "false", "false");
        HubNames.Require(config, "vera_d", "null", "null");
        HubNames.Require(config, "init_weights", "'lora'", "\"lora\"");
        HubNames.Require(config, "task_specific_matrix_type", "'singular_values'", "\"singular_values\"");
        UpProjections = AdapterConfig.Get(config, "n_up_projection", 1);
        WeightsSharpness = AdapterConfig.Get(config, "weights_sharpness", 0.05);
    }

    JsonObject IAdapterHubMethod.WriteAdapterHub()
    {
        JsonObject config = WriteCommon("mtl_lora");
        config["composition_mode"] = "add";
        config["init_weights"] = "lora";
        config["n_up_projection"] = UpProjections;
        config["task_specific_matrix_type"] = "singular_values";
        config["use_dora"] = false;
        config["use_gating"] = false;
        config["vera_b"] = null;
        config["vera_d"] = null;
        config["weights_sharpness"] = WeightsSharpness;
        return config;
    }
}

/// <summary>MTL-LoRA at one projection: with one task a low-rank term, with several one product for all rows and a share each.</summary>
internal sealed class MtlLoraPatch(
    NamedParameter a, NamedParameter b, (NamedParameter Values, NamedParameter Weights)[] tasks, double scale, double sharpness, double dropout) : WeightPatch
{
    public override PatchForm Form => tasks.Length == 1 ? PatchForm.LowRank : PatchForm.Around;

    public override IReadOnlyList<LowRankTerm> Terms(Pass? pass)
    {
        (NamedParameter values, NamedParameter weights) = tasks[0];
        Tensor shares = (weights.Value / sharpness).softmax(0);
        return [new LowRankTerm(values.Value.unsqueeze(1) * a.Value, (shares.view(-1, 1, 1) * b.Value).sum(0L), scale, Dropout: dropout)];
    }

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor input = pass.Dropout(x.to_type(ScalarType.Float32), dropout);
        long batch = x.shape[0], count = b.Value.shape[0];
        Tensor ids = pass.TaskIds ?? zeros([batch], ScalarType.Int64, device: x.device);
        Tensor values = stack([.. tasks.Select(t => t.Values.Value)]).index_select(0, ids);                           // [batch, r]
        Tensor shares = (stack([.. tasks.Select(t => t.Weights.Value)]) / sharpness).softmax(-1).index_select(0, ids); // [batch, k]
        Tensor low = nn.functional.linear(input, a.Value) * values.unsqueeze(1);                                      // [batch, tokens, r]
        Tensor change = zeros([1], device: x.device);
        for (long i = 0; i < count; i++)
            change = change + nn.functional.linear(low, b.Value.select(0, i)) * shares.narrow(1, i, 1).unsqueeze(2);
        return next(x) + (change * scale).to_type(x.dtype);
    }
}
