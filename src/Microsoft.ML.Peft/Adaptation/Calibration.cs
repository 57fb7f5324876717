// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// What an adaptation may look at before it is trained: the first training batches, through the model that it belongs to.
/// It says what the network wears in each run, so it can watch inputs, or take gradients of frozen weights, anywhere.
/// </summary>
public abstract class Calibration
{
    /// <summary>Number of batches that there are, at least 1.</summary>
    public abstract int Batches { get; }

    /// <summary>Runs the backbone over a batch.</summary>
    /// <param name="batch">Number of the batch, from 0.</param>
    /// <param name="worn">What the network wears.</param>
    /// <returns>Which tokens are real and count in the loss, <c>[batch, tokens]</c>, 1 or 0.</returns>
    public abstract Tensor Run(int batch, PatchTable worn);

    /// <summary>The training loss of a batch, without dropout: a scalar with a graph, the mean over what counts.</summary>
    /// <param name="batch">Number of the batch, from 0.</param>
    /// <param name="worn">What the network wears.</param>
    public abstract Tensor Loss(int batch, PatchTable worn);

    /// <summary>Shows what sites read in one batch of the bare network.</summary>
    /// <param name="batch">Number of the batch, from 0.</param>
    /// <param name="sites">Sites that are watched.</param>
    /// <param name="see">
    /// Called for each with its input <c>[batch, tokens, in]</c> (or another shape), the object itself: sites that read one
    /// tensor are shown one. The tensor lives until <see cref="Inputs"/> returns.
    /// </param>
    /// <returns>Which tokens count, <c>[batch, tokens]</c>, 1 or 0.</returns>
    public Tensor Inputs(int batch, IEnumerable<WeightSite> sites, Action<WeightSite, Tensor> see)
    {
        using var off = no_grad();
        return Run(batch, new PatchTable(sites.Select(site => KeyValuePair.Create<Site, Patch>(site, new Watcher(site, see)))));
    }

    /// <summary>Gradients of frozen weights, averaged over all batches; the weights themselves are not touched.</summary>
    /// <param name="sites">Sites whose weights are asked for.</param>
    /// <returns>Gradients in logical layout, float32, on the weights' device.</returns>
    public IReadOnlyDictionary<WeightSite, Tensor> Gradients(IReadOnlyCollection<WeightSite> sites)
    {
        using var on = enable_grad();
        Dictionary<WeightSite, Leaf> leaves = sites.ToDictionary(site => site, site => new Leaf(site.Weight));
        var table = new PatchTable(leaves.Select(l => KeyValuePair.Create<Site, Patch>(l.Key, l.Value)));
        for (int batch = 0; batch < Batches; batch++)
        {
            using var scope = NewDisposeScope();
            Loss(batch, table).backward();
        }
        using var off = no_grad();
        return leaves.ToDictionary(l => l.Key, l => l.Value.Weight.grad is { } gradient
            ? gradient.to_type(ScalarType.Float32) / Batches
            : throw new InvalidOperationException($"The loss does not depend on {l.Key.Name}; leave it out of the targets."));
    }

    /// <summary>The first batches alone.</summary>
    /// <param name="most">Most batches that are shown.</param>
    internal Calibration First(int most) => most >= Batches ? this : new Part(this, most);

    private sealed class Part(Calibration whole, int batches) : Calibration
    {
        public override int Batches => batches;

        public override Tensor Run(int batch, PatchTable worn) => whole.Run(batch, worn);

        public override Tensor Loss(int batch, PatchTable worn) => whole.Loss(batch, worn);
    }

    private sealed class Watcher(WeightSite site, Action<WeightSite, Tensor> see) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        public override bool Trainable => false;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            see(site, x);
            return next(x);
        }
    }

    // The frozen numbers under a handle that takes a gradient.
    private sealed class Leaf(Tensor frozen) : WeightPatch
    {
        public Tensor Weight { get; } = frozen.detach().requires_grad_();

        public override PatchForm Form => PatchForm.Weight;

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) => (Weight, bias);
    }
}
