// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Prompt tuning (Lester et al. 2021, arXiv 2104.08691): P learned rows <c>E [P, e]</c> in front of the words,
/// <c>X' = [E; X]</c>. Trained numbers: P e (2 P e on an encoder with a decoder, of which the encoder's P rows are read).
/// </summary>
public sealed partial class PromptTuningOptions : InsertedPromptMethod
{
    /// <summary>How the rows start; null for <see cref="PromptInit.SampleVocabulary"/> where words are as wide as the rows, else random.</summary>
    public PromptInit? Init { get; set; }

    /// <summary>Text of <see cref="PromptInit.Text"/>, read by the tokenizer in <see cref="Tokenizer"/>.</summary>
    public string? InitText { get; set; }

    /// <summary>Token ids in place of <see cref="InitText"/>.</summary>
    public int[] InitTokenIds { get; set; } = [];

    /// <summary>Folder of the tokenizer that reads <see cref="InitText"/>.</summary>
    public string? Tokenizer { get; set; }

    /// <summary>Rows of the word table, from its start, among which <see cref="PromptInit.SampleVocabulary"/> draws; 0 for all. In many vocabularies the first are the most frequent.</summary>
    public int SampleFrom { get; set; }

    /// <summary>Name of the adapter inside tensor names as AdapterHub writes them; null for the names of Hugging Face PEFT.</summary>
    public string? Name { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "prompt-tuning";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "P e";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => Init is PromptInit.Random or PromptInit.Uniform ? 2e-2 : 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "PROMPT_TUNING";

    /// <inheritdoc/>
    public override bool FitsHuggingFace(Backbone backbone) => Name is null && base.FitsHuggingFace(backbone);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Init is { } init && !Enum.IsDefined(init)) throw Invalid(nameof(Init), init, string.Join(", ", Enum.GetNames<PromptInit>()) + " or null");
        if (SampleFrom < 0) throw Invalid(nameof(SampleFrom), SampleFrom, "0 for all, or the number of rows");
        if (Name is { } name && (name.Length == 0 || name.Contains('.'))) throw Invalid(nameof(Name), $"'{name}'", "a name without dots, or null");
        if (Init == PromptInit.Text && InitTokenIds.Length == 0 && InitText is null)
            throw Invalid(nameof(InitText), null, "a text, or token ids in InitTokenIds, where Init is Text");
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Rows(backbone) * Width(backbone);

    /// <inheritdoc/>
    private protected override PromptRows AddRows(PeftAdaptation adaptation, long rows, long width, long seed)
    {
        string name = Name is null ? TableName : $"{HubNames.Prefix(adaptation.Backbone)}.prompt_tuning.prompt_tunings.{Name}.prompt_embedding.weight";
        Tensor start = PromptStart.Rows(adaptation.Backbone, Init ?? PromptStart.Usual(adaptation.Backbone, width), name, seed, rows, width, Tokens, SampleFrom);
        NamedParameter table = Add(adaptation, name, start, key: Name is null ? TableKey : name);
        return _ => table.Value;
    }

    private bool _fromFile;

    private int[]? Tokens()
    {
        if (InitTokenIds.Length > 0) return InitTokenIds;
        int[]? ids = PromptStart.Tokens(InitText, Tokenizer);
        // The rows of a file take the place of the start; its tokenizer need not be there.
        if (ids is null or { Length: 0 } && !_fromFile)
            throw Invalid(nameof(Tokenizer), Tokenizer is null ? null : $"'{Tokenizer}'", "the folder of a tokenizer that makes at least one token of InitText; or give InitTokenIds");
        return ids;
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadInserted(config);
        _fromFile = true;
        Init = AdapterConfig.Get(config, "prompt_tuning_init", "RANDOM") switch
        {
            "RANDOM" => PromptInit.Random,
            "TEXT" => PromptInit.Text,
            "SAMPLE_VOCAB" => PromptInit.SampleVocabulary,
            var other => throw new ArgumentException($"adapter_config.json: the field 'prompt_tuning_init' is '{other}'; expected is RANDOM, TEXT or SAMPLE_VOCAB.", "prompt_tuning_init"),
        };
        InitText = AdapterConfig.Get<string?>(config, "prompt_tuning_init_text", null);
        Tokenizer = AdapterConfig.Get<string?>(config, "tokenizer_name_or_path", null);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteInserted(config, backbone);
        // Token ids and uniform numbers have no word there; once trained, a start is no more than a note.
        config["prompt_tuning_init"] = Init switch
        {
            PromptInit.Text when InitText is not null => "TEXT",
            PromptInit.SampleVocabulary => "SAMPLE_VOCAB",
            _ => "RANDOM",
        };
        config["prompt_tuning_init_text"] = InitText;
        config["tokenizer_kwargs"] = null;
        config["tokenizer_name_or_path"] = Tokenizer;
    }
}
