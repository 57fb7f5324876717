// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using TorchSharp;

namespace Microsoft.ML.Peft.Bench;

/// <summary>What both sides read: token ids and the composition of batches; and the network that <see cref="Preparation"/> wrote.</summary>
internal sealed class Material
{
    public const int TrainBatch = 16, ScoreBatch = 32, MaxTokens = 128;
    public const string Init = "init.safetensors", Trained = "trained.safetensors", WithoutDropout = "-without-dropout";
    private const long Seed = 1;

    private Material(string folder, string kind)
    {
        Rows = [.. File.ReadLines(Path.Combine(folder, kind + ".rows")).Select(ReadRow)];
        Batches = [.. File.ReadLines(Path.Combine(folder, kind + ".batches")).Select(Numbers)];
    }

    public IReadOnlyList<Example> Rows { get; }

    public IReadOnlyList<int[]> Batches { get; }

    /// <summary>Rows in the order in which their scores are reported.</summary>
    public IEnumerable<Example> InOrder => Batches.SelectMany(b => b).Select(r => Rows[r]);

    public static Material Read(string folder, string kind) => new(folder, kind);

    public static LoraOptions Lora(bool dropout) => new()
    {
        Rank = 8,
        Alpha = 16,
        Dropout = dropout ? 0.05 : 0,
        Targets = ["query", "value"],
    };

    /// <summary>The backbone's folder, with its dropout or without.</summary>
    public static string Backbone(string folder, bool dropout) => Path.Combine(folder, "backbone" + (dropout ? "" : WithoutDropout));

    private static int[] Numbers(string line) => Array.ConvertAll(line.Split(' '), int.Parse);

    private static Example ReadRow(string line)
    {
        int[] numbers = Numbers(line);
        return new Example { Label = numbers[0], Ids = numbers[1..] };
    }

    /// <summary>Backbone, LoRA and head with the values of a file.</summary>
    public static AdaptedModel Load(string folder, bool dropout, string values)
    {
        using SafetensorsFile init = SafetensorsFile.Open(Path.Combine(folder, values));
        AdaptedModel model = Model(Backbone(folder, dropout), (int)init.Info("classifier.bias").Shape[0], dropout);
        using var scope = torch.NewDisposeScope();
        foreach (NamedParameter parameter in model.Parameters) parameter.Load(init.Load(parameter.Name));
        return model;
    }

    /// <summary>Backbone, LoRA and head with fresh values.</summary>
    public static AdaptedModel Model(string backboneFolder, int classes, bool dropout)
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(backboneFolder);
        Backbone backbone = BackboneLoader.Load(checkpoint);
        PeftAdaptation adaptation = Lora(dropout).Attach(backbone, Seed);
        var head = new SequenceClassificationHead(backbone, classes, Pooling.Family, Seed);
        return new AdaptedModel(backbone, adaptation, head, ownsBackbone: true);
    }
}
