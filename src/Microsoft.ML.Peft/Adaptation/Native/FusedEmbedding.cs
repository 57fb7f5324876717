// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
using static Microsoft.ML.Peft.Adaptation.NativeKernels;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Rows of tables, their sum, its layer norm and dropout in one pass over the tokens, where all of it is frozen and wears nothing.
/// Numbers and dropped entries are those of the parts run one by one by the kernels, to the bit.
/// </summary>
internal static unsafe class FusedEmbedding
{
    private const int OutsideOfTable = -3;

    /// <summary>Which rows of a table the tokens take.</summary>
    /// <param name="Table">The table.</param>
    /// <param name="Ids">Row numbers, int64 <c>[1 or batch, tokens]</c>; null for one row, or for counted ones.</param>
    /// <param name="First">Without ids, the row of each first token.</param>
    /// <param name="Counted">Without ids, true where each next token takes the next row, false where all take the first one's.</param>
    internal readonly record struct Rows(Embedding Table, Tensor? Ids, long First = 0, bool Counted = false);

    /// <summary>True where the kernel can take the parts' place in this pass.</summary>
    /// <param name="tables">Tables, at most three.</param>
    /// <param name="norm">The norm of their rows' sum.</param>
    /// <param name="dropout">Dropout while training.</param>
    /// <param name="pass">The running forward pass.</param>
    public static bool Fits(ReadOnlySpan<Embedding> tables, Norm norm, double dropout, Pass pass)
    {
        if (!On || !pass.CanKey(dropout) || pass.Patches[norm] is not null || norm.OverTime || norm.RootMeanSquare) return false;
        if (tables.Length is 0 or > NativeTables.Most || !Frozen(norm.Weight) || norm.Bias is { } bias && !Frozen(bias)) return false;
        long width = norm.Weight.shape[0];
        foreach (Embedding table in tables)
        {
            if (pass.Patches[table] is not null || table.Quantised is not null) return false;
            if (!Frozen(table.Weight) || table.Weight.shape[1] != width) return false;
        }
        return true;
    }

    /// <summary><c>dropout(norm(sum of rows))</c>, <c>[batch, tokens, width]</c>; null where the parts have to do it, or to say what is wrong.</summary>
    /// <param name="rows">Rows of each table, in the order of the sum.</param>
    /// <param name="norm">The norm.</param>
    /// <param name="dropout">Dropout while training.</param>
    /// <param name="batch">Rows of the batch.</param>
    /// <param name="tokens">Tokens of a row.</param>
    /// <param name="pass">The running forward pass.</param>
    public static Tensor? Apply(ReadOnlySpan<Rows> rows, Norm norm, double dropout, long batch, long tokens, Pass pass)
    {
        long width = norm.Weight.shape[0];
        if (batch * tokens * width is 0 or > int.MaxValue / sizeof(float)) return null;
        var call = new NativeEmbed
        {
            Rows = batch * tokens,
            Width = width,
            Tables = rows.Length,
            Epsilon = (float)norm.Epsilon,
            Weight = Pointer(norm.Weight),
            Bias = norm.Bias is { } bias ? Pointer(bias) : null,
            Threads = get_num_threads(),
        };
        var ids = new Tensor?[rows.Length];
        for (int i = 0; i < rows.Length; i++)
        {
            (Embedding table, Tensor? own, long first, bool counted) = rows[i];
            if (own is not null && !Fits(own, batch, tokens)) return null;
            ids[i] = own is null ? null : Contiguous(own);
            call.Table[i] = new NativeRows
            {
                Data = Pointer(table.Weight),
                Count = table.Weight.shape[0],
                Index = ids[i] is { } index ? (long*)Pointer(index) : null,
                Period = own is not null ? own.numel() : counted ? tokens : 1,
                First = first,
            };
        }
        call.Dropout = pass.Mask(dropout);
        Tensor y = empty([batch, tokens, width], dtype: ScalarType.Float32);
        call.Y = Pointer(y);
        int result = Calls.Embed(&call);
        GC.KeepAlive(ids);
        if (result != OutsideOfTable)
        {
            Check(result);
            return y;
        }
        y.Dispose();
        return null;
    }

    private static bool Fits(Tensor ids, long batch, long tokens) =>
        ids.dtype == ScalarType.Int64 && ids.device_type == DeviceType.CPU && ids.shape is [long first, long second] && (first == 1 || first == batch) && second == tokens;
}
