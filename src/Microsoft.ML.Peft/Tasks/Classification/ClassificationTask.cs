// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>What one kind of classification has of its own: its name in files, its backbones, and how rows are read.</summary>
/// <typeparam name="TRow">What is read of a row.</typeparam>
internal abstract class ClassificationTask<TRow>
{
    /// <summary>Name in model zips and at the command line, e.g. <c>text-classification</c>.</summary>
    public abstract string Name { get; }

    /// <summary>Name of the loader in model zips.</summary>
    public abstract string LoaderSignature { get; }

    /// <summary>Eight letters that begin the model's header.</summary>
    public abstract string Signature { get; }

    /// <summary>Name of the transformer's class, for messages.</summary>
    public abstract string Transformer { get; }

    /// <summary>What its backbones read.</summary>
    public abstract BackboneInput Reads { get; }

    /// <summary>The <c>task_type</c> of exchanged adapters; empty for none.</summary>
    public virtual string TaskType => "";

    /// <summary>Opens the backbone that is used where none is named.</summary>
    public abstract CheckpointFolder OpenDefault();

    /// <summary>Files beside config.json and the weights that decide what the network computes of a row.</summary>
    /// <param name="files">The backbone's files.</param>
    public abstract IEnumerable<string> InputFiles(IFileSet files);

    /// <summary>Makes the encoder that a model's description describes.</summary>
    /// <param name="files">The backbone's files.</param>
    /// <param name="config">Geometry of the backbone.</param>
    /// <param name="description">The description.</param>
    public abstract RowEncoder<TRow> Encoder(IFileSet files, BackboneConfig config, JsonObject description);

    /// <summary>Opens a backbone's files: a folder, or the default.</summary>
    public CheckpointFolder OpenBackbone(string? folder) => folder is null ? OpenDefault() : CheckpointFolder.Open(folder);

    /// <summary>Builds backbone, adaptation and head into one model, perhaps with stored parameters; takes the backbone.</summary>
    public AdaptedModel Assemble(Backbone backbone, PeftMethod method, int classes, Pooling pooling, long seed, SafetensorsFile? stored)
    {
        PeftAdaptation? adaptation = null;
        Head? head = null;
        try
        {
            CheckReads(backbone.Config);
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

    private void CheckReads(BackboneConfig config)
    {
        string? why = config.Input != Reads ? "reads " + Many(config.Input) : config.DecoderStart is not null ? "writes a text for " + One(config.Input) : null;
        if (why is null) return;
        (string kind, string examples) = Reads switch
        {
            BackboneInput.Text => ("a text classifier", "bert, roberta or llama"),
            BackboneInput.Images => ("a classifier of images", "vit"),
            _ => ("a classifier of sounds", "wav2vec2 or audio-spectrogram-transformer"),
        };
        throw new ArgumentException($"The backbone is of model_type {config.ModelType}, which {why}; {kind} needs one that reads {One(Reads)}, such as {examples}.", nameof(ClassificationOptions.BackboneFolder));
    }

    private static string One(BackboneInput input) => input switch { BackboneInput.Text => "a text", BackboneInput.Images => "an image", _ => "a sound" };

    private static string Many(BackboneInput input) => input switch { BackboneInput.Text => "texts", BackboneInput.Images => "images", _ => "sounds" };
}
