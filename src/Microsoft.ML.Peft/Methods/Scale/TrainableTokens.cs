// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Trainable tokens: some rows of an embedding table are trained, <c>E[t] = δ_t</c> for the chosen t, and start as they were;
/// all others stay. For new special tokens, without the memory of a whole trained table. Where the output layer shares the
/// table it sees the trained rows, too. Merging puts the rows in place.
/// </summary>
public sealed class TrainableTokensOptions : SiteMethod
{
    private const string Suffix = ".trainable_tokens_delta";

    /// <summary>Ids of the tokens whose rows are trained: at least one, 0 or more, none twice.</summary>
    public int[] TokenIndices { get; set; } = [];

    /// <summary>False to start from normal random rows in place of the table's; for tests.</summary>
    public bool InitWeights { get; set; } = true;

    /// <summary>Module paths of output layers that share the table (<c>lm_head</c>): exchanged files hold the rows there, too.</summary>
    public string[] TiedModules { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "trainable-tokens";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "partial";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 5e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override IReadOnlyList<string> ExampleSettings => ["tokenIndices=101,102"];                     // [CLS] and [SEP]

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, false);

    [JsonIgnore]
    internal override bool StoresTables => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "n d";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "TRAINABLE_TOKENS";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override IReadOnlyList<SiteRole> DefaultRoles => [SiteRole.WordEmbedding];

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (TokenIndices.Length == 0) throw Invalid(nameof(TokenIndices), "empty", "at least one token id");
        foreach (int index in TokenIndices)
            if (index < 0) throw Invalid(nameof(TokenIndices), index, "0 or more");
        if (TokenIndices.GroupBy(i => i).FirstOrDefault(g => g.Count() > 1) is { } twice) throw Invalid(nameof(TokenIndices), $"{twice.Key}, twice", "each id once");
    }

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Embedding or Projection;

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long rows = site.Weight.shape[0], width = site.Weight.shape[1];
        int[] beyond = [.. TokenIndices.Where(i => i >= rows)];
        if (beyond.Length > 0) throw Invalid(nameof(TokenIndices), string.Join(", ", beyond), $"0 to {rows - 1}: {path} has {rows} rows");
        string name = path + Suffix;
        Tensor ids = tensor(Array.ConvertAll(TokenIndices, i => (long)i)).to(site.Weight.device);
        var delta = new NamedParameter(name, InitWeights ? TrainedCopies.Copy(site.Weight.index_select(0, ids))
            : new Draws(seed, name).Normal(1, TokenIndices.Length, width).to(site.Weight.device))
        {
            Copies = [.. TiedModules.Union(FromFile ? [] : Tied(adaptation, site).Select(adaptation.Backbone.PathOf)).Select(module => module + Suffix)],
            Decay = false,
        };
        adaptation.Add(delta);
        var patch = new TokenRowsPatch(delta, adaptation.Add(TokenRowsPatch.Places(path, rows, ids)), ids.numel());
        // At an output layer the rows of its weight are tokens', too.
        adaptation.Attach(site, site is Embedding ? patch : new RewritePatch(patch.Rewrite));
        foreach (Projection head in Tied(adaptation, site)) adaptation.Attach(head, new RewritePatch(patch.Rewrite));
    }

    // Output layers that score by the same table.
    private static IEnumerable<Projection> Tied(PeftAdaptation adaptation, WeightSite site) =>
        adaptation.Backbone.Sites.OfType<Projection>().Where(head => ReferenceEquals(head.TiedTo, site));

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => TokenIndices.Length * site.Weight.shape[1];

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        TokenIndices = [.. AdapterConfig.List<int>(config, "token_indices")];
        InitWeights = AdapterConfig.Get(config, "init_weights", true);
        if (TokenIndices.Length > 0) Validate();                               // none at all is told when it is attached
    }

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes)
    {
        const string prefix = "base_model.model.";
        string[] modules = [.. shapes.Keys.Where(k => k.StartsWith(prefix, StringComparison.Ordinal) && k.EndsWith(Suffix, StringComparison.Ordinal))
            .Select(k => k[prefix.Length..^Suffix.Length])];
        // What no target names is there as a copy.
        TiedModules = [.. modules.Where(module => !IsTarget(module))];
        if (TiedModules.Length == modules.Length) TiedModules = [];
    }

    private bool IsTarget(string module) => TargetPattern is not null ? Regex.IsMatch(module, $@"\A(?:{TargetPattern})\z")
        : Targets.Length > 0 ? Targets.Any(target => TargetMatcher.Names(target, module)) : !TargetMatcher.Names("lm_head", module);

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config.Remove("modules_to_save");
        config["token_indices"] = AdapterConfig.Array(TokenIndices);
        config["init_weights"] = InitWeights;
    }
}

/// <summary>Trained rows in place of some rows of a table; only what is looked up is made.</summary>
/// <param name="rows">The trained rows <c>[n, width]</c>.</param>
/// <param name="places">For each row of the table, which trained row stands for it; -1 for its own.</param>
/// <param name="count">Number n of trained rows.</param>
internal sealed class TokenRowsPatch(NamedParameter rows, NamedParameter places, long count) : WeightPatch
{
    /// <summary>The map from tokens to trained rows, a buffer that follows from the options.</summary>
    /// <param name="path">Path of the table.</param>
    /// <param name="tableRows">Rows of the table.</param>
    /// <param name="ids">Tokens, int64 <c>[n]</c>.</param>
    public static NamedParameter Places(string path, long tableRows, Tensor ids)
    {
        Tensor none = full(tableRows, -1L, dtype: ScalarType.Int64, device: ids.device);
        return new NamedParameter($"{path}.trainable_tokens_places", none.index_copy(0, ids, arange(ids.numel(), dtype: ScalarType.Int64, device: ids.device)), trainable: false)
        {
            Saved = false,
        };
    }

    public override PatchForm Form => PatchForm.Around;

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor frozen = next(x);                                                             // [..., width]
        Tensor place = places.Value.index_select(0, x.reshape(-1));                          // [tokens]
        Tensor trained = rows.Value.index_select(0, place.clamp_min(0)).reshape(frozen.shape);
        return where((place >= 0).reshape([.. x.shape, 1]), trained.to_type(frozen.dtype), frozen);
    }

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        Tensor ids = (places.Value >= 0).nonzero().reshape(-1);
        Tensor order = places.Value.index_select(0, ids);                                    // trained row of each
        if (ids.numel() != count) throw new InvalidOperationException($"{rows.Name}: the map from tokens to rows is damaged.");
        return (weight.index_copy(0, ids, rows.Value.index_select(0, order).to_type(weight.dtype)), bias);
    }
}
