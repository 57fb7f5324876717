// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.IO.Compression;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Export;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Transforms;
using TorchSharp;

namespace Microsoft.ML.Peft.Bench;

/// <summary>
/// Writes what all sides read: token ids, the composition of batches, values to train from and trained ones, backbones in
/// float32, the trained classifier as a model zip and as ONNX files.
/// </summary>
internal static class Preparation
{
    public const string OnnxFile = "model.onnx", QuantisedFile = "model.int8.onnx", Zip = "model.zip", Texts = "score.texts", SmallName = "MiniLM-L6";
    private const int MostTrainRows = 4096, MostScoreRows = 1024, ZipSteps = 200;
    private const int Version = 2;    // of what is written here
    private const ulong Seed = 1;

    /// <summary>Folder of the small network, pretrained, and of the one of BERT-base's geometry, with random weights.</summary>
    public static string Small(string folder) => Path.Combine(folder, "minilm");

    /// <inheritdoc cref="Small"/>
    public static string Base(string folder) => Path.Combine(folder, "bert-base");

    /// <summary>Folder of the small network's first layer, with its tokenizer.</summary>
    public static string OneLayer(string folder) => Path.Combine(folder, "growth", "one-layer");

    /// <summary>Folder of a random network as wide as the small one, with so many layers.</summary>
    public static string Layers(string folder, int layers) => Path.Combine(folder, "growth", $"layers-{layers}");

    /// <summary>A table of texts and labels, and a backbone's folder or null for the embedded one. Nothing is done twice.</summary>
    public static void Run(string folder, string name, string train, string test, string? backbone)
    {
        string stamp = $"{name} {Version} {typeof(AdaptedModel).Module.ModuleVersionId}";
        string stampFile = Path.Combine(folder, "stamp");
        if (File.Exists(stampFile) && File.ReadAllText(stampFile) == stamp) return;
        Directory.CreateDirectory(folder);
        File.Delete(stampFile);
        Console.Error.WriteLine("preparing rows, values and files; this is done once for a build");
        File.WriteAllText(Path.Combine(folder, "name"), name);
        WriteSmall(Small(folder), train, test, backbone);
        WriteBase(Base(folder), Small(folder));
        WriteGrowth(folder, backbone);
        File.WriteAllText(stampFile, stamp);
    }

    private static void WriteSmall(string folder, string train, string test, string? backbone)
    {
        Directory.CreateDirectory(folder);
        using CheckpointFolder checkpoint = backbone is null ? DefaultBackbone.Open() : CheckpointFolder.Open(backbone);
        TextTokenizer tokenizer = TextTokenizer.Load(checkpoint.Files);
        string[] labels = [.. ReadTable(train).Select(r => r.Label).Distinct().Order(StringComparer.Ordinal)];
        Sentence[] trainTexts = Choose(train, MostTrainRows), scoreTexts = Choose(test, MostScoreRows);
        Example[] trainRows = Encode(trainTexts, tokenizer, labels), scoreRows = Encode(scoreTexts, tokenizer, labels);
        WriteRows(Path.Combine(folder, "train.rows"), trainRows);
        WriteRows(Path.Combine(folder, "score.rows"), scoreRows);
        File.WriteAllLines(Path.Combine(folder, Texts), scoreTexts.Select(t => t.Text));
        WriteBatches(Path.Combine(folder, "train.batches"), TrainBatches(trainRows));
        WriteBatches(Path.Combine(folder, "score.batches"), ByLength(scoreRows).Chunk(Material.ScoreBatch));
        WriteBackbone(checkpoint, Material.Backbone(folder, dropout: true));
        WriteInit(folder, labels.Length);
        WriteTrained(folder, trainTexts, backbone);
    }

    // The same rows through another network: fewer batches, evenly chosen, since each costs eight times as much.
    private static void WriteBase(string folder, string small)
    {
        const int ScoreBatches = 4;
        Directory.CreateDirectory(folder);
        foreach (string file in new[] { "train.rows", "score.rows", "train.batches" }) File.Copy(Path.Combine(small, file), Path.Combine(folder, file), overwrite: true);
        string[] batches = File.ReadAllLines(Path.Combine(small, "score.batches"));
        File.WriteAllLines(Path.Combine(folder, "score.batches"), batches.Where((_, i) => i % Math.Max(1, batches.Length / ScoreBatches) == 0));
        RandomBackbone.Write(Material.Backbone(folder, dropout: true), layers: 12, width: 768, heads: 12);
        int classes;
        using (SafetensorsFile init = SafetensorsFile.Open(Path.Combine(small, Material.Init))) classes = (int)init.Info("classifier.bias").Shape[0];
        WriteInit(folder, classes);
        using AdaptedModel model = Material.Load(folder, dropout: true, Material.Init);
        using var scope = torch.NewDisposeScope();
        foreach (NamedParameter parameter in model.Parameters)
            parameter.Load(parameter.Value + new Methods.Draws((long)Seed, parameter.Name).Normal(0.02, parameter.Value.shape));
        WriteValues(Path.Combine(folder, Material.Trained), model);
        WriteOnnx(folder, model);
    }

    // Networks of several depths are the deepest one's file under other settings.
    private static void WriteGrowth(string folder, string? backbone)
    {
        using CheckpointFolder checkpoint = backbone is null ? DefaultBackbone.Open() : CheckpointFolder.Open(backbone);
        string one = OneLayer(folder), small = Material.Backbone(Small(folder), dropout: true);
        Directory.CreateDirectory(one);
        foreach (string file in checkpoint.Files.Names.Where(n => !n.Contains('/') && (n.EndsWith(".txt", StringComparison.Ordinal) || n.EndsWith(".json", StringComparison.Ordinal))))
        {
            using Stream from = checkpoint.Files.Open(file);
            using FileStream to = File.Create(Path.Combine(one, file));
            from.CopyTo(to);
        }
        RandomBackbone.WriteCut(one, small, 1);
        RandomBackbone.Write(Layers(folder, 12), layers: 12, width: 384, heads: 12);
        for (int layers = 1; layers < 12; layers++) RandomBackbone.WriteCut(Layers(folder, layers), Layers(folder, 12), layers);
    }

    private static IEnumerable<Sentence> ReadTable(string path)
    {
        using Stream file = File.OpenRead(path);
        using var reader = new StreamReader(path.EndsWith(".gz", StringComparison.Ordinal) ? new GZipStream(file, CompressionMode.Decompress) : file);
        reader.ReadLine();
        while (reader.ReadLine() is { } line)
        {
            string[] fields = line.Split('\t');
            yield return new Sentence { Text = fields[0], Label = fields[1] };
        }
    }

    private static Sentence[] Choose(string path, int most)
    {
        Sentence[] table = [.. ReadTable(path)];
        return [.. RowOrder.Permutation(table.Length, Seed, 0).Take(most).Select(i => table[i])];
    }

    private static Example[] Encode(Sentence[] texts, TextTokenizer tokenizer, string[] labels) =>
        Array.ConvertAll(texts, t => new Example { Ids = tokenizer.Encode(t.Text, null, Material.MaxTokens).Ids, Label = Array.IndexOf(labels, t.Label) });

    // Batches of like lengths, as the library's own trainer makes them, in a random order.
    private static IEnumerable<int[]> TrainBatches(Example[] rows)
    {
        int[] order = RowOrder.GroupByLength(RowOrder.Permutation(rows.Length, Seed, 1), [.. rows.Select(r => r.Length)], Material.TrainBatch);
        int[][] batches = [.. order.Chunk(Material.TrainBatch).Where(b => b.Length == Material.TrainBatch)];
        return RowOrder.Permutation(batches.Length, Seed, 2).Select(i => batches[i]);
    }

    private static IEnumerable<int> ByLength(Example[] rows) => Enumerable.Range(0, rows.Length).OrderBy(i => rows[i].Length);

    private static void WriteRows(string path, Example[] rows) =>
        File.WriteAllLines(path, rows.Select(r => $"{r.Label} {string.Join(' ', r.Ids)}"));

    private static void WriteBatches(string path, IEnumerable<int[]> batches) =>
        File.WriteAllLines(path, batches.Select(b => string.Join(' ', b)));

    private static void WriteBackbone(CheckpointFolder checkpoint, string target)
    {
        Directory.CreateDirectory(target);
        using Stream stream = checkpoint.Files.Open("config.json");
        RandomBackbone.WriteConfigs(target, JsonNode.Parse(stream)!.AsObject());
        string weights = Path.Combine(target, "model.safetensors");
        if (File.Exists(weights)) return;
        using var scope = torch.NewDisposeScope();
        var writer = new SafetensorsWriter();
        foreach (CheckpointTensor tensor in checkpoint.Tensors.Where(t => !t.Name.EndsWith("position_ids", StringComparison.Ordinal)))
            writer.Add(tensor.Name, checkpoint.Load(tensor.Name, [.. tensor.Shape], torch.ScalarType.Float32, torch.CPU));
        writer.Save(weights);
    }

    // One set of fresh values for both sides: A drawn, B zero, the classifier drawn.
    private static void WriteInit(string folder, int classes)
    {
        using AdaptedModel model = Material.Model(Material.Backbone(folder, dropout: true), classes, dropout: true);
        WriteValues(Path.Combine(folder, Material.Init), model);
    }

    // Trained by the library's own pipeline, so that classes mean something and the low-rank terms are not zero.
    private static void WriteTrained(string folder, Sentence[] rows, string? backbone)
    {
        var ml = new MLContext(seed: 1);
        IDataView data = ml.Data.LoadFromEnumerable(rows);
        ITransformer keys = ml.Transforms.Conversion.MapValueToKey("Key", nameof(Sentence.Label), keyOrdinality: ValueToKeyMappingEstimator.KeyOrdinality.ByValue).Fit(data);
        using TextClassificationTransformer model = ml.Peft().TextClassification(new TextClassificationOptions
        {
            LabelColumnName = "Key",
            Sentence1ColumnName = nameof(Sentence.Text),
            BackboneFolder = backbone,
            Method = Material.Lora(dropout: true),
            MaxTokens = Material.MaxTokens,
            Training = new TrainingOptions { MaxSteps = ZipSteps, BatchSize = Material.TrainBatch, LearningRate = 1e-3 },
        }).Fit(keys.Transform(data));
        IDataView inputs = ml.Transforms.SelectColumns(nameof(Sentence.Text)).Fit(data).Transform(data);
        ITransformer back = ml.Transforms.Conversion.MapKeyToValue(model.PredictedLabelColumn).Fit(model.Transform(inputs));
        ml.Model.Save(new TransformerChain<ITransformer>(model, back), inputs.Schema, Path.Combine(folder, Zip));
        WriteValues(Path.Combine(folder, Material.Trained), model.Model);
        WriteOnnx(folder, model.Model);
    }

    private static void WriteOnnx(string folder, AdaptedModel model)
    {
        OnnxExport.Save(model, Path.Combine(folder, OnnxFile));
        QuantisedOnnx.Write(Path.Combine(folder, OnnxFile), Path.Combine(folder, QuantisedFile));
    }

    private static void WriteValues(string path, AdaptedModel model)
    {
        var writer = new SafetensorsWriter();
        foreach (NamedParameter parameter in model.Parameters) writer.Add(parameter.Name, parameter.Value);
        writer.Save(path);
    }
}

/// <summary>A labelled text, as ML.NET reads it.</summary>
internal sealed class Sentence
{
    [LoadColumn(0)]
    public string Text { get; set; } = "";

    [LoadColumn(1)]
    public string Label { get; set; } = "";
}
