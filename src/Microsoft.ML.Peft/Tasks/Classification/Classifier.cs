// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Scores of one row: a probability a class, and the logits that they come from; not numbers for a row that was skipped.</summary>
internal readonly record struct ClassScores(float[] Probabilities, float[] Logits)
{
    /// <summary>Number of the most probable class, from 0; the lower one of equals; -1 for a row that was skipped.</summary>
    public int Best
    {
        get
        {
            if (float.IsNaN(Probabilities[0])) return -1;
            int best = 0;
            for (int i = 1; i < Probabilities.Length; i++) if (Probabilities[i] > Probabilities[best]) best = i;
            return best;
        }
    }

    /// <summary>What a skipped row gets.</summary>
    public static ClassScores None(int classes)
    {
        float[] none = new float[classes];
        Array.Fill(none, float.NaN);
        return new ClassScores(none, none);
    }
}

/// <summary>
/// A trained classifier: rows in, probabilities out. Immutable, so many threads may score at once; each call has its own
/// pass and dispose scope.
/// </summary>
internal sealed class Classifier<TRow>(AdaptedModel model, RowEncoder<TRow> encoder, LabelSet labels, string transformer) : IDisposable
{
    private int _disposed;
    private long _skipped;
    private ScoringPrecision<Example>? _precision;

    /// <summary>In what numbers it scores.</summary>
    public ScoringPrecision<Example> Precision => LazyInitializer.EnsureInitialized(ref _precision, () => new ScoringPrecision<Example>(
        model.Backbone, row => row.Length, (rows, precision) => Score(rows, () => ClassScores.None(labels.Count), precision), precision => model.Precision = precision));

    public AdaptedModel Model => model;

    public RowEncoder<TRow> Encoder => encoder;

    public LabelSet Labels => labels;

    /// <summary>Rows that could not be read and got no scores, so far.</summary>
    public long Skipped => Interlocked.Read(ref _skipped);

    /// <summary>Scores rows in batches of similar length; results in the order of the rows.</summary>
    public ClassScores[] Score(IReadOnlyList<TRow> rows)
    {
        if (_disposed != 0)
            throw new ObjectDisposedException(transformer,
                "The transformer was disposed. A PredictionEngine that owns it disposes it too: make engines with PredictionEngineOptions { OwnsTransformer = false }.");
        var examples = new Example[rows.Count];
        for (int i = 0; i < examples.Length; i++) examples[i] = encoder.Encode(rows[i]);
        Func<ClassScores>? unreadable = encoder.SkipsUnreadable ? Skip : null;
        Precision.See(examples);
        return Score(examples, unreadable, null);
    }

    private ClassScores[] Score(Example[] rows, Func<ClassScores>? unreadable, Precision? precision) => LengthBatches.Score(
        model.Backbone, rows, (tokens, _) => model.Forward(tokens, new Pass(model.Patches) { Instead = precision }), unreadable);

    private ClassScores Skip()
    {
        Interlocked.Increment(ref _skipped);
        return ClassScores.None(labels.Count);
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0) model.Dispose();
    }
}
