// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Ladder side-tuning (Sung et al. 2022, arXiv 2206.06522): a narrow network of the backbone's own kind, width d/r, runs beside
/// the frozen one and reads its hidden states: <c>s = D₀ h₀</c>; at each kept layer <c>z = μ s + (1 − μ) D h</c>,
/// <c>μ = σ(α / T)</c>, <c>s = block(z)</c>; the output is <c>U norm(s)</c>. No gradient and no graph enters the backbone, so
/// training needs the memory of the side network alone. Not mergeable.
/// </summary>
public sealed class LadderSideOptions : PeftMethod
{
    /// <summary>r: hidden width, head width and inner width over those of the side network; divides all three.</summary>
    public int Reduction { get; set; } = 8;

    /// <summary>Layers with a side block, numbered from 0; empty for all. With an encoder and a decoder those of the encoder.</summary>
    public int[] Layers { get; set; } = [];

    /// <summary>With an encoder and a decoder the decoder's layers with a side block, numbered from 0 there; empty for all.</summary>
    public int[] DecoderLayers { get; set; } = [];

    /// <summary>T: temperature of the gates, above 0.</summary>
    public double GateTemperature { get; set; } = 0.1;

    /// <summary>
    /// Initial values of the side blocks: <c>magnitude</c> (the backbone's own weights, cut to the channels of largest
    /// magnitude, chained through the network) or <c>random</c>.
    /// </summary>
    public string Init { get; set; } = "magnitude";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "lst";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "side networks";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "a block of width d/r a layer, d²/r a ladder";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Reduction < 1) throw Invalid(nameof(Reduction), Reduction, "1 or more");
        if (!(GateTemperature > 0) || !double.IsFinite(GateTemperature)) throw Invalid(nameof(GateTemperature), GateTemperature, "a finite number above 0");
        if (Init is not ("magnitude" or "random")) throw Invalid(nameof(Init), $"'{Init}'", "magnitude or random");
    }

    // One stack, or an encoder and a decoder.
    private List<SideShape> Stacks(Backbone backbone)
    {
        BackboneConfig config = backbone.Config;
        NeedsOneWidth(backbone);
        if (config.DecoderStart is null && backbone.Sites.Any(s => s.Role == SiteRole.FeedForwardGate))
            throw new ArgumentException($"lst has no side block with rotated positions and heads that share keys, as this {config.ModelType} backbone's are; use lora.");
        AttentionCore core = backbone.Sites.OfType<AttentionCore>().First();
        foreach ((string what, int size) in new[] { ("hidden width", config.HiddenSize), ("head width", core.HeadWidth), ("feed-forward width", config.IntermediateSize) })
            if (size % Reduction != 0) throw Invalid(nameof(Reduction), Reduction, $"a divisor of the {what} {size}");
        if (config.DecoderStart is not { } turn) return [SideShape.Of(backbone, "", 0, config.LayerCount, Kept(Layers, nameof(Layers), config.LayerCount), Reduction)];
        return
        [
            SideShape.Of(backbone, "encoder.", 0, turn, Kept(Layers, nameof(Layers), turn), Reduction),
            SideShape.Of(backbone, "decoder.", turn, config.LayerCount, Kept(DecoderLayers, nameof(DecoderLayers), config.LayerCount - turn), Reduction),
        ];
    }

    private int[] Kept(int[] layers, string option, int count)
    {
        foreach (int layer in layers)
            if (layer < 0 || layer >= count) throw Invalid(option, layer, $"0 to {count - 1}");
        return layers.Length == 0 ? [.. Enumerable.Range(0, count)] : [.. layers.Distinct().Order()];
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        List<SideShape> stacks = Stacks(backbone);
        long d = backbone.Config.HiddenSize, narrow = d / Reduction;
        return stacks.Sum(s => s.Count(d)) + narrow * d + d;
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        List<SideShape> shapes = Stacks(backbone);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new PeftAdaptation(this, backbone);
        NamedParameter Add(string name, Func<Draws, Tensor> draw) => adaptation.Add("side." + name, draw(new Draws(seed, name)).to(backbone.Device));
        SideStart? start = Init == "magnitude" ? new SideStart(backbone, Reduction) : null;
        List<SideStack> stacks = [.. shapes.Select(shape => new SideStack(shape, backbone, GateTemperature, start, Add))];
        long d = backbone.Config.HiddenSize, narrow = d / Reduction;
        NamedParameter weight = Add("up.weight", draws => draws.Uniform(1 / Math.Sqrt(narrow), d, narrow)), bias = Add("up.bias", draws => draws.Uniform(1 / Math.Sqrt(narrow), d));
        adaptation.Attach(backbone.Taps, new LadderPatch(backbone, stacks, weight, bias));
        return adaptation;
    }
}

/// <summary>The side network as a reader of all hidden states.</summary>
internal sealed class LadderPatch(Backbone backbone, IReadOnlyList<SideStack> stacks, NamedParameter up, NamedParameter bias) : TapPatch
{
    public override Tensor Read(IReadOnlyList<Tensor> states, Func<Tensor, Tensor> finish, Pass pass)
    {
        if (pass.Cache is not null) throw new NotSupportedException("A side network keeps no keys and values; generate without a cache.");
        Tensor? encoded = null;
        int first = 0;
        foreach (SideStack stack in stacks)
        {
            bool last = ReferenceEquals(stack, stacks[^1]);
            Layout layout = last ? pass.Layout : pass.EncodedLayout!;
            bool causal = last && (backbone.Causal || stacks.Count > 1);
            Tensor[] own = [.. states.Skip(first).Take(stack.Shape.Depth + 1)];
            encoded = stack.Run(own, layout, causal, encoded, stacks.Count > 1 && last ? pass.EncodedLayout : null, pass);
            first += own.Length;
        }
        Tensor s = pass.Dropout(encoded!, backbone.Config.HiddenDropout);
        return nn.functional.linear(s, up.Value, bias.Value).to_type(states[^1].dtype);
    }
}
