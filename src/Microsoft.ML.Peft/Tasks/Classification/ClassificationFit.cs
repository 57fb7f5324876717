// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Persistence;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Trains a classifier out of a data view: the way that all classification tasks have in common.</summary>
/// <typeparam name="TRow">What is read of a row.</typeparam>
/// <param name="Environment">The context or a host of it.</param>
/// <param name="Task">The task.</param>
/// <param name="Options">Its options.</param>
/// <param name="Columns">The input columns.</param>
/// <param name="Encoder">Makes the encoder over the backbone's files for the network that is to be trained.</param>
/// <param name="Trainer">Name of the trainer, under which it logs.</param>
internal sealed record ClassificationFit<TRow>(
    IHostEnvironment Environment, ClassificationTask<TRow> Task, ClassificationOptions Options, IRowColumns<TRow> Columns,
    Func<IFileSet, AdaptedModel, RowEncoder<TRow>> Encoder, string Trainer)
{
    public (ClassificationModel<TRow> Model, TrainingResult Result) Run(IDataView input, IDataView? validation)
    {
        IHost host = Environment.Register(Trainer);
        using IChannel channel = host.Start("Training");
        LabelSet labels = LabeledRows.Labels(input, Options.LabelColumnName);
        Columns.Check(input.Schema);
        TrainingOptions training = Options.Training.Copy();
        training.Seed = ModelEntry.Seed(Environment) ?? training.Seed;

        string? folder = Options.BackboneFolder is { } given ? Path.GetFullPath(given) : null;
        using CheckpointFolder checkpoint = Task.OpenBackbone(folder);
        (AdaptedModel network, RowEncoder<TRow> encoder) = Open(checkpoint, labels, training.Seed, channel);
        var model = new ClassificationModel<TRow>(
            Task, network, encoder, labels, Options.Method, Options.Pooling, Options.Outputs, BackboneSource.Of(checkpoint, folder), !Options.EmbedBackbone);
        try
        {
            TrainingResult result = Train(host, channel, model, training, input, validation);
            model.Precision = Options.ScoringPrecision;
            return (model, result);
        }
        catch
        {
            model.Dispose();
            throw;
        }
    }

    private (AdaptedModel Network, RowEncoder<TRow> Encoder) Open(CheckpointFolder checkpoint, LabelSet labels, long seed, IChannel channel)
    {
        Backbone backbone = BackboneLoader.Load(checkpoint, Devices.Choose(Environment));
        if (backbone.UnusedTensors.Count > 0)
            channel.Info(MessageSensitivity.None, $"The backbone's file holds tensors that are not used: {NearNames.List(backbone.UnusedTensors)}.");
        AdaptedModel network = Task.Assemble(backbone, Options.Method, labels.Count, Options.Pooling, seed, null);
        try
        {
            return (network, Encoder(checkpoint.Files, network));
        }
        catch
        {
            network.Dispose();
            throw;
        }
    }

    private TrainingResult Train(
        IHost host, IChannel channel, ClassificationModel<TRow> model, TrainingOptions training, IDataView input, IDataView? validation)
    {
        string label = Options.LabelColumnName;
        CollectedRows rows = LabeledRows.Read(input, label, model.Labels, model.Encoder, skipMissing: false, channel);
        CollectedRows? held = validation is null ? null : LabeledRows.Read(validation, label, model.Labels, model.Encoder, skipMissing: true, channel);
        var objective = new CrossEntropyObjective(model.Labels.Count, training);
        using var progress = new ProgressReport(host, channel, training);
        channel.Info(MessageSensitivity.None, TrainingPlan.Make(model.Network, rows.Rows, training).ToString());
        TrainingResult result = new Trainer(training).Fit(model.Network, rows.Rows, held?.Rows, objective);
        return result with { SkippedRows = rows.Skipped + (held?.Skipped ?? 0) };
    }
}
