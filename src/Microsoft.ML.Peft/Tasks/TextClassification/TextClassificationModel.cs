// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Persistence;
using Microsoft.ML.Runtime;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>All that a text-classification transformer holds, and its form in a model zip.</summary>
internal sealed class TextClassificationModel : IDisposable
{
    public const string UserName = "PEFT text classification";
    public const string LoaderSignature = "PeftTextClassification";
    private const string Signature = "PEFTTXCL";
    private const string Parameters = "adapter.safetensors";
    private const uint Version = 0x00010001, OldestReadable = 0x00010001;

    private readonly BackboneSource _source;
    private readonly bool _byReference;

    public TextClassificationModel(
        TextClassifier classifier, PeftMethod method, Pooling pooling, TextColumns text, ClassifierColumns columns, BackboneSource source, bool byReference)
    {
        Classifier = classifier;
        Method = method;
        Pooling = pooling;
        Text = text;
        Columns = columns;
        _source = source;
        _byReference = byReference;
    }

    public TextClassifier Classifier { get; }

    public PeftMethod Method { get; }

    public Pooling Pooling { get; }

    public TextColumns Text { get; }

    public ClassifierColumns Columns { get; }

    public BackboneSource Source => _source;

    public bool ByReference => _byReference;

    public string SourceSha256 => _source.Sha256.Value;

    /// <summary>Opens the backbone's files again; the caller disposes the folder.</summary>
    public CheckpointFolder OpenSource() => CheckpointFolder.Open(_source.Files);

    /// <summary>Opens a backbone's files: a folder, or the embedded default.</summary>
    public static CheckpointFolder OpenBackbone(string? folder) => folder is null ? DefaultBackbone.Open() : CheckpointFolder.Open(folder);

    public void Save(ModelSaveContext context)
    {
        ModelEntry.WriteHeader(context, Signature, LoaderSignature, Version, OldestReadable);
        var description = new JsonObject
        {
            ["task"] = "text-classification",
            ["method"] = JsonNode.Parse(PeftMethods.ToJson(Method)),
            ["pooling"] = Pooling.ToString(),
            ["maxTokens"] = Classifier.MaxTokens,
            ["columns"] = new JsonObject
            {
                ["sentence1"] = Text.First,
                ["sentence2"] = Text.Second,
                ["score"] = Columns.Score,
                ["predictedLabel"] = Columns.PredictedLabel,
                ["probability"] = Columns.Probability,
            },
            ["labels"] = Classifier.Labels.ToJson(),
        };
        var hashes = new SortedDictionary<string, string>(StringComparer.Ordinal);
        ModelEntry.Write(context, Parameters, hashes, stream => ParameterFile.Write(stream, Classifier.Model.Parameters));
        description["backbone"] = BackboneEntry.Save(context, _source, _byReference, hashes);
        description["sha256"] = JsonSerializer.SerializeToNode(hashes);
        ModelEntry.WriteSealed(context, "model.json", Encoding.UTF8.GetBytes(description.ToJsonString()));
    }

    public static TextClassificationModel Load(IHostEnvironment environment, ModelLoadContext context)
    {
        ModelEntry.CheckHeader(context, Signature, LoaderSignature, Version, OldestReadable);
        byte[] json = ModelEntry.ReadSealed(context, "model.json");
        Device device = Devices.Choose(environment);
        return BackboneEntry.Guard(() => Load(device, context, JsonNode.Parse(json)!.AsObject()));
    }

    private static TextClassificationModel Load(Device device, ModelLoadContext context, JsonObject description)
    {
        var hashes = description["sha256"].Deserialize<Dictionary<string, string>>()!;
        PeftMethod method = PeftMethods.FromJson(description["method"]!.ToJsonString());
        var pooling = Enum.Parse<Pooling>((string)description["pooling"]!);
        LabelSet labels = LabelSet.FromJson(description["labels"]!.AsObject());
        JsonObject columns = description["columns"]!.AsObject(), backboneAt = description["backbone"]!.AsObject();
        bool byReference = backboneAt.ContainsKey("folder");
        var text = new TextColumns((string)columns["sentence1"]!, (string?)columns["sentence2"]);
        var outputs = new ClassifierColumns((string)columns["score"]!, (string)columns["predictedLabel"]!, (string)columns["probability"]!);
        int maxTokens = (int)description["maxTokens"]!;
        using CheckpointFolder checkpoint = BackboneEntry.Open(context, backboneAt, hashes);
        using SafetensorsFile parameters = SafetensorsFile.Open(ModelEntry.Read(context, Parameters, hashes), "the model zip's " + Parameters);

        TextTokenizer tokenizer = TextTokenizer.Load(checkpoint.Files);
        AdaptedModel model = Assemble(BackboneLoader.Load(checkpoint, device), method, labels.Count, pooling, 0, parameters);
        return new TextClassificationModel(
            new TextClassifier(model, tokenizer, labels, maxTokens), method, pooling, text, outputs,
            BackboneSource.Of(checkpoint, byReference ? (string)backboneAt["folder"]! : null), byReference);
    }

    /// <summary>Builds backbone, adaptation and head into one model, perhaps with stored parameters; takes the backbone.</summary>
    public static AdaptedModel Assemble(Backbone backbone, PeftMethod method, int classes, Pooling pooling, long seed, SafetensorsFile? stored)
    {
        PeftAdaptation? adaptation = null;
        Head? head = null;
        try
        {
            CheckReadsOneText(backbone.Config);
            if (method.Restack(backbone) is { } stack)
            {
                backbone.Dispose();
                backbone = stack;
            }
            adaptation = method.Attach(backbone, seed);
            head = new SequenceClassificationHead(backbone, classes, pooling, seed + 1);
            var model = new AdaptedModel(backbone, adaptation, head, ownsBackbone: true);
            if (stored is not null) ParameterFile.Fill(model.Parameters, stored);
            return model;
        }
        catch
        {
            adaptation?.Dispose();
            head?.Dispose();
            backbone.Dispose();
            throw;
        }
    }

    private static void CheckReadsOneText(BackboneConfig config)
    {
        string? why = config.Input == BackboneInput.Images ? "reads images" : config.Input == BackboneInput.Sound ? "reads sounds" : config.DecoderStart is not null ? "writes a text for a text" : null;
        if (why is not null)
            throw new ArgumentException($"The backbone is of model_type {config.ModelType}, which {why}; a text classifier needs one that reads a text, such as bert, roberta or llama.", "BackboneFolder");
    }

    public void SaveAdapter(string folder) => AdapterFolder.Save(
        folder, Classifier.Model.Adaptation!, Classifier.Model.Head, new AdapterSaveOptions { TaskType = "SEQ_CLS", BaseModel = _source.Folder });

    public void Dispose() => Classifier.Dispose();
}
