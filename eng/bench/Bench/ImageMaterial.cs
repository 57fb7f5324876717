// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using TorchSharp;

namespace Microsoft.ML.Peft.Bench;

/// <summary>What both sides of the training on images read: a ViT in float32, pixels, labels and initial values.</summary>
/// <param name="Name">Name of its folder.</param>
/// <param name="Title">Name in the tables.</param>
/// <param name="Steps">Steps of a measurement.</param>
/// <param name="DistinctBatches">Batches that differ; then the first comes again.</param>
/// <param name="Config">The config.json; null for the embedded backbone.</param>
internal sealed record ImageMaterial(string Name, string Title, int Steps, int DistinctBatches, JsonObject? Config)
{
    public const int Batch = 32, Rank = 8, Alpha = 16;
    public const double Rate = 3e-3;
    private const int Classes = 10;
    private const long Seed = 1;

    public static ImageMaterial[] All { get; } =
    [
        new("small", "small: the embedded ViT, 32 x 32 pixels, 65 tokens, 6 layers of 192", 32, 8, null),
        new("tiny-16", "tiny-16: ViT-Ti/16 with random weights, 224 x 224 pixels, 197 tokens, 12 layers of 192", 8, 3, new JsonObject
        {
            ["architectures"] = new JsonArray("ViTModel"),
            ["model_type"] = "vit",
            ["image_size"] = 224,
            ["patch_size"] = 16,
            ["num_channels"] = 3,
            ["hidden_size"] = 192,
            ["num_hidden_layers"] = 12,
            ["num_attention_heads"] = 3,
            ["intermediate_size"] = 768,
            ["hidden_act"] = "gelu",
            ["hidden_dropout_prob"] = 0.0,
            ["attention_probs_dropout_prob"] = 0.0,
            ["layer_norm_eps"] = 1e-12,
            ["qkv_bias"] = true,
        }),
    ];

    /// <summary>Steps that are not counted.</summary>
    public int Warmup => Steps / 4;

    public static ImageMaterial Named(string name) => All.First(m => m.Name == name);

    private static string Backbone(string folder) => Path.Combine(folder, "backbone");

    /// <summary>Rows of the batches of a run, by number.</summary>
    public IEnumerable<int[]> Batches(int steps) =>
        Enumerable.Range(0, steps).Select(step => Enumerable.Range(step % DistinctBatches * Batch, Batch).ToArray());

    /// <summary>Writes all files.</summary>
    public void Prepare(string folder)
    {
        using var scope = torch.NewDisposeScope();
        Directory.CreateDirectory(Backbone(folder));
        if (Config is null) WriteEmbedded(Backbone(folder));
        else WriteRandom(Backbone(folder), Config);
        using (AdaptedModel model = Model(folder))
        {
            var init = new SafetensorsWriter();
            foreach (NamedParameter parameter in model.Parameters) init.Add(parameter.Name, parameter.Value);
            init.Save(Path.Combine(folder, "init.safetensors"));
            int side = model.Backbone.Config.Raw["image_size"]!.GetValue<int>();
            WritePixels(folder, side);
        }
    }

    private static void WriteEmbedded(string target)
    {
        using CheckpointFolder checkpoint = DefaultVisionBackbone.Open();
        using (Stream config = checkpoint.Files.Open("config.json"))
        using (FileStream copy = File.Create(Path.Combine(target, "config.json"))) config.CopyTo(copy);
        var writer = new SafetensorsWriter();
        foreach (CheckpointTensor tensor in checkpoint.Tensors)
            writer.Add(tensor.Name, checkpoint.Load(tensor.Name, [.. tensor.Shape], torch.ScalarType.Float32, torch.CPU));
        writer.Save(Path.Combine(target, "model.safetensors"));
    }

    private static void WriteRandom(string target, JsonObject config)
    {
        File.WriteAllText(Path.Combine(target, "config.json"), config.ToJsonString());
        var drawn = new Drawn();
        using Backbone backbone = BackboneLoader.Build((JsonObject)config.DeepClone(), drawn);
        drawn.Writer.Save(Path.Combine(target, "model.safetensors"));
    }

    // How fast a network is does not depend on what it has learned.
    private sealed class Drawn : IWeightSource
    {
        public SafetensorsWriter Writer { get; } = new();

        public bool Has(string name) => !name.StartsWith("pooler", StringComparison.Ordinal);

        public torch.Tensor Load(string name, params long[] shape)
        {
            torch.Tensor made = name.EndsWith(".bias", StringComparison.Ordinal) ? torch.zeros(shape)
                : name.Contains("layernorm", StringComparison.Ordinal) ? torch.ones(shape)
                : new Draws(Seed, name).Normal(0.02, shape);
            Writer.Add(name, made);
            return made;
        }
    }

    // Noise in a colour of the class, so that there is something to learn.
    private void WritePixels(string target, int side)
    {
        int rows = DistinctBatches * Batch;
        int[] labels = [.. Enumerable.Range(0, rows).Select(row => row * 7 % Classes)];
        torch.Tensor colours = new Draws(Seed, "colours").Normal(1, Classes, 3, 1, 1);
        torch.Tensor pixels = new Draws(Seed, "pixels").Normal(1, rows, 3, side, side) + colours.index_select(0, torch.tensor(Array.ConvertAll(labels, l => (long)l)));
        var writer = new SafetensorsWriter();
        writer.Add("pixels", pixels);
        writer.Save(Path.Combine(target, "pixels.safetensors"));
        File.WriteAllText(Path.Combine(target, "labels"), string.Join(' ', labels));
    }

    /// <summary>The rows that <see cref="Prepare"/> wrote.</summary>
    public IReadOnlyList<Example> Rows(string folder)
    {
        int[] labels = Array.ConvertAll(File.ReadAllText(Path.Combine(folder, "labels")).Split(' '), int.Parse);
        using SafetensorsFile file = SafetensorsFile.Open(Path.Combine(folder, "pixels.safetensors"));
        int[] shape = [.. file.Info("pixels").Shape.Skip(1).Select(n => (int)n)];
        int size = shape.Aggregate(sizeof(float), (a, b) => a * b);
        return [.. labels.Select((label, row) => new Example { Label = label, Row = row, Input = new Pixels(MemoryMarshal.Cast<byte, float>(file.Bytes("pixels", (long)row * size, size)).ToArray(), shape) })];
    }

    private sealed class Pixels(float[] values, int[] shape) : ExampleInput
    {
        public override int Tokens => 1;

        public override IReadOnlyList<int> Shape => shape;

        public override ReadOnlyMemory<byte> Fingerprint => default;

        public override void Make(ulong? draw, InputPlace place) => values.CopyTo(place(shape));
    }

    /// <summary>Backbone, LoRA and head with the values of the file.</summary>
    public AdaptedModel Load(string folder)
    {
        using SafetensorsFile init = SafetensorsFile.Open(Path.Combine(folder, "init.safetensors"));
        AdaptedModel model = Model(folder);
        using var scope = torch.NewDisposeScope();
        foreach (NamedParameter parameter in model.Parameters) parameter.Load(init.Load(parameter.Name));
        return model;
    }

    private AdaptedModel Model(string folder)
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(Backbone(folder));
        Backbone backbone = BackboneLoader.Load(checkpoint);
        PeftAdaptation adaptation = new LoraOptions { Rank = Rank, Alpha = Alpha, Dropout = 0, Targets = ["query", "value"] }.Attach(backbone, Seed);
        return new AdaptedModel(backbone, adaptation, new SequenceClassificationHead(backbone, Classes, Pooling.Family, Seed), ownsBackbone: true);
    }
}
