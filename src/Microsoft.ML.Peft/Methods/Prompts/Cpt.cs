// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Context-aware prompt tuning (Blau et al. 2024, arXiv 2410.17222): the prompt is a few labelled examples, frozen word rows
/// plus a learned change δ of each, which is kept small: ‖δ_i‖ ≤ ε_i √(d/2048). Tokens have types: 0 none, and for example n
/// of the context 4n + 1 and 4n + 3 its format (ε format), 4n + 2 its input (ε), 4n + 4 its label (not changed). Labels of the
/// context are learned too. Trained numbers: P d.
/// </summary>
public sealed class CptOptions : InsertedPromptMethod
{
    private const string DeltaName = "prompt_encoder.delta_embedding.weight";
    private const double Least = 1e-10;

    /// <summary>Makes the options with a prompt of one token, to be replaced.</summary>
    public CptOptions() => (TokenIds, Insertion) = ([0], PromptInsertion.WordEmbedding);

    /// <summary>Token ids of the context.</summary>
    public int[] TokenIds
    {
        get => _tokenIds;
        set => (_tokenIds, Length) = (value, value.Length);
    }

    private int[] _tokenIds = [];

    /// <summary>Type of each token of the context; empty for 2, input, throughout.</summary>
    public int[] TokenTypes { get; set; } = [];

    /// <summary>ε: largest change of the tokens of inputs.</summary>
    public double Epsilon { get; set; } = 0.1;

    /// <summary>Largest change of the tokens of formats.</summary>
    public double FormatEpsilon { get; set; } = 0.1;

    /// <summary>γ: weight of a label over that of the next one, towards the row's own; used where <see cref="DecayLoss"/> is set.</summary>
    public double DecayFactor { get; set; } = 1;

    /// <summary>True to weigh labels of the context 1, γ, γ² ... from the row's own backwards.</summary>
    public bool DecayLoss { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "cpt";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "P e";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "CPT";

    private int[] Types => TokenTypes.Length > 0 ? TokenTypes : [.. TokenIds.Select(_ => 2)];

    /// <inheritdoc/>
    public override void Validate()
    {
        if (TokenIds.Length == 0) throw Invalid(nameof(TokenIds), "empty", "the token ids of the context");
        if (Length != TokenIds.Length) throw Invalid(nameof(Length), Length, $"{TokenIds.Length}, the number of TokenIds");
        base.Validate();
        if (TokenTypes.Length > 0 && TokenTypes.Length != TokenIds.Length) throw Invalid(nameof(TokenTypes), $"{TokenTypes.Length} types", $"one for each of the {TokenIds.Length} TokenIds, or none");
        foreach (int type in TokenTypes)
            if (type < 0) throw Invalid(nameof(TokenTypes), type, "0 or more");
        if (!(Epsilon >= 0)) throw Invalid(nameof(Epsilon), Epsilon, "0 or more");
        if (!(FormatEpsilon >= 0)) throw Invalid(nameof(FormatEpsilon), FormatEpsilon, "0 or more");
        if (!(DecayFactor > 0)) throw Invalid(nameof(DecayFactor), DecayFactor, "above 0");
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Length * Width(backbone);

    /// <inheritdoc/>
    private protected override PromptRows AddRows(PeftAdaptation adaptation, long rows, long width, long seed)
    {
        if (rows != Length) throw new ArgumentException($"CPT fits decoders; a {adaptation.Backbone.Config.ModelType} backbone has an encoder before one.");
        NamedParameter words = Add(adaptation, TableName, PromptStart.Words(adaptation.Backbone, [.. TokenIds.Select(id => (long)id)], width), trainable: false, key: TableKey);
        // Files hold the sum: there δ is zero.
        NamedParameter delta = Add(adaptation, DeltaName, zeros([rows, width]), exchanged: false);
        double scale = Math.Sqrt(width / 2048.0);
        Tensor limits = tensor(Types.Select(t => (float)((t % 4) switch { 0 => Least, 2 => Epsilon * scale, _ => FormatEpsilon * scale })).ToArray(), [rows, 1]);
        Tensor free = tensor(Types.Select(t => t % 4 == 0 ? 0f : 1f).ToArray(), [rows, 1]);
        var cpt = (Changed)adaptation;
        cpt.Words = words;
        cpt.Delta = delta;
        cpt.Limits = Add(adaptation, "prompt_encoder.limits", limits, trainable: false, exchanged: false);
        NamedParameter mask = Add(adaptation, "prompt_encoder.free", free, trainable: false, exchanged: false);
        return _ =>
        {
            // The change that counts is the one within its limit; its gradient is the whole change's.
            Tensor whole = delta.Value, near = whole + (cpt.Limited() - whole).detach();
            return words.Value + near * mask.Value + (near * (1 - mask.Value)).detach();
        };
    }

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone) => new Changed(this, backbone);

    /// <inheritdoc/>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var from = (Changed)adaptation;
        PeftAdaptation made = Attach(adaptation.Backbone, 0);
        ((Changed)made).Words.Load(from.Words.Value + from.Limited());
        return made;
    }

    /// <summary>
    /// Mean cross-entropy of each token's scores against the next token: the labels of the context, and the row's own labels
    /// (Hugging Face PEFT's loss of this method).
    /// </summary>
    /// <param name="scores">Scores <c>[batch, P + tokens, vocabulary]</c>.</param>
    /// <param name="labels">Token ids, int64 <c>[batch, tokens]</c>, not shifted; -100 is not counted.</param>
    /// <returns>A scalar.</returns>
    public Tensor Loss(Tensor scores, Tensor labels)
    {
        int[] types = Types;
        int[] groups = [.. types.Where(t => t > 0 && t % 4 == 0).Distinct().OrderDescending()];
        // The row's own labels are the last group, of weight 1.
        double Weight(int type) => DecayLoss ? Math.Pow(DecayFactor, 1 + Array.IndexOf(groups, type)) : 1;
        bool[] counted = [.. types.Select(t => t > 0 && t % 4 == 0)];
        long batch = labels.shape[0];
        Tensor context = tensor(TokenIds.Select((id, i) => counted[i] ? id : -100L).ToArray(), device: labels.device).unsqueeze(0).expand(batch, -1);
        Tensor weights = tensor(types.Select((t, i) => counted[i] ? (float)Weight(t) : 0f).ToArray(), device: labels.device).unsqueeze(0).expand(batch, -1);
        Tensor all = cat([context, labels], 1).narrow(1, 1, scores.shape[1] - 1);
        Tensor each = cat([weights, ones([batch, labels.shape[1]], device: labels.device)], 1).narrow(1, 1, scores.shape[1] - 1);
        Tensor losses = nn.functional.cross_entropy(
            scores.narrow(1, 0, scores.shape[1] - 1).reshape(-1, scores.shape[2]).to_type(ScalarType.Float32), all.reshape(-1), ignore_index: -100, reduction: nn.Reduction.None);
        return (losses * each.reshape(-1)).sum() / all.ne(-100).to_type(ScalarType.Float32).sum();
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadInserted(config);
        TokenIds = [.. AdapterConfig.List<int>(config, "cpt_token_ids")];
        TokenTypes = [.. AdapterConfig.List<int>(config, "cpt_tokens_type_mask")];
        foreach (int visible in AdapterConfig.List<int>(config, "cpt_mask"))
            if (visible != 1) throw new ArgumentException("adapter_config.json: the field 'cpt_mask' hides tokens; supported is 1 throughout.", "cpt_mask");
        Epsilon = AdapterConfig.Get(config, "opt_projection_epsilon", 0.1);
        FormatEpsilon = AdapterConfig.Get(config, "opt_projection_format_epsilon", 0.1);
        DecayFactor = AdapterConfig.Get(config, "opt_loss_decay_factor", 1.0);
        DecayLoss = AdapterConfig.Get(config, "opt_weighted_loss_type", "none") switch
        {
            "none" => false,
            "decay" => true,
            var other => throw new ArgumentException($"adapter_config.json: the field 'opt_weighted_loss_type' is '{other}'; expected is none or decay.", "opt_weighted_loss_type"),
        };
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteInserted(config, backbone);
        config["cpt_mask"] = AdapterConfig.Array(TokenIds.Select(_ => 1));
        config["cpt_token_ids"] = AdapterConfig.Array(TokenIds);
        config["cpt_tokens_type_mask"] = AdapterConfig.Array(Types);
        config["opt_loss_decay_factor"] = DecayFactor;
        config["opt_projection_epsilon"] = Epsilon;
        config["opt_projection_format_epsilon"] = FormatEpsilon;
        config["opt_weighted_loss_type"] = DecayLoss ? "decay" : "none";
        config["tokenizer_name_or_path"] = null;
    }

    private sealed class Changed(CptOptions method, Backbone backbone) : PeftAdaptation(method, backbone)
    {
        public NamedParameter Words { get; set; } = null!;

        public NamedParameter Delta { get; set; } = null!;

        public NamedParameter Limits { get; set; } = null!;

        /// <summary>δ with each row cut to its largest norm.</summary>
        public Tensor Limited()
        {
            Tensor delta = Delta.Value.detach(), limits = Limits.Value;
            return delta * (limits / delta.square().sum(1, keepdim: true).sqrt().maximum(limits));
        }

        // The optimizer starts each step, and ends it, with a change within its limits.
        public override void BeforeStep(long step) => Cut();

        public override void AfterStep(long step) => Cut();

        public override Tensor? TaskLoss(Tensor scores, Tensor labels, Func<Tensor, Tensor> loss, Pass pass) =>
            scores.dim() == 3 && labels.dim() == 2 ? method.Loss(scores, labels) : null;

        private void Cut()
        {
            using var scope = NewDisposeScope();
            using var off = no_grad();
            Delta.Value.copy_(Limited());
        }
    }
}
