// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Persistence;
using Microsoft.ML.Runtime;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>What a transformer asks of the model that it holds, whatever its rows are.</summary>
internal interface IClassificationModel : IDisposable
{
    string Task { get; }

    PeftMethod Method { get; }

    AdaptedModel Network { get; }

    LabelSet Labels { get; }

    ClassifierColumns Outputs { get; }

    IReadOnlyList<string> Inputs { get; }

    long Skipped { get; }

    Precision Precision { get; set; }

    PrecisionChoice? Choice { get; }

    DataViewSchema OutputSchema(DataViewSchema input);

    IDataView Transform(IDataView input);

    IRowToRowMapper Mapper(DataViewSchema input);

    void Save(ModelSaveContext context);

    void SaveAdapter(string folder);
}

/// <summary>All that a classification transformer holds, and its form in a model zip.</summary>
/// <typeparam name="TRow">What is read of a row.</typeparam>
internal sealed class ClassificationModel<TRow> : IClassificationModel
{
    private const string Parameters = "adapter.safetensors";
    private const uint Version = 0x00010001, OldestReadable = 0x00010001;

    private readonly ClassificationTask<TRow> _task;
    private readonly ClassificationScorer<TRow> _scorer;

    public ClassificationModel(
        ClassificationTask<TRow> task, AdaptedModel network, RowEncoder<TRow> encoder, LabelSet labels, PeftMethod method, Pooling pooling,
        ClassifierColumns outputs, BackboneSource source, bool byReference)
    {
        (_task, Method, Pooling, Outputs, Source, ByReference) = (task, method, pooling, outputs, source, byReference);
        Classifier = new Classifier<TRow>(network, encoder, labels, task.Transformer);
        _scorer = new ClassificationScorer<TRow>(Classifier, outputs);
    }

    public Classifier<TRow> Classifier { get; }

    public RowEncoder<TRow> Encoder => Classifier.Encoder;

    public PeftMethod Method { get; }

    public Pooling Pooling { get; }

    public ClassifierColumns Outputs { get; }

    public BackboneSource Source { get; }

    public bool ByReference { get; }

    public string Task => _task.Name;

    public AdaptedModel Network => Classifier.Model;

    public LabelSet Labels => Classifier.Labels;

    public IReadOnlyList<string> Inputs => Encoder.Columns.Names;

    public long Skipped => Classifier.Skipped;

    public Precision Precision
    {
        get => Classifier.Precision.Asked;
        set => Classifier.Precision.Asked = value;
    }

    public PrecisionChoice? Choice => Classifier.Precision.Choice;

    public DataViewSchema OutputSchema(DataViewSchema input) => ScoredSchema.Make(input, _scorer.OutputColumns(input));

    public IDataView Transform(IDataView input) => new ScoredView<TRow, ClassScores>(input, _scorer);

    public IRowToRowMapper Mapper(DataViewSchema input) => new ScoredRowMapper<TRow, ClassScores>(input, _scorer);

    public void Save(ModelSaveContext context)
    {
        ModelEntry.WriteHeader(context, _task.Signature, _task.LoaderSignature, Version, OldestReadable);
        var description = new JsonObject
        {
            ["task"] = _task.Name,
            ["method"] = JsonNode.Parse(PeftMethods.ToJson(Method)),
            ["pooling"] = Pooling.ToString(),
        };
        var columns = new JsonObject();
        Encoder.Describe(description, columns);
        columns["score"] = Outputs.Score;
        columns["predictedLabel"] = Outputs.PredictedLabel;
        columns["probability"] = Outputs.Probability;
        description["columns"] = columns;
        description["labels"] = Labels.ToJson();
        var hashes = new SortedDictionary<string, string>(StringComparer.Ordinal);
        ModelEntry.Write(context, Parameters, hashes, stream => ParameterFile.Write(stream, Network.Parameters));
        description["backbone"] = BackboneEntry.Save(context, Source, ByReference, hashes, _task.InputFiles);
        description["sha256"] = JsonSerializer.SerializeToNode(hashes);
        ModelEntry.WriteSealed(context, "model.json", Encoding.UTF8.GetBytes(description.ToJsonString()));
    }

    public static ClassificationModel<TRow> Load(ClassificationTask<TRow> task, IHostEnvironment environment, ModelLoadContext context)
    {
        ModelEntry.CheckHeader(context, task.Signature, task.LoaderSignature, Version, OldestReadable);
        byte[] json = ModelEntry.ReadSealed(context, "model.json");
        Libtorch.LoadAhead();
        return BackboneEntry.Guard(() => Load(task, environment, context, JsonNode.Parse(json)!.AsObject()));
    }

    private static ClassificationModel<TRow> Load(ClassificationTask<TRow> task, IHostEnvironment environment, ModelLoadContext context, JsonObject description)
    {
        var hashes = description["sha256"].Deserialize<Dictionary<string, string>>()!;
        PeftMethod method = PeftMethods.FromJson(description["method"]!.ToJsonString());
        var pooling = Enum.Parse<Pooling>((string)description["pooling"]!);
        LabelSet labels = LabelSet.FromJson(description["labels"]!.AsObject());
        JsonObject columns = description["columns"]!.AsObject(), backboneAt = description["backbone"]!.AsObject();
        bool byReference = backboneAt.ContainsKey("folder");
        var outputs = new ClassifierColumns((string)columns["score"]!, (string)columns["predictedLabel"]!, (string)columns["probability"]!);
        using CheckpointFolder checkpoint = BackboneEntry.Open(context, backboneAt, hashes, task.InputFiles);
        using SafetensorsFile parameters = SafetensorsFile.Open(ModelEntry.Read(context, Parameters, hashes), "the model zip's " + Parameters);

        Backbone backbone = BackboneLoader.Load(checkpoint, Devices.Choose(environment));
        RowEncoder<TRow> encoder;
        try
        {
            encoder = task.Encoder(checkpoint.Files, backbone.Config, description);
        }
        catch
        {
            backbone.Dispose();
            throw;
        }
        AdaptedModel network = task.Assemble(backbone, method, labels.Count, pooling, 0, parameters);
        return new ClassificationModel<TRow>(task, network, encoder, labels, method, pooling, outputs,
            BackboneSource.Of(checkpoint, byReference ? (string)backboneAt["folder"]! : null), byReference);
    }

    /// <summary>Opens the backbone's files again; the caller disposes the folder.</summary>
    public CheckpointFolder OpenSource() => CheckpointFolder.Open(Source.Files);

    public void SaveAdapter(string folder) => AdapterFolder.Save(
        folder, Network.Adaptation!, Network.Head, new AdapterSaveOptions { TaskType = _task.TaskType, BaseModel = Source.Folder });

    public void Dispose() => Classifier.Dispose();
}
