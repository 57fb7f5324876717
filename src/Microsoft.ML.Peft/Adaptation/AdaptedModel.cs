// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A frozen backbone, what it wears, and a head: all that training and scoring need. It owns adaptation and head;
/// the backbone may be shared.
/// </summary>
public sealed class AdaptedModel : IDisposable
{
    private PatchTable _table;
    private readonly bool _ownsBackbone;

    /// <summary>Joins the three.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="adaptation">What it wears; null for none.</param>
    /// <param name="head">What reads it.</param>
    /// <param name="ownsBackbone">True to dispose the backbone with the model.</param>
    public AdaptedModel(Backbone backbone, PeftAdaptation? adaptation, Head head, bool ownsBackbone = false)
    {
        Backbone = backbone;
        Adaptation = adaptation;
        Head = head;
        _ownsBackbone = ownsBackbone;
        _table = adaptation?.Table() ?? PatchTable.Empty;
        adaptation?.Attached(head);
    }

    /// <summary>The frozen network.</summary>
    public Backbone Backbone { get; }

    /// <summary>What it wears, or null.</summary>
    public PeftAdaptation? Adaptation { get; }

    /// <summary>What reads it.</summary>
    public Head Head { get; }

    /// <summary>The patches that a pass over this model wears.</summary>
    public PatchTable Patches => _table;

    private Precision _precision;

    /// <summary>In what numbers products with frozen weights are made; training sets it for its run.</summary>
    /// <exception cref="ArgumentException">It is <see cref="Precision.Auto"/>, which trainers and transformers turn into one of the others.</exception>
    public Precision Precision
    {
        get => _precision;
        set => _precision = PrecisionCheck.Definite(value);
    }

    /// <summary>Sets <see cref="Precision"/> to what <see cref="Precision.Auto"/> stands for here: for those who score with plain tensors.</summary>
    /// <param name="sample">A batch to choose by; some 32 rows.</param>
    /// <returns>What was chosen, and why.</returns>
    public PrecisionChoice ChoosePrecision(TokenBatch sample)
    {
        PrecisionChoice choice = PrecisionChoice.Make(Backbone, training: false, (int)sample.Mask.shape[0], precision => Scores(sample, precision));
        Precision = choice.Precision;
        return choice;
    }

    /// <summary>A batch's scores, a row each, in a precision whatever the model's own is; without gradient and dropout.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="precision">What the frozen weights are multiplied in.</param>
    internal float[][] Scores(TokenBatch batch, Precision precision)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Tensor scores = Forward(batch, new Pass(_table) { Instead = precision });
        return [.. scores.to_type(ScalarType.Float32).cpu().contiguous().data<float>().ToArray().Chunk((int)scores.shape[^1])];
    }

    /// <summary>All parameters and buffers of adaptation and head, in a stable order.</summary>
    public IReadOnlyList<NamedParameter> Parameters => [.. Adaptation?.Parameters ?? [], .. Head.Parameters];

    /// <summary>Lets the adaptation make its start from data; does nothing where it needs none, or has it.</summary>
    /// <param name="calibration">Batches of the data, through this model.</param>
    public void Calibrate(Calibration calibration)
    {
        if (Adaptation is null || Adaptation.CalibrationBatches == 0) return;
        Adaptation.Calibrate(calibration);
        _table = Adaptation.Table();
        Adaptation.Attached(Head);
    }

    /// <summary>Scores of a batch, by the head.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="pass">A pass made over <see cref="Patches"/>.</param>
    public Tensor Forward(TokenBatch batch, Pass pass)
    {
        // Masks that are given (recorded ones, in tests) are as large as all tokens.
        pass.FirstTokenOnly = Head.ReadsFirstTokenOnly && pass.DropWith is null;
        pass.KeepHiddenStates |= Head.ReadsHiddenStates;
        pass.Precision = pass.Instead ?? Precision;
        Adaptation?.BeforePass(pass, batch);
        Tensor scores = Head.Forward(Backbone, Backbone.Forward(batch, pass), pass);
        if (pass.Training && is_grad_enabled()) Adaptation?.Scored(this, pass, batch, scores);
        return scores;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Adaptation?.Dispose();
        Head.Dispose();
        if (_ownsBackbone) Backbone.Dispose();
    }
}
