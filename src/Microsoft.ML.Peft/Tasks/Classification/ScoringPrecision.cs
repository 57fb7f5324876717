// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// In what numbers a transformer scores. Told <see cref="Precision.Auto"/> it scores in float32 until it has seen rows enough to
/// choose by, which it scores in every precision in question.
/// </summary>
/// <typeparam name="T">What it scores, with its tokens.</typeparam>
/// <param name="backbone">The frozen network.</param>
/// <param name="length">Number of a row's tokens.</param>
/// <param name="score">Scores rows in a precision.</param>
/// <param name="use">Takes a precision.</param>
internal sealed class ScoringPrecision<T>(Backbone backbone, Func<T, int> length, Func<T[], Precision, ClassScores[]> score, Action<Precision> use)
{
    // Enough to see what a precision does, little enough not to be felt.
    private const int Rows = 32, LeastRows = 4, Tokens = 1024;

    private readonly Lock _gate = new();
    private readonly List<T> _sample = [];
    private Precision _asked;
    private volatile bool _open;
    private int _tokens;

    public Precision Asked
    {
        get => _asked;
        set
        {
            PrecisionCheck.Known(value);
            using Lock.Scope alone = _gate.EnterScope();
            Close();
            (_asked, Choice) = (value, null);
            use(value == Precision.Auto ? Precision.Float32 : value);
            _open = value == Precision.Auto;
        }
    }

    /// <summary>What Auto chose; null where it was not asked, or has not seen enough.</summary>
    public PrecisionChoice? Choice { get; private set; }

    /// <summary>Rows that are about to be scored.</summary>
    public void See(IEnumerable<T> rows)
    {
        if (!_open) return;
        using Lock.Scope alone = _gate.EnterScope();
        if (!_open) return;
        foreach (T row in rows)
        {
            _sample.Add(row);
            _tokens += length(row);
            if (_sample.Count < Rows && (_sample.Count < LeastRows || _tokens < Tokens)) continue;
            T[] sample = [.. _sample];
            Choice = PrecisionChoice.Make(backbone, training: false, sample.Length, precision => Array.ConvertAll(score(sample, precision), s => s.Logits));
            use(Choice.Precision);
            Close();
            return;
        }
    }

    private void Close()
    {
        _open = false;
        _sample.Clear();
        _tokens = 0;
    }
}
