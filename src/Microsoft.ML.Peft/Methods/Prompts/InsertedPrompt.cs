// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Where a prompt enters the network.</summary>
public enum PromptInsertion
{
    /// <summary>Among the rows of the word table: prompts get positions, types, norm and dropout as words do (Hugging Face PEFT).</summary>
    WordEmbedding,
    /// <summary>Behind the embeddings: prompts get none of those, and the words keep their positions (AdapterHub, VPT).</summary>
    PostEmbedding,
}

/// <summary>Where a prompt stands in a row.</summary>
public enum PromptOrder
{
    /// <summary>In front of all tokens.</summary>
    Front,
    /// <summary>Behind the token that stands for the row ([CLS]).</summary>
    AfterFirst,
}

/// <summary>Base of the prompts that are tokens of the sequence.</summary>
public abstract class InsertedPromptMethod : PromptMethod
{
    /// <summary>
    /// Where the prompt enters the network. Null for behind the embeddings where rows begin with a token that stands for them
    /// ([CLS]) and heads read that: a network that saw it nowhere but at its own position is thrown far off by prompts in front
    /// of it. Else among the words.
    /// </summary>
    public PromptInsertion? Insertion { get; set; }

    /// <summary>Where the prompt stands in a row.</summary>
    public PromptOrder Order { get; set; }

    /// <summary>
    /// True to let heads that read the first token read the prompt in front, as the classifiers of Hugging Face PEFT and
    /// AdapterHub do; false for the row's own first token. Files for those packages need true where a [CLS] token exists.
    /// </summary>
    public bool HeadReadsPrompt { get; set; }

    /// <summary>Share of the prompt's entries, in [0, 1), that is dropped while training.</summary>
    public double Dropout { get; set; }

    /// <summary>Tables of P rows: 1, or 2 with one for the decoder; null for what the backbone has.</summary>
    public int? Submodules { get; set; }

    /// <summary>True where the second table goes in front of the decoder's tokens; else it is kept and never read.</summary>
    private protected virtual bool ReadsDecoderRows => false;

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Insertion is { } insertion && !Enum.IsDefined(insertion)) throw Invalid(nameof(Insertion), insertion, string.Join(", ", Enum.GetNames<PromptInsertion>()) + " or null");
        if (!Enum.IsDefined(Order)) throw Invalid(nameof(Order), Order, string.Join(", ", Enum.GetNames<PromptOrder>()));
        CheckShare(nameof(Dropout), Dropout);
        if (Submodules is < 1 or > 2) throw Invalid(nameof(Submodules), Submodules, "1, 2 or null");
    }

    /// <inheritdoc/>
    public override bool FitsHuggingFace(Backbone backbone) => HuggingFaceType is not null
        && AmongWords(backbone) && Order == PromptOrder.Front && (HeadReadsPrompt || backbone.LeadingTokens == 0);

    /// <inheritdoc/>
    protected sealed override void Build(PeftAdaptation adaptation, long seed)
    {
        Backbone backbone = adaptation.Backbone;
        IReadOnlyList<Sequence> places = Places(backbone);
        PromptRows rows = AddRows(adaptation, Rows(backbone), Width(backbone), seed);
        int at = Order == PromptOrder.Front ? 0 : backbone.LeadingTokens;
        adaptation.Attach(places[0], new InsertPatch(this, rows, 0, at));
        if (places.Count > 1 && ReadsDecoderRows && Tables(backbone) == 2) adaptation.Attach(places[1], new InsertPatch(this, rows, Length, at));
    }

    /// <summary>Adds the parameters behind the rows.</summary>
    /// <param name="adaptation">The adaptation that is made.</param>
    /// <param name="rows">Number of rows, of all tables.</param>
    /// <param name="width">Width of a row.</param>
    /// <param name="seed">Seed of the initial values.</param>
    private protected abstract PromptRows AddRows(PeftAdaptation adaptation, long rows, long width, long seed);

    /// <summary>Number of rows of all tables.</summary>
    private protected long Rows(Backbone backbone) => (long)Length * Tables(backbone);

    /// <summary>Width of what the prompt stands among.</summary>
    private protected long Width(Backbone backbone) => AmongWords(backbone)
        && backbone.Sites.OfType<Embedding>().FirstOrDefault(s => s.Role == SiteRole.WordEmbedding) is { } words
        ? words.Weight.shape[1] : backbone.WidthAt(-1);

    private bool AmongWords(Backbone backbone) => Insertion is { } given
        ? given == PromptInsertion.WordEmbedding : HeadReadsPrompt || backbone.LeadingTokens == 0;

    private int Tables(Backbone backbone) => Submodules ?? (PromptPlaces.HasDecoder(backbone) ? 2 : 1);

    private IReadOnlyList<Sequence> Places(Backbone backbone)
    {
        if (Order == PromptOrder.AfterFirst && backbone.LeadingTokens == 0)
            throw Invalid(nameof(Order), Order, $"{PromptOrder.Front}: a {backbone.Config.ModelType} backbone has no first token that stands for the row");
        IReadOnlyList<Sequence> places = PromptPlaces.Sequences(backbone, AmongWords(backbone));
        return places.Count > 0 ? places : throw new ArgumentException($"A {backbone.Config.ModelType} backbone has no sequence that a prompt could be put into.");
    }

    /// <summary>Reads what all inserted prompts have.</summary>
    /// <param name="config">The whole adapter_config.json.</param>
    private protected void ReadInserted(JsonObject config)
    {
        ReadLength(config);
        HeadReadsPrompt = true;
        Submodules = AdapterConfig.Get<int?>(config, "num_transformer_submodules", null);
    }

    /// <summary>Writes what all inserted prompts have.</summary>
    /// <param name="config">The object to fill.</param>
    /// <param name="backbone">The frozen network.</param>
    private protected void WriteInserted(JsonObject config, Backbone backbone) => WriteGeometry(config, backbone, Tables(backbone), keys: false);

    private sealed class InsertPatch(InsertedPromptMethod options, PromptRows rows, int start, int at) : SequencePatch
    {
        public override Tensor Change(Tensor hidden, Pass pass)
        {
            Tensor prompt = rows(pass);
            long batch = hidden.shape[0], tokens = hidden.shape[1];
            prompt = prompt.dim() == 3 ? prompt.narrow(1, start, options.Length) : prompt.narrow(0, start, options.Length).unsqueeze(0).expand(batch, -1, -1);
            prompt = pass.Dropout(prompt, options.Dropout).to_type(hidden.dtype);                  // [batch, P, width]
            pass.Layout = pass.Layout.Insert(options.Length, at, options.HeadReadsPrompt && at == 0);
            return cat([hidden.narrow(1, 0, at), prompt, hidden.narrow(1, at, tokens - at)], 1);
        }
    }
}
