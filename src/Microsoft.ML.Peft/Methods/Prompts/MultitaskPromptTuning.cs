// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Multitask prompt tuning (Wang et al. 2023, arXiv 2303.02861): one shared prompt E and a low-rank factor a task,
/// <c>E_t = E ⊙ (C_t R_t)</c> with <c>C_t [P, r]</c>, <c>R_t [r, e]</c>. Which task a row belongs to is said by
/// <c>TokenBatch.TaskIds</c>. Trained numbers: P e + tasks · r (P + e).
/// </summary>
public sealed class MultitaskPromptTuningOptions : InsertedPromptMethod
{
    private const string Cols = "prefix_task_cols", RowsKey = "prefix_task_rows";

    /// <summary>Number of tasks.</summary>
    public int Tasks { get; set; } = 1;

    /// <summary>r: rank of a task's factor.</summary>
    public int Ranks { get; set; } = 1;

    /// <summary>Task of batches that name none, from 0.</summary>
    public int Task { get; set; }

    /// <summary>How the shared rows start.</summary>
    public PromptInit Init { get; set; }

    /// <summary>Token ids of <see cref="PromptInit.Text"/>.</summary>
    public int[] InitTokenIds { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "multitask-prompt-tuning";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "P e + tasks · r (P + e)";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "MULTITASK_PROMPT_TUNING";

    private protected override bool ReadsDecoderRows => true;

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Tasks < 1) throw Invalid(nameof(Tasks), Tasks, "1 or more");
        if (Ranks < 1) throw Invalid(nameof(Ranks), Ranks, "1 or more");
        if (Task < 0 || Task >= Tasks) throw Invalid(nameof(Task), Task, $"0 to {Tasks - 1}, one of Tasks");
        if (!Enum.IsDefined(Init)) throw Invalid(nameof(Init), Init, string.Join(", ", Enum.GetNames<PromptInit>()));
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) =>
        Rows(backbone) * Width(backbone) + (long)Tasks * Ranks * (Rows(backbone) + Width(backbone));

    /// <inheritdoc/>
    private protected override PromptRows AddRows(PeftAdaptation adaptation, long rows, long width, long seed)
    {
        string cols = "prompt_encoder." + Cols, tasks = "prompt_encoder." + RowsKey;
        NamedParameter c = Add(adaptation, cols, new Draws(seed, cols).Normal(0.02, Tasks, rows, Ranks), key: Cols);
        NamedParameter r = Add(adaptation, tasks, new Draws(seed, tasks).Normal(0.02, Tasks, Ranks, width), key: RowsKey);
        Tensor start = PromptStart.Rows(adaptation.Backbone, Init, TableName, seed, rows, width, () => InitTokenIds);
        NamedParameter shared = Add(adaptation, TableName, start, key: TableKey);
        return pass =>
        {
            if (pass?.TaskIds is not { } ids) return shared.Value * c.Value.select(0, Task).matmul(r.Value.select(0, Task));
            return shared.Value * c.Value.index_select(0, ids).matmul(r.Value.index_select(0, ids));   // [batch, rows, width]
        };
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadInserted(config);
        Tasks = AdapterConfig.Get(config, "num_tasks", 1);
        Ranks = AdapterConfig.Get(config, "num_ranks", 1);
        // Starts from other tasks' files, and from text, are over once there is a file.
        Init = AdapterConfig.Get(config, "prompt_tuning_init", "RANDOM") == "SAMPLE_VOCAB" ? PromptInit.SampleVocabulary : PromptInit.Random;
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteInserted(config, backbone);
        config["num_ranks"] = Ranks;
        config["num_tasks"] = Tasks;
        config["prompt_tuning_init"] = Init == PromptInit.SampleVocabulary ? "SAMPLE_VOCAB" : "RANDOM";
        foreach (string field in (string[])["prompt_tuning_init_state_dict_path", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"]) config[field] = null;
        config["prompt_tuning_init_task"] = 0;
    }
}
