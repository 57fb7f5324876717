// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Rows and columns of the places of a map, which stand in a sequence row by row.</summary>
/// <param name="Rows">Rows.</param>
/// <param name="Columns">Columns.</param>
/// <param name="WholeWindows">See <see cref="Backbones.TokenBatch.WholeWindows"/>.</param>
public sealed record MapGrid(long Rows, long Columns, bool WholeWindows = false)
{
    /// <summary>Number of places.</summary>
    public long Places => Rows * Columns;
}

/// <summary>Which tokens of a padded batch are real.</summary>
public sealed class Layout
{
    /// <summary>Makes the layout of a batch.</summary>
    /// <param name="mask">1 for real tokens, 0 for padding, int64 or bool <c>[batch, tokens]</c>.</param>
    /// <param name="padded">False where it is known that no token is padding (saves the mask everywhere).</param>
    /// <param name="inserted">Tokens of each row that are not the row's own (prompts).</param>
    /// <param name="insertedAt">Where those stand: the number of own tokens before them.</param>
    /// <param name="readsInserted">True where the first inserted token stands for the row.</param>
    public Layout(Tensor mask, bool padded = true, int inserted = 0, int insertedAt = 0, bool readsInserted = false)
    {
        Mask = mask;
        Padded = padded;
        Inserted = inserted;
        InsertedAt = insertedAt;
        ReadsInserted = readsInserted;
    }

    /// <summary>1 for real tokens, 0 for padding, <c>[batch, tokens]</c>.</summary>
    public Tensor Mask { get; }

    /// <summary>True where the batch has padding.</summary>
    public bool Padded { get; }

    /// <summary>The map that the rows' own tokens are the places of, in networks of stages; else null.</summary>
    public MapGrid? Grid { get; init; }

    /// <summary>Number of tokens that are not the row's own; they stand together.</summary>
    public int Inserted { get; }

    /// <summary>Number of own tokens before the inserted ones.</summary>
    public int InsertedAt { get; }

    /// <summary>True where heads that read the first token read an inserted one, as Hugging Face's task models do.</summary>
    public bool ReadsInserted { get; }

    /// <summary>Place of the token that stands for the row in heads that read the first token.</summary>
    public int First => InsertedAt == 0 && !ReadsInserted ? Inserted : 0;

    /// <summary>The layout with more tokens, all of them real.</summary>
    /// <param name="count">Number of tokens.</param>
    /// <param name="at">Number of own tokens before them.</param>
    /// <param name="readsInserted">True where the first of them stands for the row.</param>
    /// <exception cref="NotSupportedException">Other tokens were inserted at another place.</exception>
    public Layout Insert(int count, int at, bool readsInserted = false)
    {
        if (Inserted > 0 && at != InsertedAt)
            throw new NotSupportedException($"Tokens stand after {InsertedAt} own tokens already; others after {at} cannot be inserted too. Give both prompts the same order.");
        Tensor front = Mask.narrow(1, 0, at), rest = Mask.narrow(1, at, Tokens - at);
        Tensor mask = cat([front, ones([Batch, count], dtype: Mask.dtype, device: Mask.device), rest], 1);
        return new Layout(mask, Padded, Inserted + count, at, ReadsInserted || readsInserted) { Past = Past, Grid = Grid };
    }

    /// <summary>The row's own tokens of <c>[batch, tokens, ...]</c>: without the inserted ones.</summary>
    /// <param name="x">Anything with a place a token, the inserted ones included.</param>
    public Tensor Own(Tensor x)
    {
        if (Inserted == 0) return x;
        Tensor rest = x.narrow(1, InsertedAt + Inserted, x.shape[1] - InsertedAt - Inserted);
        return InsertedAt == 0 ? rest : cat([x.narrow(1, 0, InsertedAt), rest], 1);
    }

    /// <summary>The mask of cached tokens that stand before these, <c>[batch, cached]</c>; null without.</summary>
    public Tensor? Past { get; init; }

    /// <summary>Number of cached tokens.</summary>
    public long PastTokens => Past?.shape[1] ?? 0;

    /// <summary>Rows in the batch.</summary>
    public long Batch => Mask.shape[0];

    /// <summary>Tokens in a padded row.</summary>
    public long Tokens => Mask.shape[1];

    /// <summary>The layout of some rows of the batch.</summary>
    /// <param name="rows">Row numbers, int64 <c>[rows]</c>.</param>
    public Layout Rows(Tensor rows) => new(Mask.index_select(0, rows), Padded, Inserted, InsertedAt, ReadsInserted) { Past = Past?.index_select(0, rows), Grid = Grid };

    /// <summary>Added to attention scores: 0 for real keys, the lowest number for padding, <c>[batch, 1, 1, tokens]</c>; null without padding.</summary>
    /// <param name="dtype">Type of the scores.</param>
    public Tensor? KeyBias(ScalarType dtype)
    {
        if (!Padded) return null;
        if (_keyBias is not null && _keyBias.dtype == dtype) return _keyBias;
        return _keyBias = ((1.0 - Mask.to_type(dtype)) * Lowest(dtype)).unsqueeze(1).unsqueeze(1);
    }

    /// <summary>
    /// As <see cref="KeyBias"/>, and no token sees a later one: <c>[1 or batch, 1, tokens, cached + tokens]</c>; null where a
    /// single token sees all.
    /// </summary>
    /// <param name="dtype">Type of the scores.</param>
    public Tensor? CausalBias(ScalarType dtype)
    {
        if (Tokens == 1 && !Padded) return null;
        if (_causalBias is not null && _causalBias.dtype == dtype) return _causalBias;
        Tensor seen = ones([Tokens, PastTokens + Tokens], dtype: dtype, device: Mask.device).tril(PastTokens).unsqueeze(0);   // [1, tokens, keys]
        if (Padded) seen = seen * (Past is null ? Mask : cat([Past, Mask], 1)).to_type(dtype).unsqueeze(1);
        return _causalBias = ((1.0 - seen) * Lowest(dtype)).unsqueeze(1);
    }

    /// <summary>How many tokens of each row are real, where a bias says nothing but that the others are padding at the end; else null.</summary>
    /// <param name="bias">What is added to attention scores.</param>
    internal int[]? LengthsOf(Tensor? bias) => bias is not null && ReferenceEquals(bias, _keyBias) ? (_lengths ??= CountLengths()).Length == Batch ? _lengths : null : null;

    // Empty where padding stands elsewhere than at the end.
    private int[] CountLengths()
    {
        if (Mask.device_type != DeviceType.CPU || Mask.dtype != ScalarType.Int64) return [];
        using Tensor together = Mask.contiguous();
        ReadOnlySpan<long> mask = MemoryMarshal.Cast<byte, long>(together.bytes);
        var lengths = new int[Batch];
        int tokens = (int)Tokens;
        for (int row = 0; row < lengths.Length; row++)
        {
            ReadOnlySpan<long> own = mask.Slice(row * tokens, tokens);
            int length = own.IndexOf(0L);
            lengths[row] = length < 0 ? tokens : length;
            if (length >= 0 && own[length..].ContainsAnyExcept(0L)) return [];
        }
        return lengths;
    }

    private Tensor? _keyBias, _causalBias;
    private int[]? _lengths;

    // The lowest finite number, not -inf: a row that is all padding must not become NaN.
    private static double Lowest(ScalarType dtype) => dtype == ScalarType.Float16 ? -65504.0 : -3.3895313892515355e38;

    internal IEnumerable<Tensor> Tensors => new[] { Mask, Past, _keyBias, _causalBias }.OfType<Tensor>();
}
