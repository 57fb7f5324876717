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
        return Function.apply(entry, body);
    }

    private sealed class Function : autograd.SingleTensorFunction<Function>
    {
        public override string Name => nameof(Checkpoint);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var input = (Tensor)vars[0];
            var body = (Func<Tensor, Tensor>)vars[1];
            ctx.save_data("body", body);
            ctx.save_for_backward([input]);
            using var off = no_grad();
            return body(input);
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            var body = (Func<Tensor, Tensor>)ctx.get_data("body")!;
            Tensor input = ctx.get_saved_variables()[0]!;
            using var on = enable_grad();
            using Tensor leaf = input.detach().requires_grad_();
            Tensor output = body(leaf);
            autograd.backward([output], [grad_output]);
            return [leaf.grad!, null!];
        }
    }
}
