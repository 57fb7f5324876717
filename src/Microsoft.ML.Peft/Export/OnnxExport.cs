// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Export;

/// <summary>
/// Writes classifiers as ONNX files (operator set 17) that ONNX Runtime and other engines load: the adapter is merged into
/// the backbone's weights, so nothing of it costs time there. Inputs are token ids or pixels as the library makes them;
/// tokenising and image processing are the caller's.
/// </summary>
public static class OnnxExport
{
    /// <summary>
    /// Writes a classifier. A text network has the inputs <c>input_ids</c>, <c>attention_mask</c> and, where it has types,
    /// <c>token_type_ids</c>, all int64 <c>[batch, tokens]</c>; an image network <c>pixel_values</c>, float32 <c>[batch,
    /// channels, height, width]</c>. Outputs are <c>logits</c> and <c>probabilities</c>, float32 <c>[batch, classes]</c>.
    /// </summary>
    /// <param name="model">Backbone, adaptation and a classification head.</param>
    /// <param name="path">File to write; a file that is there is replaced when the new one is whole.</param>
    /// <param name="labels">Names of the classes for the file's metadata (<c>labels</c>, a JSON list); null for none.</param>
    /// <exception cref="NotSupportedException">The family or head has no form here, or the method cannot be merged; the message says which.</exception>
    public static void Save(AdaptedModel model, string path, IReadOnlyList<string>? labels = null)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentException.ThrowIfNullOrEmpty(path);
        Backbone backbone = model.Backbone;
        if (!OnnxEncoder.Knows(backbone))
            throw new NotSupportedException($"A {backbone.Config.ModelType} backbone cannot be exported to ONNX; the encoders of bert's kind (bert, roberta, distilbert, albert, mpnet, electra ...) and vit can.");
        if (model.Head is not SequenceClassificationHead head)
            throw new NotSupportedException($"A {model.Head.GetType().Name} cannot be exported to ONNX; classification heads can.");
        using Backbone? merged = Merged(model);
        OnnxFile file = Build(merged ?? backbone, head, labels);
        AtomicFile.Write(Path.GetFullPath(path), file.Save);
    }

    // Null where nothing is worn.
    private static Backbone? Merged(AdaptedModel model)
    {
        if (model.Adaptation is not { Patches.Count: > 0 } adaptation)
        {
            return model.Backbone.Sites.OfType<WeightSite>().Any(s => s.Quantised is not null)
                ? throw new NotSupportedException("The backbone's weights are kept in few bits; load it dense to export it.")
                : null;
        }
        try
        {
            return Merging.Merge(adaptation);
        }
        catch (NotSupportedException e)
        {
            throw new NotSupportedException($"An ONNX file has no place for adapters beside the weights: {e.Message}", e);
        }
    }

    private static OnnxFile Build(Backbone backbone, SequenceClassificationHead head, IReadOnlyList<string>? labels)
    {
        var graph = new OnnxGraph();
        graph.Metadata.Add(("model_type", backbone.Config.ModelType));
        if (labels is not null) graph.Metadata.Add(("labels", System.Text.Json.JsonSerializer.Serialize(labels)));
        var encoder = new OnnxEncoder(backbone, graph);
        string hidden = encoder.Build();
        graph.Enter("head");
        string logits = head.Export(graph, backbone, hidden, encoder.Mask);
        graph.Output("logits", logits, OnnxType.Single, "batch", (long)head.Outputs);
        graph.Output("probabilities", graph.Node("Softmax", [logits], ("axis", -1L)), OnnxType.Single, "batch", (long)head.Outputs);
        return graph.Finish();
    }
}
