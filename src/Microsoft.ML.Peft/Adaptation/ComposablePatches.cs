// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A patch at a residual connection whose work falls into three steps, so that several compose there: what it reads, what it
/// makes of that, and how the connection is closed. All tensors are <c>[batch, tokens, hidden]</c>.
/// </summary>
public interface IComposableResidual
{
    /// <summary>What the inside reads, and what its own residual adds.</summary>
    /// <param name="stream">Residual stream.</param>
    /// <param name="output">Output of the part, or of the adapter before.</param>
    /// <param name="next">The connection without a patch.</param>
    (Tensor Hidden, Tensor Residual) Before(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next);

    /// <summary>The adapter proper.</summary>
    /// <param name="hidden">What it reads.</param>
    /// <param name="residual">What its own residual adds.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>The output, and the adapter's part of it without the residual.</returns>
    (Tensor Output, Tensor Contribution) Inside(Tensor hidden, Tensor residual, Pass pass);

    /// <summary>Closes the connection.</summary>
    /// <param name="made">What came out of the adapters.</param>
    /// <param name="stream">Residual stream.</param>
    /// <param name="output">Output of the part itself.</param>
    /// <param name="next">The connection without a patch.</param>
    Tensor After(Tensor made, Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next);
}

/// <summary>Mixes the contributions of several adapters at one place.</summary>
public interface IFusion
{
    /// <summary>True to ask by what the part gave, before the frozen norm.</summary>
    bool AsksBeforeNorm { get; }

    /// <summary>The mixed output <c>[batch, tokens, hidden]</c>.</summary>
    /// <param name="query">What asks.</param>
    /// <param name="contributions">What each adapter made, without its residual.</param>
    /// <param name="residual">What is added.</param>
    /// <param name="pass">The running forward pass.</param>
    Tensor Mix(Tensor query, IReadOnlyList<Tensor> contributions, Tensor residual, Pass pass);
}

/// <summary>A method that makes fusions; see <see cref="AdapterSet.AddFusion"/>.</summary>
public interface IFusionMethod
{
    /// <summary>Makes the parameters of a fusion.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="name">The adapters' names with commas between.</param>
    /// <param name="places">The residual connections at which it mixes.</param>
    /// <param name="seed">Seed of the initial values.</param>
    FusedParts Attach(Backbones.Backbone backbone, string name, IReadOnlyList<Residual> places, long seed);
}

/// <summary>The part of an average that a site can take.</summary>
internal static class Shares
{
    /// <summary>
    /// The children of an average with something at a site, and their weights: those of the others go to them in
    /// proportion, as names without a place at a site are left out everywhere.
    /// </summary>
    /// <param name="node">The average.</param>
    /// <param name="here">True for names with a patch at the site.</param>
    public static (Composition Child, double Weight)[] Of(Composition node, Func<string, bool> here)
    {
        (Composition Child, double Weight)[] there = [.. node.Children.Select((child, i) => (child, node.Weights![i])).Where(p => p.child.Names.Any(here))];
        double all = node.Weights!.Sum(), present = there.Sum(p => p.Weight);
        double factor = there.Length == node.Children.Count || present == 0 ? 1 : all / present;
        return [.. there.Select(p => (p.Child, p.Weight * factor))];
    }
}

/// <summary>Slicing by rows or tokens, shared by all kinds of sites.</summary>
internal static class Slices
{
    /// <summary>The spans that the children of a node have, along an axis of so many entries.</summary>
    public static (long Start, long Count)[] Of(Composition node, long entries)
    {
        long[] sizes = node.Kind == CompositionKind.Parallel
            ? [.. node.Children.Select(_ => entries / node.Children.Count)]
            : [.. node.Sizes!];
        if (sizes.Sum() != entries)
            throw new ArgumentException($"{node} does not fit {entries} {(node.Kind == CompositionKind.Split ? "tokens" : "rows")}: its parts sum to {sizes.Sum()}.");
        long at = 0;
        return [.. sizes.Select(size => (at += size, size)).Select(p => (p.Item1 - p.size, p.size))];
    }

    public static int Axis(Composition node) => node.Kind == CompositionKind.Split ? 1 : 0;

    /// <summary>Runs each child of a slicing node on its span, and joins the results.</summary>
    /// <param name="node">Parallel, BatchSplit or Split.</param>
    /// <param name="whole">Any tensor of the state, for its extent.</param>
    /// <param name="pass">The running pass; rows narrow its layout.</param>
    /// <param name="run">Runs a child; the function cuts a tensor of the state down to the child's span.</param>
    public static Tensor Run(Composition node, Tensor whole, Pass pass, Func<Composition, Func<Tensor, Tensor>, Tensor> run)
    {
        int axis = Axis(node);
        (long Start, long Count)[] spans = Of(node, whole.shape[axis]);
        var parts = new Tensor[spans.Length];
        for (int i = 0; i < spans.Length; i++)
        {
            (long start, long count) = spans[i];
            Tensor Cut(Tensor x) => x.narrow(axis, start, count);
            if (axis == 1) parts[i] = run(node.Children[i], Cut);
            else
            {
                using Pass.GroupScope _ = pass.Narrow(pass.Group, arange(start, start + count, ScalarType.Int64, whole.device));
                parts[i] = run(node.Children[i], Cut);
            }
        }
        return cat(parts, axis);
    }
}
