// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// PEANuT (Zhong et al. 2024, arXiv 2410.01870): the update is a small network of the weight itself. With <c>A [rank, out]</c>,
/// <c>B [out, rank]</c> and <c>h = act(Wᵀ Aᵀ) [in, rank]</c>, <c>ΔW = scaling · B hᵀ</c>; with a depth, h first runs through that many
/// encoders and, with skip connections, decoders, all <c>[rank, rank]</c>. B starts at 0.
/// </summary>
public sealed class PeanutOptions : SiteMethod
{
    // Written out: libtorch 1.13's own has a wrong gradient where the one that arrives lies in memory in another order.
    private static Tensor Gelu(Tensor x) => x * 0.5 * ((x * Math.Sqrt(0.5)).erf() + 1);

    /// <summary>Rank, 1 to 4096.</summary>
    public int Rank { get; set; } = 32;

    /// <summary>Pairs of encoder and decoder between A and B, 0 to 16.</summary>
    public int Depth { get; set; }

    /// <summary>The nonlinearity, by its name in Hugging Face configurations: relu, gelu, silu, tanh, sigmoid, leaky_relu and others.</summary>
    public string Activation { get; set; } = "relu";

    /// <summary>Scaling of the update.</summary>
    public double Scaling { get; set; } = 1;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "peanut";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "2 r (out + depth r) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "PEANUT";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (Depth is < 0 or > 16) throw Invalid(nameof(Depth), Depth, "0 to 16");
        if (!Activations.Names.Contains(Activation ?? "")) throw Invalid(nameof(Activation), $"'{Activation}'", $"one of {string.Join(", ", Activations.Names)}.{NearNames.Hint(Activation ?? "", Activations.Names)}");
        if (Scaling == 0 || !double.IsFinite(Scaling)) throw Invalid(nameof(Scaling), Scaling, "a finite number other than 0");
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => 2L * Rank * (Wide(site) + (long)Depth * Rank);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        NamedParameter Drawn(string name, long rows, long columns) => Add(adaptation, $"{path}.{name}", new Draws(seed, $"{path}.{name}").Kaiming(rows, columns));
        NamedParameter a = Drawn("peanut_A.weight", Rank, Wide(site));
        NamedParameter b = Add(adaptation, $"{path}.peanut_B.weight", zeros([Wide(site), Rank]));
        NamedParameter[] encoders = [.. Enumerable.Range(0, Depth).Select(i => Drawn($"peanut_encoders.{i}.weight", Rank, Rank))];
        NamedParameter[] decoders = [.. Enumerable.Range(0, Depth).Select(i => Drawn($"peanut_decoders.{i}.weight", Rank, Rank))];
        Func<Tensor, Tensor> act = Activation is "gelu" or "gelu_python" ? Gelu : Activations.Get(Activation);
        adaptation.Attach(site, new TermsPatch(_ =>
        {
            Tensor hidden = act(site.Weight.to_type(ScalarType.Float32).t().matmul(a.Value.t()));             // [in, rank]
            var kept = new Stack<Tensor>();
            foreach (NamedParameter encoder in encoders)
            {
                kept.Push(hidden);
                hidden = act(nn.functional.linear(hidden, encoder.Value));
            }
            foreach (NamedParameter decoder in decoders) hidden = act(nn.functional.linear(hidden, decoder.Value)) + kept.Pop();
            return [new LowRankTerm(hidden.t(), b.Value, Scaling)];
        }));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 32);
        Depth = AdapterConfig.Get(config, "depth", 0);
        Activation = AdapterConfig.Get(config, "act_fn", "relu");
        Scaling = AdapterConfig.Get(config, "scaling", 1.0);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config["init_weights"] = true;
        config["r"] = Rank;
        config["depth"] = Depth;
        config["act_fn"] = Activation;
        config["scaling"] = Scaling;
    }
}
