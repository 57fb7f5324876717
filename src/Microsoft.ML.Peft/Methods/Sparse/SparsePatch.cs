// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Some entries of a projection's weight are trained: <c>W' = W + S</c>, S zero but for k values at k distinct places. The
/// places may move between steps. Shared by all methods of sparse updates.
/// </summary>
/// <param name="site">The projection.</param>
/// <param name="values">The trained entries <c>[k]</c>.</param>
/// <param name="indices">Their places: <c>[k]</c> row by row, or rows and columns <c>[2, k]</c>; int32 or int64.</param>
internal sealed class SparsePatch(Projection site, NamedParameter values, NamedParameter indices) : WeightPatch
{
    /// <summary>The trained entries <c>[k]</c>.</summary>
    public NamedParameter Values => values;

    /// <summary>Their places.</summary>
    public NamedParameter Indices => indices;

    /// <summary>The projection.</summary>
    public Projection Site => site;

    /// <summary>Given the gradient of the whole weight <c>[out, in]</c> in each backward pass, in float32, before it is thrown away; null for nobody.</summary>
    public Action<Tensor>? WatchGradient { get; set; }

    public override PatchForm Form => PatchForm.Around;

    public override bool Trainable => values.Trainable;

    /// <summary>Places row by row, int64 <c>[k]</c>.</summary>
    public Tensor Places()
    {
        Tensor at = indices.Value.to_type(ScalarType.Int64);
        return at.dim() == 1 ? at : at.select(0, 0) * site.In + at.select(0, 1);
    }

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) => (Sum(weight, values.Value), bias);

    private Tensor Sum(Tensor weight, Tensor entries)
    {
        Tensor flat = weight.to_type(ScalarType.Float32).reshape(-1);
        return flat.scatter_add(0, Places(), entries).reshape(weight.shape).to_type(weight.dtype);
    }

    // Alone at its site, the sum W + S is one product; in company what lies below runs first and S is a product of its own.
    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        bool alone = ReferenceEquals(pass.Patches[site], this);
        long[] shape = x.shape;
        Tensor rows = x.reshape(-1, site.In);
        Tensor made = is_grad_enabled() ? Product.apply(rows, values.Value, this, alone) : Multiply(rows, values.Value, alone);
        shape[^1] = site.Out;
        made = made.reshape(shape);
        return alone ? made : next(x) + made;
    }

    private Tensor Multiply(Tensor rows, Tensor entries, bool alone)
    {
        using var scope = NewDisposeScope();
        return nn.functional.linear(rows, Matrix(rows.dtype, entries, alone), alone ? site.Bias : null).MoveToOuterDisposeScope();
    }

    private Tensor Matrix(ScalarType type, Tensor entries, bool alone) =>
        alone ? Sum(site.Weight, entries) : Sum(zeros(site.Out, site.In, device: entries.device), entries).to_type(type);

    // The graph keeps x and k values, never a matrix: W + S is made again in the backward pass.
    private sealed class Product : autograd.SingleTensorFunction<Product>
    {
        public override string Name => "SparseProduct";

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var (rows, entries, patch, alone) = ((Tensor)vars[0], (Tensor)vars[1], (SparsePatch)vars[2], (bool)vars[3]);
            ctx.save_for_backward([rows, entries]);
            ctx.save_data("patch", patch);
            ctx.save_data("alone", alone);
            ctx.save_data("input", rows.requires_grad);
            return patch.Multiply(rows, entries, alone);
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            using var scope = NewDisposeScope();
            using var off = no_grad();
            var patch = (SparsePatch)ctx.get_data("patch")!;
            List<Tensor> saved = ctx.get_saved_variables();
            Tensor rows = saved[0], entries = saved[1];
            Tensor? below = (bool)ctx.get_data("input")!
                ? grad_output.matmul(patch.Matrix(rows.dtype, entries, (bool)ctx.get_data("alone")!)).MoveToOuterDisposeScope() : null;
            Tensor whole = grad_output.t().matmul(rows).to_type(ScalarType.Float32);         // [out, in]
            Tensor own = whole.reshape(-1).index_select(0, patch.Places()).MoveToOuterDisposeScope();
            patch.WatchGradient?.Invoke(whole);
            return [below!, own, null!, null!];
        }
    }
}
