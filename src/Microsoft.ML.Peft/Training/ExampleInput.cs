// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Training;

/// <summary>Gives the place that a row's numbers are written to.</summary>
/// <param name="shape">Shape of the numbers, without the batch.</param>
/// <param name="real">How many samples or frames are real, where the row itself ends in padding; null for all.</param>
/// <returns>As many numbers as the shape has, all 0.</returns>
public delegate Span<float> InputPlace(int[] shape, int? real = null);

/// <summary>
/// What a row is that is no text: an image or a sound. Its numbers are made when a batch is assembled, by many threads at
/// once, so that a large data set need not be in memory.
/// </summary>
public abstract class ExampleInput
{
    /// <summary>Tokens that the network makes of the row; rows of like numbers share a batch.</summary>
    public abstract int Tokens { get; }

    /// <summary>Shape of the numbers without the batch, where it is known before they are made; else null.</summary>
    public virtual IReadOnlyList<int>? Shape => null;

    /// <summary>True where the network is told what is padding.</summary>
    public virtual bool Masked => false;

    /// <summary>False where padding would change what the network makes of a row, so that only rows of one length may be scored together.</summary>
    public virtual bool StandsAlone => true;

    /// <summary>What shorter rows are padded with.</summary>
    public virtual float Padding => 0;

    /// <summary>True to fit the network's position table to inputs of another size than its own.</summary>
    public virtual bool FitsPositions => false;

    /// <summary>True to let a network that masks frames by itself do so in training.</summary>
    public virtual bool MasksFrames => false;

    /// <summary>True where training sees other numbers at each draw (augmentation).</summary>
    public virtual bool Varies => false;

    /// <summary>Bytes by which a resumed run knows the same data again, such as a hash of the file.</summary>
    public abstract ReadOnlyMemory<byte> Fingerprint { get; }

    /// <summary>How rows become numbers, in words that a resumed run must find the same.</summary>
    public virtual string Settings => "";

    /// <summary>Makes the numbers; called from many threads at once.</summary>
    /// <param name="draw">What augmentation draws from; null to take the row as it is.</param>
    /// <param name="place">Gives the place to write to; called once.</param>
    /// <exception cref="UnreadableInputException">The row cannot be read.</exception>
    public abstract void Make(ulong? draw, InputPlace place);

    /// <summary>Mixes the rows of a training batch with one another, in place (mixup, CutMix). Asked of a batch's first row.</summary>
    /// <param name="values">The numbers of all rows.</param>
    /// <param name="shape">Their shape, the batch first.</param>
    /// <param name="draw">What mixing draws from.</param>
    /// <returns>The share of each row (columns) in each mixed row (rows), whose rows and columns sum to 1; null where nothing was mixed.</returns>
    public virtual float[]? Mix(Span<float> values, IReadOnlyList<long> shape, ulong draw) => null;
}

/// <summary>An image or a sound that cannot be read; the message names the row, the file and the reason.</summary>
public sealed class UnreadableInputException : InvalidOperationException
{
    /// <summary>Tells which one.</summary>
    /// <param name="message">Row, file and reason.</param>
    /// <param name="row">Number of the row in the user's data; -1 where it is not known.</param>
    /// <param name="cause">What reading it threw.</param>
    public UnreadableInputException(string message, long row, Exception? cause = null) : base(message, cause) => Row = row;

    /// <summary>Number of the row in the user's data; -1 where it is not known.</summary>
    public long Row { get; }

    /// <summary>Places in the batch of all rows that cannot be read.</summary>
    internal IReadOnlyList<int> Places { get; init; } = [];
}

/// <summary>What a training batch draws from: the same for the same seed, epoch and rows, whenever it is assembled.</summary>
/// <param name="Seed">Seed of the run.</param>
/// <param name="Epoch">Number of the epoch.</param>
internal sealed record TrainingDraw(long Seed, int Epoch)
{
    // Apart from the keys of dropout and of the rows' order.
    private const ulong Salt = 0xA5A5_1F2E_3D4C_5B6A;

    /// <summary>The key of a batch, apart from those of its rows.</summary>
    public ulong Of(IReadOnlyList<Example> rows) => Adaptation.Pass.Mix(~Of(rows[0]));

    /// <summary>The key of a row.</summary>
    public ulong Of(Example row) =>
        Adaptation.Pass.Mix(Adaptation.Pass.Mix(Adaptation.Pass.Mix((ulong)Seed ^ Salt) + (ulong)(uint)Epoch) + unchecked((ulong)row.Row));
}
