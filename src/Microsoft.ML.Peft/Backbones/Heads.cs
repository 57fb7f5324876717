// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>Attention by heads, as most families have it.</summary>
internal static class Heads
{
    /// <summary><c>[batch, tokens, heads · width]</c> to <c>[batch, heads, tokens, width]</c>.</summary>
    public static Tensor Split(Tensor y, AttentionCore core) => Split(y, core.HeadWidth);

    /// <summary><c>[batch, tokens, heads · width]</c> to <c>[batch, heads, tokens, width]</c>.</summary>
    public static Tensor Split(Tensor y, int width) => y.view(y.shape[0], y.shape[1], -1, width).transpose(1, 2);

    /// <summary><c>[batch, heads, tokens, width]</c> to <c>[batch, tokens, heads · width]</c>.</summary>
    public static Tensor Join(Tensor context)
    {
        long[] shape = context.shape;
        return context.transpose(1, 2).reshape(shape[0], shape[2], shape[1] * shape[3]);
    }

    /// <summary>Softmax of the scaled products of queries and keys, times values.</summary>
    /// <param name="a">Queries, keys, values and what is added to the scores.</param>
    /// <param name="scale">Factor of the products.</param>
    /// <param name="dropout">Dropout of the shares while training.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Contexts <c>[batch, heads, tokens, head width]</c>.</returns>
    public static Tensor Attend(AttentionInput a, double scale, double dropout, Pass pass)
    {
        if (FusedAttention.Fits(a, dropout, pass)) return FusedAttention.Apply(a, scale, dropout, pass);
        if (DeviceAttention.Fits(a, pass)) return DeviceAttention.Apply(a, scale, dropout, pass);
        long[] shape = a.Query.shape;                                                    // [batch, heads, tokens, head width]
        long keys = a.Key.shape[2], slices = shape[0] * a.Key.shape[1], width = shape[3];
        // Heads of queries that share a head of keys lie one after the other: one product serves them all.
        Tensor query = (scale == 1 ? a.Query : a.Query * scale).reshape(slices, -1, width);
        // Keys are copied as they lie; the transposition is left to the product.
        Tensor scores = query.bmm(a.Key.reshape(slices, keys, width).transpose(1, 2)).view(shape[0], shape[1], -1, keys);
        if (a.Bias is not null) scores = scores + a.Bias;
        Tensor shares = pass.Dropout(scores.softmax(-1), dropout);                       // [batch, heads, tokens, keys]
        return shares.view(slices, -1, keys).bmm(a.Value.reshape(slices, keys, width)).view(shape);
    }
}
