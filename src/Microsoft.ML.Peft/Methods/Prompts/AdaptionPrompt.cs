// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The gate of an adaption prompt.</summary>
public enum AdaptionGate
{
    /// <summary>One trained factor a layer (Hugging Face PEFT).</summary>
    Scalar,
    /// <summary>The hyperbolic tangent of one trained number a head (the authors' code).</summary>
    TanhPerHead,
}

/// <summary>
/// LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199): P learned prompts a layer, which every query reads beside the tokens,
/// through a gate that starts at zero: context += g · softmax(q k_pᵀ/√d_h) v_p with the layer's own frozen projections of the
/// prompt. Two softmaxes: a fresh adapter changes nothing. Trained numbers a layer: P d + 1, or P d + heads.
/// </summary>
public sealed class AdaptionPromptOptions : PeftMethod
{
    /// <summary>P: number of prompts a layer.</summary>
    public int Length { get; set; } = 10;

    /// <summary>Number of layers that have prompts, counted from the last; 0 for all.</summary>
    public int AdapterLayers { get; set; }

    /// <summary>The gate.</summary>
    public AdaptionGate Gate { get; set; }

    /// <summary>
    /// True to add in front of the attention's output projection, false behind it; null for what Hugging Face PEFT does: false
    /// on GPT-2, true elsewhere.
    /// </summary>
    public bool? ThroughOutput { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "adaption-prompt";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => Gate == AdaptionGate.Scalar ? "P d + 1 a layer" : "P d + heads a layer";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "prompts";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 9e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "ADAPTION_PROMPT";

    /// <inheritdoc/>
    public override bool FitsHuggingFace(Backbone backbone) => Gate == AdaptionGate.Scalar && backbone.Causal && Projected(backbone) == !Fused(backbone);

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Length < 1) throw Invalid(nameof(Length), Length, "1 or more");
        if (AdapterLayers < 0) throw Invalid(nameof(AdapterLayers), AdapterLayers, "0 for all, or the number of layers");
        if (!Enum.IsDefined(Gate)) throw Invalid(nameof(Gate), Gate, string.Join(", ", Enum.GetNames<AdaptionGate>()));
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Cores(backbone).Sum(core =>
        (long)Length * backbone.Config.HiddenSize + (Gate == AdaptionGate.Scalar ? 1 : core.Heads));

    private IReadOnlyList<AttentionCore> Cores(Backbone backbone)
    {
        PromptPlaces.NeedKeys(backbone);
        AttentionCore[] all = [.. PromptPlaces.Encoder(backbone), .. PromptPlaces.Decoder(backbone)];
        if (AdapterLayers > all.Length) throw Invalid(nameof(AdapterLayers), AdapterLayers, $"at most {all.Length}, the layers of this {backbone.Config.ModelType} backbone");
        return AdapterLayers == 0 ? all : all[^AdapterLayers..];
    }

    private static bool Fused(Backbone backbone) => backbone.Sites.Any(s => s.Role == SiteRole.QueryKeyValue);

    private bool Projected(Backbone backbone) => ThroughOutput ?? !Fused(backbone);

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        IReadOnlyList<AttentionCore> cores = Cores(backbone);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new PeftAdaptation(this, backbone);
        foreach (AttentionCore core in cores)
        {
            string path = PromptPlaces.AttentionPath(backbone, core);
            Tensor start = new Draws(seed, path + ".adaption_prompt").Normal(1, 1, Length, backbone.Config.HiddenSize);
            NamedParameter prompt = adaptation.Add(path + ".adaption_prompt", start.to(backbone.Device));
            NamedParameter gate = adaptation.Add(path + ".adaption_gate", zeros([Gate == AdaptionGate.Scalar ? 1 : core.Heads], device: backbone.Device));
            var patch = new PromptPatch(this, prompt, gate, core, Keys(backbone, core), Projected(backbone));
            adaptation.Attach(core, patch);
            if (!Projected(backbone))
                adaptation.Attach(backbone.Sites.OfType<Block>().First(b => b.Role == SiteRole.AttentionBlock && b.Layer == core.Layer), new BehindOutput(patch));
        }
        return adaptation;
    }

    // Keys and values of prompts by the layer's own maps, each [1, P, key heads · head width].
    private static Func<Tensor, Pass, (Tensor Keys, Tensor Values)> Keys(Backbone backbone, AttentionCore core)
    {
        Projection[] maps = [.. backbone.Sites.OfType<Projection>().Where(p => p.Layer == core.Layer)];
        long width = (long)core.KeyHeads * core.HeadWidth;
        if (maps.FirstOrDefault(p => p.Role == SiteRole.QueryKeyValue) is not { } fused)
        {
            Projection key = maps.First(p => p.Role == SiteRole.Key), value = maps.First(p => p.Role == SiteRole.Value);
            return (x, pass) => (key.Forward(x, pass), value.Forward(x, pass));
        }
        return (x, pass) =>
        {
            Tensor all = fused.Forward(x, pass);
            long from = all.shape[^1] - 2 * width;
            return (all.narrow(-1, from, width), all.narrow(-1, from + width, width));
        };
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        Length = AdapterConfig.Get<int?>(config, "adapter_len", null)
            ?? throw new ArgumentException("adapter_config.json: the field 'adapter_len' is missing; expected is a whole number.", "adapter_len");
        AdapterLayers = AdapterConfig.Get(config, "adapter_layers", 0);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        IReadOnlyList<AttentionCore> cores = Cores(backbone);
        string path = PromptPlaces.AttentionPath(backbone, cores[0]);
        config["adapter_layers"] = cores.Count;
        config["adapter_len"] = Length;
        config["target_modules"] = path[(path.LastIndexOf('.') + 1)..];
    }

    private sealed class PromptPatch(
        AdaptionPromptOptions options, NamedParameter prompt, NamedParameter gate, AttentionCore core,
        Func<Tensor, Pass, (Tensor Keys, Tensor Values)> project, bool projected) : AttentionPatch
    {
        private sealed record Key(PromptPatch Patch, int Layer);

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
        {
            Tensor context = next(input), query = input.Query;
            (Tensor k, Tensor v) = project(prompt.Value.to_type(query.dtype), pass);
            // [1, heads, P, head width]; keys that several heads share stand once for each.
            Tensor Split(Tensor x) => x.view(1, options.Length, core.KeyHeads, core.HeadWidth).transpose(1, 2).repeat_interleave(core.Heads / core.KeyHeads, 1);
            Tensor shares = query.matmul(Split(k).transpose(2, 3)) * (1 / Math.Sqrt(core.HeadWidth));
            Tensor factor = options.Gate == AdaptionGate.Scalar ? gate.Value.view(1, 1, 1, 1) : gate.Value.tanh().view(1, -1, 1, 1);
            Tensor read = (shares.to_type(ScalarType.Float32).softmax(-1) * factor).to_type(query.dtype).matmul(Split(v));   // [batch, heads, tokens, head width]
            if (projected) return context + read;
            pass.Once(new Key(this, pass.Layer), () => read.transpose(1, 2).reshape(read.shape[0], read.shape[2], -1));
            return context;
        }

        public Tensor Read(Pass pass) =>
            pass.Once<Tensor>(new Key(this, pass.Layer), () => throw new InvalidOperationException("The prompt ran outside of its attention part."));
    }

    private sealed class BehindOutput(PromptPatch prompt) : BlockPatch
    {
        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => next(x) + prompt.Read(pass);
    }
}
