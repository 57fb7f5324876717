// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Training;

/// <summary>Padded arrays of a batch: made on any thread, without tensors.</summary>
internal sealed class BatchArrays
{
    private BatchArrays(IReadOnlyList<Example> rows, int tokens, BackboneInput kind)
    {
        Rows = rows;
        Kind = kind;
        Tokens = tokens;
        Ids = new long[rows.Count * tokens];
        Mask = new long[rows.Count * tokens];
    }

    public IReadOnlyList<Example> Rows { get; }

    /// <summary>Rows that were asked for and could not be read.</summary>
    public IReadOnlyList<Example> Unreadable { get; private init; } = [];

    public BackboneInput Kind { get; }

    public int Tokens { get; }

    public long[] Ids { get; }

    /// <summary>1 for what is real; empty for images, and for sounds of which nothing is padding.</summary>
    public long[] Mask { get; private set; }

    public long[]? TypeIds { get; private set; }

    /// <summary>Numbers of images and sounds, <see cref="Shape"/>; empty where nobody will read them.</summary>
    public float[] Values { get; private set; } = [];

    /// <summary>Shape of <see cref="Values"/>, the batch first.</summary>
    public long[] Shape { get; private set; } = [];

    /// <summary>The share of each row in each mixed row, <c>[batch, batch]</c>; null where nothing was mixed.</summary>
    public float[]? Mixing { get; private set; }

    public bool Padded { get; private set; }

    /// <summary>True to let the network mask frames in training.</summary>
    public bool MasksFrames => Rows[0].Input is { MasksFrames: true };

    /// <summary>True to fit the network's position table to inputs of another size.</summary>
    public bool FitsPositions => Rows[0].Input is { FitsPositions: true };

    /// <summary>Tokens of the rows, padding left out.</summary>
    public long RealTokens { get; private set; }

    /// <summary>Pads rows to the longest, rounded up to a multiple where the position table allows it.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="config">Geometry of the network.</param>
    /// <param name="multiple">Texts are padded to a multiple of this.</param>
    /// <param name="draw">What augmentation draws from; null to take rows as they are.</param>
    /// <param name="bare">True to leave images and sounds unread, because what the head reads of them is known.</param>
    /// <exception cref="UnreadableInputException">An image or sound cannot be read; the one with the lowest place.</exception>
    public static BatchArrays Of(IReadOnlyList<Example> rows, BackboneConfig config, int multiple, TrainingDraw? draw = null, bool bare = false)
    {
        if (rows[0].Input is not null)
        {
            var inputs = new BatchArrays(rows, 0, config.Input) { RealTokens = rows.Sum(r => (long)r.Length) };
            if (!bare) inputs.Read(draw);
            return inputs;
        }
        int padId = config.PadId, longest = rows.Max(r => r.Length);
        var batch = new BatchArrays(rows, Math.Max(longest, Math.Min(config.MaxTokens, (longest + multiple - 1) / multiple * multiple)), BackboneInput.Text);
        for (int r = 0; r < rows.Count; r++) batch.Fill(r, rows[r], padId);
        return batch;
    }

    /// <summary>The batch of the rows that can be read, perhaps none.</summary>
    public static BatchArrays Without(IReadOnlyList<Example> unreadable, IReadOnlyList<Example> rows, BackboneConfig config)
    {
        var batch = new BatchArrays(rows, 0, config.Input) { RealTokens = rows.Sum(r => (long)r.Length), Unreadable = unreadable };
        if (rows.Count > 0) batch.Read(null);
        return batch;
    }

    private void Fill(int row, Example example, int padId)
    {
        int start = row * Tokens, length = example.Length;
        for (int t = 0; t < length; t++) Ids[start + t] = example.Ids[t];
        Mask.AsSpan(start, length).Fill(1);
        Ids.AsSpan(start + length, Tokens - length).Fill(padId);
        Padded |= length < Tokens;
        RealTokens += length;
        if (example.TypeIds is not { } types || !types.AsSpan().ContainsAnyExcept(0)) return;
        TypeIds ??= new long[Ids.Length];
        for (int t = 0; t < length; t++) TypeIds[start + t] = types[t];
    }

    private void Read(TrainingDraw? draw)
    {
        if (Rows[0].Input!.Shape is { } known) ReadAlike([.. known], draw);
        else ReadAndPad(draw);
        if (draw is not null && Rows.Count > 1) Mixing = Rows[0].Input!.Mix(Values, Shape, draw.Of(Rows));
    }

    // Rows of one shape are written where they belong, so that no more than a row a thread is there twice.
    private void ReadAlike(int[] shape, TrainingDraw? draw)
    {
        int size = shape.Aggregate(1, (a, b) => checked(a * b));
        Shape = [Rows.Count, .. shape];
        Values = new float[checked(Rows.Count * size)];
        Each(r => Rows[r].Input!.Make(draw?.Of(Rows[r]), (found, _) => found.AsSpan().SequenceEqual(shape)
            ? Values.AsSpan(r * size, size)
            : throw Unlike(found, shape)));
    }

    private void ReadAndPad(TrainingDraw? draw)
    {
        var made = new (float[] Values, int[] Shape, int Real)[Rows.Count];
        Each(r => Rows[r].Input!.Make(draw?.Of(Rows[r]), (shape, real) =>
        {
            made[r] = (new float[shape.Aggregate(1, (a, b) => checked(a * b))], [.. shape], real ?? shape[0]);
            return made[r].Values;
        }));
        ExampleInput first = Rows[0].Input!;
        int longest = made.Max(m => m.Shape[0]), rest = made[0].Values.Length / Math.Max(1, made[0].Shape[0]);
        foreach ((_, int[] shape, _) in made)
            if (!shape.AsSpan(1).SequenceEqual(made[0].Shape.AsSpan(1))) throw Unlike(shape, made[0].Shape);
        Shape = [Rows.Count, longest, .. made[0].Shape.Skip(1)];
        Values = new float[checked(Rows.Count * longest * rest)];
        Padded = first.Masked && made.Any(m => m.Real < longest);
        if (Padded) Mask = new long[Rows.Count * longest];
        for (int r = 0; r < made.Length; r++)
        {
            Span<float> place = Values.AsSpan(r * longest * rest, longest * rest);
            made[r].Values.CopyTo(place);
            place[made[r].Values.Length..].Fill(first.Padding);
            if (Padded) Mask.AsSpan(r * longest, made[r].Real).Fill(1);
        }
    }

    private static InvalidOperationException Unlike(int[] found, int[] other) =>
        new($"Rows of one batch have the shapes [{string.Join(", ", found)}] and [{string.Join(", ", other)}]; the processor must give one shape.");

    private void Each(Action<int> read)
    {
        var failures = new UnreadableInputException?[Rows.Count];
        void Try(int row)
        {
            try
            {
                read(row);
            }
            catch (UnreadableInputException e)
            {
                failures[row] = e;
            }
        }
        if (Rows.Count == 1) Try(0);
        else Parallelly.For(Rows.Count, (row, _) => Try(row));
        int[] failed = [.. Enumerable.Range(0, Rows.Count).Where(r => failures[r] is not null)];
        if (failed.Length > 0) throw new UnreadableInputException(failures[failed[0]]!.Message, failures[failed[0]]!.Row, failures[failed[0]]!.InnerException) { Places = failed };
    }
}
