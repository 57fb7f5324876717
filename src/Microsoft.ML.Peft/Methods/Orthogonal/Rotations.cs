// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Orthogonal matrices out of free numbers.</summary>
internal static class Rotations
{
    /// <summary>Skew-symmetric matrices out of their upper triangles, row by row.</summary>
    /// <param name="upper"><c>[blocks, size (size - 1) / 2]</c>.</param>
    /// <param name="size">Rows of a matrix, 2 or more.</param>
    /// <param name="pass">The running pass, or null while merging.</param>
    /// <returns><c>[blocks, size, size]</c>.</returns>
    public static Tensor Skew(Tensor upper, int size, Pass? pass)
    {
        Tensor[] layout = pass is null ? Layout(size, upper.device) : pass.Once((nameof(Rotations), size), () => Layout(size, upper.device));
        Tensor withZero = cat([zeros_like(upper.narrow(1, 0, 1)), upper], 1);                 // entry 0 is the diagonal's
        return (withZero.index_select(1, layout[0]) * layout[1]).view(-1, size, size);
    }

    // Where each entry of the matrix comes from, and its sign.
    private static Tensor[] Layout(int size, Device device)
    {
        var place = new long[size * size];
        var sign = new float[size * size];
        long next = 1;
        for (int row = 0; row < size; row++)
        {
            for (int column = row + 1; column < size; column++, next++)
            {
                (place[row * size + column], sign[row * size + column]) = (next, 1);
                (place[column * size + row], sign[column * size + row]) = (next, -1);
            }
        }
        return [tensor(place).to(device), tensor(sign).to(device)];
    }

    /// <summary>Cayley's transform <c>(I + Q)⁻¹ (I − Q)</c>: orthogonal where Q is skew.</summary>
    /// <param name="q"><c>[..., size, size]</c>.</param>
    public static Tensor Cayley(Tensor q)
    {
        Tensor one = eye(q.shape[^1], dtype: q.dtype, device: q.device);
        return linalg.solve(one + q, one - q);
    }

    /// <summary>
    /// The transform of −Q by its series, cut: <c>I + 2Q + 2Q² + … + Q^(terms − 1)</c>, with three terms as with four.
    /// Nearly orthogonal for small Q.
    /// </summary>
    /// <param name="q"><c>[..., size, size]</c>.</param>
    /// <param name="terms">Number of terms, 1 or more.</param>
    public static Tensor Neumann(Tensor q, int terms)
    {
        Tensor sum = eye(q.shape[^1], dtype: q.dtype, device: q.device).expand(q.shape);
        if (terms < 2) return sum;
        sum = sum + q * 2;
        if (terms == 2) return sum;
        Tensor power = q;
        int last = Math.Max(terms, 4) - 1;
        for (int i = 2; i < last; i++)
        {
            power = power.matmul(q);
            sum = sum + power * 2;
        }
        return sum + power.matmul(q);
    }

    /// <summary>Checks the size of blocks and their number, of which one is given.</summary>
    /// <param name="size">Size of a block, or 0.</param>
    /// <param name="count">Number of blocks, or 0.</param>
    /// <param name="invalid">Makes an error of option, value and what is allowed.</param>
    public static void CheckBlocks(int size, int count, Func<string, object?, string, ArgumentException> invalid)
    {
        if (size < 0 || size == 1) throw invalid("BlockSize", size, "2 or more, or 0 with Blocks");
        if (count < 0) throw invalid("Blocks", count, "1 or more, or 0 with BlockSize");
        if ((size == 0) == (count == 0)) throw invalid("Blocks", count, $"{(size == 0 ? "1 or more" : "0")} with BlockSize = {size}: give one of the two");
    }

    /// <summary>Puts identities in place of some blocks while training.</summary>
    /// <param name="blocks"><c>[blocks, size, size]</c>.</param>
    /// <param name="probability">Share of the blocks.</param>
    /// <param name="pass">The running pass, or null while merging.</param>
    public static Tensor DropBlocks(Tensor blocks, double probability, Pass? pass)
    {
        if (pass is not { Training: true } || probability <= 0) return blocks;
        Tensor kept = pass.Dropout(ones([blocks.shape[0], 1, 1], device: blocks.device), probability) * (1 - probability);
        return blocks * kept + eye(blocks.shape[^1], device: blocks.device) * (1 - kept);
    }

    /// <summary>Multiplies row vectors block by block.</summary>
    /// <param name="rows"><c>[..., width]</c>.</param>
    /// <param name="blocks"><c>[blocks, size, size]</c> with blocks · size = width, or one block for all.</param>
    /// <returns><c>[..., width]</c>.</returns>
    public static Tensor Multiply(Tensor rows, Tensor blocks)
    {
        long[] shape = rows.shape;
        long size = blocks.shape[^1];
        if (blocks.shape[0] == 1) return rows.reshape(-1, size).matmul(blocks.squeeze(0)).reshape(shape);
        return rows.reshape(-1, blocks.shape[0], size).transpose(0, 1).bmm(blocks).transpose(0, 1).reshape(shape);
    }
}

/// <summary>
/// A linear map of what the site reads, <c>W' = W Q</c>. At a projection the input is mapped, which costs less than mapping the
/// weight; at a convolution the weight is, over channels times kernel; at a table the rows are.
/// </summary>
/// <param name="site">The site.</param>
/// <param name="map">Rows [..., in] to rows: times Q, or times its transpose where the flag is true. The pass is null while merging.</param>
/// <param name="scale">Factors of the outputs <c>[out, 1]</c> or <c>[1, out]</c>, not of the bias; null for none.</param>
/// <param name="bias">The bias that is trained in the frozen one's place, or null.</param>
internal sealed class InputMapPatch(WeightSite site, Func<Tensor, bool, Pass?, Tensor> map, NamedParameter? scale = null, NamedParameter? bias = null) : WeightPatch
{
    /// <inheritdoc/>
    public override PatchForm Form => site is Convolution ? PatchForm.Weight : PatchForm.Around;

    /// <inheritdoc/>
    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        if (site is Embedding)
        {
            Tensor rows = next(x);
            return map(rows.to_type(ScalarType.Float32), false, pass).to_type(rows.dtype);
        }
        Tensor y = next(map(x.to_type(ScalarType.Float32), true, pass).to_type(x.dtype));
        if (scale is null) return y;
        Tensor factors = scale.Value.view(-1);
        Tensor scaled = y * factors;
        return (site.Bias is null ? scaled : scaled + (bias?.Value ?? site.Bias) * (1 - factors)).to_type(y.dtype);
    }

    /// <inheritdoc/>
    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        Tensor mapped = map(weight.to_type(ScalarType.Float32).reshape(weight.shape[0], -1), false, pass);
        if (scale is not null) mapped = mapped * scale.Value.view(-1, 1);
        return (mapped.reshape(weight.shape).to_type(weight.dtype), bias);
    }
}
