// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// AdapterFusion (Pfeiffer et al. 2021, arXiv 2005.00247): at each place, per token, <c>q = W_Q h + b</c>, <c>k_n = W_K u_n + b</c>,
/// <c>v_n = W_V u_n</c> with u_n what adapter n made without its residual; <c>p = softmax_n(q · k_n)</c>,
/// <c>o = Σ p_n v_n + residual</c>. The adapters stay frozen. Trained numbers a place: 3 d² + 2 d.
/// Trained by <see cref="AdapterSet.AddFusion"/> and <see cref="AdapterSet.Compose"/>.
/// </summary>
public sealed class FusionOptions : IFusionMethod
{
    /// <summary>True for a trained map of what asks.</summary>
    public bool Query { get; set; } = true;

    /// <summary>True for a trained map of the keys.</summary>
    public bool Key { get; set; } = true;

    /// <summary>True for a trained map of the values; false is called static fusion.</summary>
    public bool Value { get; set; } = true;

    /// <summary>True to ask by what the part gave before the frozen norm.</summary>
    public bool QueryBeforeNorm { get; set; }

    /// <summary>True to map values before they are mixed, false after.</summary>
    public bool ValueBeforeSoftmax { get; set; } = true;

    /// <summary>True for a value map that starts as the identity (1e-6 beside the diagonal), false for normal entries.</summary>
    public bool ValueInitialized { get; set; } = true;

    /// <summary>True to add the residual to keys and values before they are mixed instead of to the result.</summary>
    public bool ResidualBefore { get; set; }

    /// <summary>True for a temperature that starts at 50 and falls by 0.05 with each training step, down to 1.</summary>
    public bool Temperature { get; set; }

    /// <summary>True for the loss term <c>0.01 Σ ‖I − W_V‖²</c>.</summary>
    public bool Regularization { get; set; } = true;

    /// <summary>Share of the scores, in [0, 1), that is dropped while training.</summary>
    public double Dropout { get; set; }

    /// <inheritdoc/>
    public FusedParts Attach(Backbone backbone, string name, IReadOnlyList<Residual> places, long seed)
    {
        if (!(Dropout >= 0 && Dropout < 1)) throw new ArgumentException($"FusionOptions.Dropout is {Dropout}; allowed is 0 up to, not including, 1.", nameof(Dropout));
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new FusionAdaptation(this, backbone);
        foreach (Residual place in places)
        {
            int d = backbone.WidthAt(place.Layer);
            string path = $"{HubNames.Path(backbone, place.Name)}.adapter_fusion_layer.{name}";
            NamedParameter Add(string part, Func<Draws, Tensor> draw) =>
                adaptation.Add($"{path}.{part}", draw(new Draws(seed, $"{path}.{part}")).to(backbone.Device));
            (NamedParameter, NamedParameter) Map(string part) => (Add($"{part}.weight", draws => draws.Normal(0.02, d, d)), Add($"{part}.bias", _ => zeros([d])));
            adaptation.Layers.Add((place, new FusionLayer(this, adaptation,
                Query ? Map("query") : null, Key ? Map("key") : null,
                Value ? Add("value.weight", draws => ValueInitialized ? full([d, d], 1e-6f) + eye(d) * (1 - 1e-6) : draws.Normal(0.02, d, d)) : null)));
        }
        return new FusedParts(adaptation, adaptation.Layers.ToDictionary(l => (Site)l.Place, l => (IFusion)l.Layer));
    }
}

/// <summary>The parameters of a fusion, its loss term, and its temperature.</summary>
internal sealed class FusionAdaptation(FusionOptions options, Backbone backbone) : PeftAdaptation(new FusionMethod(), backbone)
{
    private const double Strength = 0.01, Hottest = 50, Cooling = Hottest / 1000;

    public FusionOptions Options => options;

    public List<(Residual Place, FusionLayer Layer)> Layers { get; } = [];

    /// <summary>What scores are divided by.</summary>
    public double Temperature { get; set; } = options.Temperature ? Hottest : 1;

    public override Tensor? ExtraLoss(Pass pass)
    {
        if (!options.Regularization || !options.Value) return null;
        Tensor sum = zeros(1, device: Backbone.Device).squeeze();
        foreach ((_, FusionLayer layer) in Layers)
        {
            Tensor value = layer.Value!.Value;
            sum = sum + (value - eye(value.shape[0], device: value.device)).square().sum() * Strength;
        }
        return sum;
    }

    public override void AfterStep(long step)
    {
        if (options.Temperature) Temperature = Math.Max(1, Temperature - Cooling);
    }

    // Fusions live in sets; they are no method that a model is trained by alone.
    private sealed class FusionMethod : PeftMethod
    {
        public override string Id => "fusion";

        public override string Family => "adapters";

        public override bool Mergeable => false;

        public override PeftAdaptation Attach(Backbone backbone, long seed) => throw new NotSupportedException("A fusion is made by AdapterSet.AddFusion.");

        public override long CountTrainable(Backbone backbone) => throw new NotSupportedException("A fusion is made by AdapterSet.AddFusion.");
    }
}

/// <summary>One fusion at one place.</summary>
internal sealed class FusionLayer(
    FusionOptions options, FusionAdaptation owner, (NamedParameter Weight, NamedParameter Bias)? query, (NamedParameter Weight, NamedParameter Bias)? key, NamedParameter? value) : IFusion
{
    public NamedParameter? Value => value;

    public bool AsksBeforeNorm => options.QueryBeforeNorm;

    public Tensor Mix(Tensor asking, IReadOnlyList<Tensor> contributions, Tensor residual, Pass pass)
    {
        static Tensor Map(Tensor x, (NamedParameter Weight, NamedParameter Bias)? map) => map is { } m ? nn.functional.linear(x, m.Weight.Value, m.Bias.Value) : x;
        Tensor made = stack(contributions, 2).to_type(ScalarType.Float32);                             // [batch, tokens, adapters, hidden]
        if (options.ResidualBefore) made = made + residual.unsqueeze(2);
        Tensor q = Map(asking.to_type(ScalarType.Float32), query), k = Map(made, key);
        Tensor v = value is not null && options.ValueBeforeSoftmax ? nn.functional.linear(made, value.Value) : made;
        Tensor scores = pass.Dropout(k.matmul(q.unsqueeze(-1)).squeeze(-1), options.Dropout);          // [batch, tokens, adapters]
        Tensor shares = (scores / owner.Temperature).softmax(-1);
        Tensor mixed = (shares.unsqueeze(-1) * v).sum(2L);
        if (value is not null && !options.ValueBeforeSoftmax) mixed = nn.functional.linear(mixed, value.Value);
        if (!options.ResidualBefore) mixed = mixed + residual;
        return mixed.to_type(residual.dtype);
    }
}
