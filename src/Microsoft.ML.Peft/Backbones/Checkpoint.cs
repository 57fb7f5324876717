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
        return Function.apply(entry, new Segment(body, pass, pass.Layout));
    }

    // What is shared within a pass is made anew inside the segment: in its first run it would have no graph.
    private sealed record Segment(Func<Tensor, Tensor> Body, Pass Pass, Layout Layout)
    {
        public Tensor Run(Tensor input)
        {
            Pass.Layout = Layout;
            return Pass.Isolated(() => Body(input));
        }

        public Tensor RunAgain(Tensor input)
        {
            Layout last = Pass.Layout;
            try
            {
                return Run(input);
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
            ctx.save_for_backward([input]);
            using var off = no_grad();
            return segment.Run(input);
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            var segment = (Segment)ctx.get_data("segment")!;
            using var on = enable_grad();
            // One segment's activations live at a time.
            using var scope = NewDisposeScope();
            Tensor leaf = ctx.get_saved_variables()[0]!.detach().requires_grad_();
            Tensor output = segment.RunAgain(leaf);
            autograd.backward([output], [grad_output]);
            return [leaf.grad?.MoveToOuterDisposeScope()!, null!];
        }
    }
}
