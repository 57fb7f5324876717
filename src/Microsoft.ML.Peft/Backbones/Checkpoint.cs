// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// Gradient checkpointing: a segment keeps only its input and runs again in the backward pass (Chen et al. 2016,
/// arXiv 1604.06174). The segment's random numbers depend on the pass's seed alone, so both runs drop the same entries.
/// </summary>
internal static class Checkpoint
{
    /// <summary>Runs a segment without keeping its activations.</summary>
    /// <param name="input">Input <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="body">The segment.</param>
    /// <param name="pass">The running forward pass; must have a seed where it drops out.</param>
    public static Tensor Run(Tensor input, Func<Tensor, Tensor> body, Pass pass)
    {
        if (!is_grad_enabled()) return body(input);
        // The graph must reach the function even where only parameters inside it are trained.
        Tensor entry = input.requires_grad ? input : input.detach().requires_grad_();
        // What the segment reads beside its input (an encoder's states, a table of biases) gets its gradient as an input too.
        Dictionary<object, object> shared = pass.Shared();
        Tensor[] beside = Pass.WithGraph(shared);
        return Function.apply([entry, new Segment(body, pass, pass.Layout, shared, beside), .. beside]);
    }

    // What is shared within a pass is made anew inside the segment: in its first run it would have no graph.
    private sealed record Segment(Func<Tensor, Tensor> Body, Pass Pass, Layout Layout, Dictionary<object, object> Shared, Tensor[] Beside)
    {
        // The second run sees the shared values of the first: later ones have graphs of their own.
        public Tensor Run(Tensor input, params Tensor[] beside)
        {
            Pass.Layout = Layout;
            var instead = new Dictionary<Tensor, Tensor>(ReferenceEqualityComparer.Instance);
            for (int i = 0; i < beside.Length; i++) instead[Beside[i]] = beside[i];
            return Pass.Isolated(Shared, instead, () => Body(input));
        }

        public Tensor RunAgain(Tensor input, Tensor[] beside)
        {
            Layout last = Pass.Layout;
            try
            {
                return Run(input, beside);
            }
            finally
            {
                Pass.Layout = last;
            }
        }
    }

    private sealed class Function : autograd.SingleTensorFunction<Function>
    {
        public override string Name => nameof(Checkpoint);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var input = (Tensor)vars[0];
            var segment = (Segment)vars[1];
            ctx.save_data("segment", segment);
            ctx.save_for_backward([input, .. segment.Beside]);
            using var off = no_grad();
            return segment.Run(input);
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            var segment = (Segment)ctx.get_data("segment")!;
            using var on = enable_grad();
            // One segment's activations live at a time.
            using var scope = NewDisposeScope();
            Tensor[] leaves = [.. ctx.get_saved_variables().Select(saved => saved.detach().requires_grad_())];
            Tensor output = segment.RunAgain(leaves[0], leaves[1..]);
            autograd.backward([output], [grad_output]);
            Tensor[] gradients = [.. leaves.Select(leaf => leaf.grad?.MoveToOuterDisposeScope()!)];
            return [gradients[0], null!, .. gradients[1..]];
        }
    }
}
