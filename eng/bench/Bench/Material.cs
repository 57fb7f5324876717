// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.IO.Compression;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using TorchSharp;

namespace Microsoft.ML.Peft.Bench;

/// <summary>What both sides read: token ids, the composition of batches, initial values, the backbone in float32.</summary>
internal sealed class Material
{
    public const int TrainBatch = 16, ScoreBatch = 32;
    private const int MaxTokens = 128, MostTrainRows = 4096, MostScoreRows = 2048;
    private const ulong Seed = 1;

    private Material(string folder, string kind)
    {
        Rows = [.. File.ReadLines(Path.Combine(folder, kind + ".rows")).Select(ReadRow)];
        Batches = [.. File.ReadLines(Path.Combine(folder, kind + ".batches")).Select(Numbers)];
    }

    public IReadOnlyList<Example> Rows { get; }

    public IReadOnlyList<int[]> Batches { get; }

    public static Material Read(string folder, string kind) => new(folder, kind);

    public static LoraOptions Lora(bool dropout) => new()
    {
        Rank = 8,
        Alpha = 16,
        Dropout = dropout ? 0.05 : 0,
        Targets = ["query", "value"],
    };

    /// <summary>The backbone's folder, with its dropout or without.</summary>
    public static string Backbone(string folder, bool dropout) => Path.Combine(folder, dropout ? "backbone" : "backbone-without-dropout");

    private static int[] Numbers(string line) => Array.ConvertAll(line.Split(' '), int.Parse);

    private static Example ReadRow(string line)
    {
        int[] numbers = Numbers(line);
        return new Example { Label = numbers[0], Ids = numbers[1..] };
    }

    public static void Prepare(string folder, string name, string train, string test, string? backbone)
    {
        Directory.CreateDirectory(folder);
        using CheckpointFolder checkpoint = backbone is null ? DefaultBackbone.Open() : CheckpointFolder.Open(backbone);
        TextTokenizer tokenizer = TextTokenizer.Load(checkpoint.Files);
        string[] labels = [.. ReadTable(train).Select(r => r.Label).Distinct().Order(StringComparer.Ordinal)];
        Example[] trainRows = Encode(train, tokenizer, labels, MostTrainRows), scoreRows = Encode(test, tokenizer, labels, MostScoreRows);
        WriteRows(Path.Combine(folder, "train.rows"), trainRows);
        WriteRows(Path.Combine(folder, "score.rows"), scoreRows);
        WriteBatches(Path.Combine(folder, "train.batches"), TrainBatches(trainRows));
        WriteBatches(Path.Combine(folder, "score.batches"), ByLength(scoreRows).Chunk(ScoreBatch));
        File.WriteAllText(Path.Combine(folder, "name"), name);
        WriteBackbone(checkpoint, Backbone(folder, dropout: true), _ => { });
        WriteBackbone(checkpoint, Backbone(folder, dropout: false), config =>
        {
            config["hidden_dropout_prob"] = 0.0;
            config["attention_probs_dropout_prob"] = 0.0;
        });
        WriteInit(folder, labels.Length);
    }

    private static IEnumerable<(string Text, string Label)> ReadTable(string path)
    {
        using Stream file = File.OpenRead(path);
        using var reader = new StreamReader(path.EndsWith(".gz", StringComparison.Ordinal) ? new GZipStream(file, CompressionMode.Decompress) : file);
        reader.ReadLine();
        while (reader.ReadLine() is { } line)
        {
            string[] fields = line.Split('\t');
            yield return (fields[0], fields[1]);
        }
    }

    private static Example[] Encode(string path, TextTokenizer tokenizer, string[] labels, int most)
    {
        (string Text, string Label)[] table = [.. ReadTable(path)];
        int[] order = RowOrder.Permutation(table.Length, Seed, 0);
        return [.. order.Take(most).Select(i => new Example
        {
            Ids = tokenizer.Encode(table[i].Text, null, MaxTokens).Ids,
            Label = Array.IndexOf(labels, table[i].Label),
        })];
    }

    // Batches of like lengths, as the library's own trainer makes them, in a random order.
    private static IEnumerable<int[]> TrainBatches(Example[] rows)
    {
        int[] order = RowOrder.GroupByLength(RowOrder.Permutation(rows.Length, Seed, 1), [.. rows.Select(r => r.Length)], TrainBatch);
        int[][] batches = [.. order.Chunk(TrainBatch).Where(b => b.Length == TrainBatch)];
        return RowOrder.Permutation(batches.Length, Seed, 2).Select(i => batches[i]);
    }

    private static IEnumerable<int> ByLength(Example[] rows) => Enumerable.Range(0, rows.Length).OrderBy(i => rows[i].Length);

    private static void WriteRows(string path, Example[] rows) =>
        File.WriteAllLines(path, rows.Select(r => $"{r.Label} {string.Join(' ', r.Ids)}"));

    private static void WriteBatches(string path, IEnumerable<int[]> batches) =>
        File.WriteAllLines(path, batches.Select(b => string.Join(' ', b)));

    private static void WriteBackbone(CheckpointFolder checkpoint, string target, Action<JsonObject> change)
    {
        Directory.CreateDirectory(target);
        using Stream stream = checkpoint.Files.Open("config.json");
        JsonObject config = JsonNode.Parse(stream)!.AsObject();
        change(config);
        File.WriteAllText(Path.Combine(target, "config.json"), config.ToJsonString());
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
        using AdaptedModel model = Model(Backbone(folder, dropout: true), classes, dropout: true);
        var writer = new SafetensorsWriter();
        foreach (NamedParameter parameter in model.Parameters) writer.Add(parameter.Name, parameter.Value);
        writer.Save(Path.Combine(folder, "init.safetensors"));
    }

    /// <summary>Backbone, LoRA and head with the values of the file.</summary>
    public static AdaptedModel Load(string folder, bool dropout)
    {
        using SafetensorsFile init = SafetensorsFile.Open(Path.Combine(folder, "init.safetensors"));
        AdaptedModel model = Model(Backbone(folder, dropout), (int)init.Info("classifier.bias").Shape[0], dropout);
        using var scope = torch.NewDisposeScope();
        foreach (NamedParameter parameter in model.Parameters) parameter.Load(init.Load(parameter.Name));
        return model;
    }

    private static AdaptedModel Model(string backboneFolder, int classes, bool dropout)
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(backboneFolder);
        Backbone backbone = BackboneLoader.Load(checkpoint);
        PeftAdaptation adaptation = Lora(dropout).Attach(backbone, (long)Seed);
        var head = new SequenceClassificationHead(backbone, classes, Pooling.Family, (long)Seed);
        return new AdaptedModel(backbone, adaptation, head, ownsBackbone: true);
    }
}
