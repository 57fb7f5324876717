// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A text and the adapter that shall read it.</summary>
internal readonly record struct AdapterRow(TextRow Text, string Adapter);

/// <summary>Several trained classifiers over one backbone, without columns; each row names its adapter. Immutable but for disposal.</summary>
internal sealed class TextAdapterClassifier : IDisposable
{
    private int _disposed;

    public TextAdapterClassifier(Backbone backbone, AdapterSet adapters, TextEncoder encoder, LabelSet labels) =>
        (Backbone, Adapters, Encoder, Labels, Precision) = (backbone, adapters, encoder, labels,
            new ScoringPrecision<(Example Example, string Adapter)>(backbone, row => row.Example.Length, (rows, precision) => Score(rows, precision), precision => adapters.Precision = precision));

    /// <summary>In what numbers it scores.</summary>
    public ScoringPrecision<(Example Example, string Adapter)> Precision { get; }

    public Backbone Backbone { get; }

    public AdapterSet Adapters { get; }

    public TextEncoder Encoder { get; }

    public LabelSet Labels { get; }

    /// <summary>Scores rows in batches of similar length, whatever adapters they name; results in the order of the rows.</summary>
    public ClassScores[] Score(IReadOnlyList<AdapterRow> rows)
    {
        ObjectDisposedException.ThrowIf(_disposed != 0, typeof(TextAdapterTransformer));
        var examples = new Example[rows.Count];
        for (int i = 0; i < examples.Length; i++) examples[i] = Encoder.Encode(rows[i].Text);
        (Example Example, string Adapter)[] named = [.. examples.Zip(rows, (e, r) => (e, r.Adapter))];
        Precision.See(named);
        return Score(named, null);
    }

    private ClassScores[] Score((Example Example, string Adapter)[] rows, Precision? precision) => LengthBatches.Score(Backbone, Array.ConvertAll(rows, r => r.Example),
        (tokens, places) => Adapters.Forward(tokens, Array.ConvertAll(places, i => rows[i].Adapter), precision ?? Adapters.Precision));

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) != 0) return;
        Adapters.Dispose();
        Backbone.Dispose();
    }
}
