// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>What the tests over AdapterHub's cases share: bases, batches, losses.</summary>
internal static class AdapterHubCase
{
    /// <summary>The folder of a case's base model, or null where its family does not exist here.</summary>
    public static string? BaseOf(Fixture fixture)
    {
        string folder = Path.Combine(Path.GetDirectoryName(fixture.Folder)!, fixture.Text("base") ?? "");
        string config = Path.Combine(folder, "config.json");
        return File.Exists(config) && BackboneLoader.ModelTypes.Contains((string)JsonNode.Parse(File.ReadAllText(config))!["model_type"]!) ? folder : null;
    }

    public static TokenBatch Batch(Fixture fixture)
    {
        Tensor? Optional(string name) => fixture.Has(name) ? fixture[name] : null;
        if (Optional("pixel_values") is { } pixels) return TokenBatch.OfImages(pixels) with { TaskIds = Optional("task_ids") };
        Tensor ids = fixture["input_ids"];
        // Positions count from the left edge there, padding in front or not.
        Tensor? positions = LeftPadded(fixture) ? arange(ids.shape[1], ScalarType.Int64).unsqueeze(0).expand(ids.shape[0], ids.shape[1]) : null;
        return new TokenBatch(ids, Optional("attention_mask") ?? ones_like(ids), Optional("token_type_ids"), positions, TaskIds: Optional("task_ids")) { DecoderIds = Optional("decoder_input_ids") };
    }

    /// <summary>True where a row begins with padding; what stands there means nothing.</summary>
    public static bool LeftPadded(Fixture fixture) => fixture.Has("attention_mask") && fixture["attention_mask"].select(1, 0).eq(0).any().item<bool>();

    /// <summary>States whose values at padding in front are those of another tensor.</summary>
    public static Tensor Real(Fixture fixture, Tensor states, Tensor other) =>
        LeftPadded(fixture) ? where(fixture["attention_mask"].unsqueeze(-1).ne(0), states, other) : states;

    public static BackboneOutput Run(Fixture fixture, Backbone backbone, PatchTable worn, bool keep = false, PeftAdaptation? adaptation = null)
    {
        TokenBatch batch = Batch(fixture);
        var pass = new Pass(worn) { KeepHiddenStates = keep };
        adaptation?.BeforePass(pass, batch);
        return backbone.Forward(batch, pass);
    }

    /// <summary>Mean squared error over real tokens.</summary>
    public static Tensor MeanSquare(Fixture fixture, BackboneOutput output)
    {
        Tensor hidden = output.Layout.Own(output.Last);                      // what a prompt became is not compared
        Tensor mask = fixture["loss_mask"].to_type(ScalarType.Float32).unsqueeze(-1);
        return (mask * (hidden - fixture["target"]).square()).sum() / (mask.sum() * hidden.shape[^1]);
    }

    /// <summary>The loss of a head of the package.</summary>
    public static Tensor HeadLoss(Fixture fixture, AdapterHubHead head, Tensor logits)
    {
        Tensor CrossEntropy(Tensor scores, Tensor labels) => nn.functional.cross_entropy(scores.reshape(-1, scores.shape[^1]), labels.reshape(-1));
        if (head.Type == "question_answering")
            return (CrossEntropy(logits.select(-1, 0), fixture["start_positions"]) + CrossEntropy(logits.select(-1, 1), fixture["end_positions"])) / 2;
        Tensor labels = fixture["labels"];
        switch (head.Type)
        {
            case "tagging":
                return CrossEntropy(logits, where(fixture["attention_mask"].ne(0), labels, zeros_like(labels) - 100));
            case "causal_lm":
                return CrossEntropy(logits.narrow(1, 0, logits.shape[1] - 1), labels.narrow(1, 1, labels.shape[1] - 1));
            default:
                return logits.shape[^1] == 1 ? nn.functional.mse_loss(logits.reshape(-1), labels.reshape(-1).to_type(ScalarType.Float32)) : CrossEntropy(logits, labels);
        }
    }

    /// <summary>The method that a case's own configuration says, in the name that its folder has.</summary>
    public static PeftMethod Method(Fixture fixture, string folder)
    {
        var root = AdapterConfig.Parse(File.ReadAllText(Path.Combine(folder, "adapter_config.json")), "adapter_config.json");
        PeftMethod method = AdapterHubFolder.Parse(fixture.Json["config"]!.AsObject(), (string)root["name"]!);
        if (method is not HubLoraOptions { VeraD: not null } vera) return method;
        // Files whose matrices are diagonal come from an implementation with vectors.
        using SafetensorsFile file = SafetensorsFile.Open(Path.Combine(folder, "adapter.safetensors"));
        vera.VeraVectors = file.Names.Where(n => n.Contains(".vera_", StringComparison.Ordinal)).All(n =>
        {
            using var scope = NewDisposeScope();
            Tensor matrix = Fixture.Read(file, n);
            return Deviations.Distance(matrix, matrix.diag().diag()) == 0;
        });
        return method;
    }

    /// <summary>Compares what a vector here and the diagonal of a matrix there may share.</summary>
    public static Tensor Shaped(Tensor expected, Tensor like) => expected.dim() == 2 && like.dim() == 1 && expected.shape[0] == expected.shape[1] ? expected.diag() : expected;
}
