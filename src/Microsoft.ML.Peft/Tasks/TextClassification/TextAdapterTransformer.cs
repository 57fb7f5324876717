// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Persistence;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Runtime;

[assembly: LoadableClass(typeof(TextAdapterTransformer), null, typeof(SignatureLoadModel),
    TextAdapterTransformer.UserName, TextAdapterTransformer.LoaderSignature)]

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Several text classifiers that were trained on one backbone, in one transformer: a text column names the adapter of each row.
/// The backbone is in memory, and in the model zip, once. Rows of all adapters share a batch. Scoring is lazy and thread-safe.
/// </summary>
public sealed class TextAdapterTransformer : ITransformer, IScoresInPrecision, IDisposable
{
    internal const string UserName = "PEFT text classification, an adapter a row", LoaderSignature = "PeftTextAdapters";
    private const string Signature = "PEFTTXAD";
    private const uint Version = 0x00010001, OldestReadable = 0x00010001;

    private readonly TextAdapterClassifier _classifier;
    private readonly IReadOnlyList<TextAdapterPart> _parts;
    private readonly TextColumns _text;
    private readonly ClassifierColumns _columns;
    private readonly BackboneSource _source;
    private readonly bool _byReference;
    private readonly TextAdapterScorer _scorer;

    private TextAdapterTransformer(
        TextAdapterClassifier classifier, IReadOnlyList<TextAdapterPart> parts, TextColumns text, string adapterColumn, ClassifierColumns columns, BackboneSource source, bool byReference)
    {
        (_classifier, _parts, _text, AdapterColumn, _columns, _source, _byReference) = (classifier, parts, text, adapterColumn, columns, source, byReference);
        _scorer = new TextAdapterScorer(classifier, text, adapterColumn, columns);
    }

    /// <summary>Name of the column that names each row's adapter.</summary>
    public string AdapterColumn { get; }

    /// <summary>In what numbers rows are scored, as <see cref="ClassificationTransformer.ScoringPrecision"/> tells.</summary>
    /// <exception cref="ArgumentOutOfRangeException">No such precision.</exception>
    public Precision ScoringPrecision
    {
        get => _classifier.Precision.Asked;
        set => _classifier.Precision.Asked = value;
    }

    /// <summary>What <see cref="Precision.Auto"/> chose for scoring, and why; null where it was not asked, or has not yet seen the rows to choose by.</summary>
    public PrecisionChoice? ScoringPrecisionChoice => _classifier.Precision.Choice;

    /// <summary>Names of the adapters and compositions.</summary>
    public IReadOnlyList<string> Adapters => _classifier.Adapters.Names;

    /// <inheritdoc/>
    public bool IsRowToRowMapper => true;

    // The models are copied: they stay their owner's.
    internal static TextAdapterTransformer Join(
        IHostEnvironment environment, IReadOnlyDictionary<string, TextClassificationTransformer> models, string adapterColumn, IReadOnlyDictionary<string, Composition> compositions)
    {
        ArgumentNullException.ThrowIfNull(models);
        ArgumentException.ThrowIfNullOrEmpty(adapterColumn);
        if (models.Count == 0) throw new ArgumentException("There is no model to join; give at least one trained text classifier by name.", nameof(models));
        (string firstName, ClassificationModel<TextRow> first) = (models.First().Key, models.First().Value.Inner);
        foreach ((string name, TextClassificationTransformer model) in models) CheckAlike(firstName, first, name, model.Inner);
        using CheckpointFolder folder = first.OpenSource();
        return Assemble(folder, Devices.Choose(environment), first, [.. models.Select(m => new TextAdapterPart(m.Key, m.Value.Method, m.Value.Inner.Pooling))], adapterColumn,
            compositions, (part, parameters) => part.Copy(models[part.Name].Model.Parameters, parameters));
    }

    private static void CheckAlike(string firstName, ClassificationModel<TextRow> first, string name, ClassificationModel<TextRow> other)
    {
        void Same(string what, object? a, object? b)
        {
            if (!Equals(a, b)) throw new ArgumentException($"The models '{firstName}' and '{name}' have different {what}: {a} and {b}. Joined models share one backbone, text columns and labels.", "models");
        }
        Same("backbones", first.Source.Sha256.Value, other.Source.Sha256.Value);
        Same("text columns", string.Join(", ", first.Inputs), string.Join(", ", other.Inputs));
        Same("longest texts", ((TextEncoder)first.Encoder).MaxTokens, ((TextEncoder)other.Encoder).MaxTokens);
        Same("labels", first.Labels.ToJson().ToJsonString(), other.Labels.ToJson().ToJsonString());
        Same("output columns", first.Outputs, other.Outputs);
    }

    private static TextAdapterTransformer Assemble(
        CheckpointFolder folder, TorchSharp.torch.Device device, ClassificationModel<TextRow> like, IReadOnlyList<TextAdapterPart> parts, string adapterColumn,
        IReadOnlyDictionary<string, Composition> compositions, Action<TextAdapterPart, IReadOnlyList<NamedParameter>> fill) =>
        new(Build(folder, device, parts, like.Labels, ((TextEncoder)like.Encoder).MaxTokens, ((TextEncoder)like.Encoder).Text, compositions, fill), parts, ((TextEncoder)like.Encoder).Text, adapterColumn, like.Outputs, like.Source, like.ByReference);

    private static TextAdapterClassifier Build(
        CheckpointFolder folder, TorchSharp.torch.Device device, IReadOnlyList<TextAdapterPart> parts, LabelSet labels, int maxTokens, TextColumns text,
        IReadOnlyDictionary<string, Composition> compositions, Action<TextAdapterPart, IReadOnlyList<NamedParameter>> fill)
    {
        var encoder = new TextEncoder(TextTokenizer.Load(folder.Files), maxTokens, text);
        Backbone backbone = BackboneLoader.Load(folder, device);
        var set = new AdapterSet(backbone);
        try
        {
            foreach (TextAdapterPart part in parts)
            {
                PeftAdaptation adaptation = part.Method.Attach(backbone, 0);
                var head = new SequenceClassificationHead(backbone, labels.Count, part.Pooling);
                set.Add(part.Name, adaptation, head);
                fill(part, [.. adaptation.Parameters, .. head.Parameters]);
            }
            foreach ((string name, Composition tree) in compositions)
            {
                if (tree.Fusions.Any()) throw new ArgumentException($"The composition '{name}' holds a fusion, whose weights no trained classifier brings; fusions compose in an AdapterSet.", nameof(compositions));
                set.Define(name, tree);
            }
            return new TextAdapterClassifier(backbone, set, encoder, labels);
        }
        catch
        {
            set.Dispose();
            backbone.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">A text column or the adapter column is missing or holds no text.</exception>
    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        return ScoredSchema.Make(inputSchema, _scorer.OutputColumns(inputSchema));
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">A text column or the adapter column is missing or holds no text.</exception>
    public IDataView Transform(IDataView input)
    {
        ArgumentNullException.ThrowIfNull(input);
        return new ScoredView<AdapterRow, ClassScores>(input, _scorer);
    }

    /// <inheritdoc/>
    public IRowToRowMapper GetRowToRowMapper(DataViewSchema inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        return new ScoredRowMapper<AdapterRow, ClassScores>(inputSchema, _scorer);
    }

    void ICanSaveModel.Save(ModelSaveContext ctx)
    {
        ModelEntry.WriteHeader(ctx, Signature, LoaderSignature, Version, OldestReadable);
        var hashes = new SortedDictionary<string, string>(StringComparer.Ordinal);
        var adapters = new JsonArray();
        for (int i = 0; i < _parts.Count; i++)
        {
            int at = i;
            adapters.Add((JsonNode)_parts[i].ToJson());
            ModelEntry.Write(ctx, Entry(i), hashes, stream => ParameterFile.Write(stream, _classifier.Adapters.ParametersOf(_parts[at].Name)));
        }
        var description = new JsonObject
        {
            ["task"] = "text-classification",
            ["adapters"] = adapters,
            ["compositions"] = new JsonObject(_classifier.Adapters.Compositions.Select(c => KeyValuePair.Create(c.Key, (JsonNode?)c.Value.ToJson()))),
            ["adapterColumn"] = AdapterColumn,
            ["maxTokens"] = _classifier.Encoder.MaxTokens,
            ["sentence1"] = _text.First,
            ["sentence2"] = _text.Second,
            ["score"] = _columns.Score,
            ["predictedLabel"] = _columns.PredictedLabel,
            ["probability"] = _columns.Probability,
            ["labels"] = _classifier.Labels.ToJson(),
            ["backbone"] = BackboneEntry.Save(ctx, _source, _byReference, hashes, TextTokenizer.FileNames),
        };
        description["sha256"] = JsonSerializer.SerializeToNode(hashes);
        ModelEntry.WriteSealed(ctx, "model.json", Encoding.UTF8.GetBytes(description.ToJsonString()));
    }

    private static string Entry(int number) => FormattableString.Invariant($"adapter{number}.safetensors");

    // Found by mlContext.Model.Load through the attribute above.
    private static TextAdapterTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        ModelEntry.CheckHeader(ctx, Signature, LoaderSignature, Version, OldestReadable);
        byte[] json = ModelEntry.ReadSealed(ctx, "model.json");
        Libtorch.LoadAhead();
        return BackboneEntry.Guard(() => Load(env, ctx, JsonNode.Parse(json)!.AsObject()));
    }

    private static TextAdapterTransformer Load(IHostEnvironment env, ModelLoadContext ctx, JsonObject description)
    {
        var hashes = description["sha256"].Deserialize<Dictionary<string, string>>()!;
        TextAdapterPart[] parts = [.. description["adapters"]!.AsArray().Select(a => TextAdapterPart.FromJson(a!.AsObject()))];
        JsonObject at = description["backbone"]!.AsObject();
        using CheckpointFolder folder = BackboneEntry.Open(ctx, at, hashes, TextTokenizer.FileNames);
        var text = new TextColumns((string)description["sentence1"]!, (string?)description["sentence2"]);
        TextAdapterClassifier classifier = Build(folder, Devices.Choose(env), parts, LabelSet.FromJson(description["labels"]!.AsObject()), (int)description["maxTokens"]!, text,
            description["compositions"]!.AsObject().ToDictionary(c => c.Key, c => Composition.FromJson(c.Value!)), (part, parameters) =>
        {
            string entry = Entry(Array.IndexOf(parts, part));
            using SafetensorsFile file = SafetensorsFile.Open(ModelEntry.Read(ctx, entry, hashes), "the model zip's " + entry);
            ParameterFile.Fill(parameters, file);
        });
        return new TextAdapterTransformer(classifier, parts, text, (string)description["adapterColumn"]!,
            new ClassifierColumns((string)description["score"]!, (string)description["predictedLabel"]!, (string)description["probability"]!),
            BackboneSource.Of(folder, (string?)at["folder"]), at.ContainsKey("folder"));
    }

    /// <summary>Frees the network's memory.</summary>
    public void Dispose() => _classifier.Dispose();
}

/// <summary>One adapter of the set: its name, method and pooling.</summary>
internal sealed record TextAdapterPart(string Name, PeftMethod Method, Pooling Pooling)
{
    public JsonObject ToJson() => new() { ["name"] = Name, ["method"] = JsonNode.Parse(PeftMethods.ToJson(Method)), ["pooling"] = Pooling.ToString() };

    public static TextAdapterPart FromJson(JsonObject json) =>
        new((string)json["name"]!, PeftMethods.FromJson(json["method"]!.ToJsonString()), Enum.Parse<Pooling>((string)json["pooling"]!));

    public void Copy(IReadOnlyList<NamedParameter> from, IReadOnlyList<NamedParameter> to)
    {
        Dictionary<string, NamedParameter> there = from.ToDictionary(p => p.Name);
        foreach (NamedParameter parameter in to) parameter.Load(there[parameter.Name].Value.detach());
    }
}
