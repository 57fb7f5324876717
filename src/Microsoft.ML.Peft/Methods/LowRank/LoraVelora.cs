// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Where VeLoRA's direction comes from.</summary>
public enum VeloraDirection
{
    /// <summary>The mean of the first batch that is trained on.</summary>
    FirstBatch,
    /// <summary>The mean of each batch, anew.</summary>
    EachBatch,
    /// <summary>Drawn at random once.</summary>
    Random,
}

/// <summary>
/// VeLoRA (Miles et al. 2024, arXiv 2405.17991): the gradient of A sees the input through one direction of each group of its
/// entries, <c>x̂ = scale · (x·e) e</c>, so that a number a group has to be kept for the backward pass. The output and the
/// gradient of the input are LoRA's. The direction e is the mean of all groups of a batch, or drawn.
/// </summary>
public sealed class VeloraVariant : LoraVariant
{
    private static readonly (string Name, VeloraDirection Value)[] _directions =
        [("batch_average_once", VeloraDirection.FirstBatch), ("batch_average", VeloraDirection.EachBatch), ("random", VeloraDirection.Random)];

    /// <summary>Where the direction comes from.</summary>
    public VeloraDirection Direction { get; set; }

    /// <summary>Number of groups of the input, 1 or more; the last one is filled up with zeros.</summary>
    public int Groups { get; set; } = 32;

    /// <summary>Factor of the projected input, above 0.</summary>
    public double Scale { get; set; } = 1;

    internal static VeloraVariant From(JsonObject fields) => new()
    {
        Direction = ConfigFields.Choice(fields, "init_type", "batch_average", _directions),
        Groups = AdapterConfig.Get(fields, "num_groups", 64),
        Scale = AdapterConfig.Get(fields, "scale", 1.0),
    };

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        if (!Enum.IsDefined(Direction)) throw invalid(nameof(Direction), Direction, string.Join(", ", Enum.GetNames<VeloraDirection>()));
        if (Groups < 1) throw invalid(nameof(Groups), Groups, "1 or more");
        if (!(Scale > 0) || !double.IsFinite(Scale)) throw invalid(nameof(Scale), Scale, "a finite number above 0");
    }

    internal override void Write(JsonObject config) =>
        config["velora_config"] = new JsonObject { ["init_type"] = _directions.Single(d => d.Value == Direction).Name, ["num_groups"] = Groups, ["scale"] = Scale };

    private long Width(long narrow) => (narrow + Groups - 1) / Groups;

    internal override void Add(LoraAdaptation adaptation, LoraFactors factors, string path, long seed)
    {
        string name = $"{path}.lora_velora_embed";
        long width = Width(factors.A.Value.shape[1]);
        Tensor direction = Direction == VeloraDirection.Random ? Unit(new Draws(seed, name).Normal(1, width)) : zeros([width]);
        factors.More["embed"] = adaptation.Add(new NamedParameter(name, direction.to(adaptation.Backbone.Device), trainable: false) { Learned = Direction != VeloraDirection.Random });
    }

    internal override WeightPatch Patch(LoraFactors factors) => new VeloraPatch(this, factors);

    // Rows of the input, cut into groups, [rows · groups, width].
    private Tensor Grouped(Tensor x)
    {
        long narrow = x.shape[^1], width = Width(narrow);
        Tensor rows = x.reshape(-1, narrow);
        if (width * Groups > narrow) rows = cat([rows, zeros([rows.shape[0], (width * Groups) - narrow], dtype: x.dtype, device: x.device)], 1);
        return rows.reshape(-1, width);
    }

    private static Tensor Unit(Tensor direction) => direction / direction.norm().clamp(min: 1e-12);

    private sealed class VeloraPatch(VeloraVariant options, LoraFactors factors) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor y = next(x);
            if (factors is { Bias: { } trained, Site.Bias: { } old }) y = y + (trained.Value - old).to_type(y.dtype);
            Tensor seen = pass.Dropout(x.to_type(ScalarType.Float32), factors.Dropout), a = factors.A.Value, low;
            if (!is_grad_enabled()) low = nn.functional.linear(seen, a);
            else
            {
                // The value is x Aᵀ; its gradient to x is exact, that to A is x̂'s. The difference of equal products is 0.
                Tensor fixedA = a.detach(), through = Through(seen.detach());
                low = nn.functional.linear(seen, fixedA) + (nn.functional.linear(through, a) - nn.functional.linear(through, fixedA));
            }
            return y + nn.functional.linear(low * factors.Scale, factors.B.Value).to_type(y.dtype);
        }

        private Tensor Through(Tensor x)
        {
            using var off = no_grad();
            Tensor groups = options.Grouped(x), e = factors.More["embed"].Value;
            if (options.Direction == VeloraDirection.EachBatch || (options.Direction == VeloraDirection.FirstBatch && !e.any().item<bool>()))
                factors.More["embed"].Load(Unit(groups.mean([0])));
            Tensor projected = groups.matmul(e).unsqueeze(1) * e * options.Scale;
            return projected.reshape(-1, e.shape[0] * options.Groups).narrow(1, 0, x.shape[^1]).reshape(x.shape);
        }

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
            (weight + factors.Delta().to_type(weight.dtype), Bias(factors, bias));
    }
}
