// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static Microsoft.ML.Peft.Adaptation.NativeKernels;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Attention in one kernel: no scores are kept, padded keys are no work, dropout masks are made where they are used. The graph keeps
/// queries, keys, values and two numbers a query (after Dao et al. 2022, arXiv 2205.14135).
/// </summary>
internal static unsafe class FusedAttention
{
    /// <summary>True where the kernel can take libtorch's place.</summary>
    public static bool Fits(AttentionInput a, double dropout, Pass pass) => On && NativeKernels.Fits(a.Query) && NativeKernels.Fits(a.Key) && NativeKernels.Fits(a.Value)
        && (a.Bias is null || (NativeKernels.Fits(a.Bias) && !(a.Bias.requires_grad && is_grad_enabled()) && a.Bias.ndim <= 4))
        && a.Value.shape[^1] == a.Query.shape[^1] && pass.CanKey(dropout);

    /// <summary>Contexts <c>[batch, heads, tokens, head width]</c>, as a view of <c>[batch, tokens, heads, head width]</c>.</summary>
    /// <param name="a">Queries, keys, values and what is added to the scores.</param>
    /// <param name="scale">Factor of the products.</param>
    /// <param name="dropout">Dropout of the shares while training.</param>
    /// <param name="pass">The running forward pass.</param>
    public static Tensor Apply(AttentionInput a, double scale, double dropout, Pass pass)
    {
        int[]? lengths = pass.Layout?.LengthsOf(a.Bias);
        if (lengths is not null && (lengths.Length != a.Query.shape[0] || a.Key.shape[2] != pass.Layout!.Tokens)) lengths = null;
        Tensor? bias = lengths is null && a.Bias is { } given ? Contiguous(given) : null;
        var call = new Call(scale, pass.Mask(dropout), lengths, bias, a.Query.shape[1], a.Key.shape[1]);
        Tensor q = Together(a.Query), k = Together(a.Key), v = Together(a.Value);
        bool graph = is_grad_enabled() && (q.requires_grad || k.requires_grad || v.requires_grad);
        Tensor context = graph ? Function.apply(call, q, k, v) : Forward(call, q, k, v, null);
        return context.transpose(1, 2);
    }

    // [batch, tokens, heads, width]: as projections give it, without a copy.
    private static Tensor Together(Tensor heads) => Contiguous(heads.transpose(1, 2));

    private sealed record Call(double Scale, NativeDropout Dropout, int[]? Lengths, Tensor? Bias, long Heads, long KeyHeads)
    {
        public NativeAttention Attention(Tensor q, Tensor k, Tensor v)
        {
            var a = new NativeAttention
            {
                Batch = q.shape[0],
                Heads = Heads,
                KeyHeads = KeyHeads,
                Queries = q.shape[1],
                Keys = k.shape[1],
                Width = q.shape[3],
                Q = Places(q),
                K = Places(k),
                V = Places(v),
                Scale = (float)Scale,
                Dropout = Dropout,
                Threads = get_num_threads(),
            };
            if (Bias is null) return a;
            a.Bias = Pointer(Bias);
            (a.BiasBatch, a.BiasHead, a.BiasQuery, a.BiasKey) = Strides(Bias.shape);
            return a;
        }

        // Axes of one entry are read again and again.
        private static (long Batch, long Head, long Query, long Key) Strides(long[] shape)
        {
            Span<long> strides = [0, 0, 0, 0];
            long step = 1;
            for (int i = 1; i <= shape.Length; i++)
            {
                strides[^i] = shape[^i] == 1 ? 0 : step;
                step *= shape[^i];
            }
            return (strides[0], strides[1], strides[2], strides[3]);
        }

        public void Run(NativeAttention a, delegate* unmanaged<NativeAttention*, int> kernel)
        {
            fixed (int* lengths = Lengths)
            {
                a.Lengths = lengths;
                Check(kernel(&a));
            }
            GC.KeepAlive(Bias);
        }
    }

    private static NativeHeads Places(Tensor x)
    {
        long[] shape = x.shape;
        return new NativeHeads { Data = Pointer(x), Batch = shape[1] * shape[2] * shape[3], Head = shape[3], Token = shape[2] * shape[3] };
    }

    private static Tensor Forward(Call call, Tensor q, Tensor k, Tensor v, Tensor? sums)
    {
        Tensor context = empty(q.shape, dtype: ScalarType.Float32);
        NativeAttention a = call.Attention(q, k, v);
        a.Out = Places(context);
        a.Sums = sums is null ? null : Pointer(sums);
        call.Run(a, Calls.AttentionForward);
        GC.KeepAlive(q);
        GC.KeepAlive(k);
        GC.KeepAlive(v);
        return context;
    }

    private sealed class Function : autograd.SingleTensorFunction<Function>
    {
        public override string Name => nameof(FusedAttention);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var (call, q, k, v) = ((Call)vars[0], (Tensor)vars[1], (Tensor)vars[2], (Tensor)vars[3]);
            Tensor sums = empty([q.shape[0], call.Heads, q.shape[1], 2], dtype: ScalarType.Float32);
            Tensor context = Forward(call, q, k, v, sums);
            ctx.save_data("call", call);
            List<Tensor> saved = [q, k, v, sums];
            if (call.Bias is not null) saved.Add(call.Bias);
            ctx.save_for_backward(saved);
            return context;
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            using var scope = NewDisposeScope();
            List<Tensor> saved = ctx.get_saved_variables();
            var call = (Call)ctx.get_data("call")!;
            // The bias as the graph holds it: the caller's may be gone.
            if (call.Bias is not null) call = call with { Bias = saved[4] };
            Tensor q = saved[0], k = saved[1], v = saved[2], given = Contiguous(grad_output);
            Tensor dq = empty(q.shape, dtype: ScalarType.Float32), dk = empty(k.shape, dtype: ScalarType.Float32), dv = empty(v.shape, dtype: ScalarType.Float32);
            NativeAttention a = call.Attention(q, k, v);
            a.Sums = Pointer(saved[3]);
            (a.DOut, a.DQ, a.DK, a.DV) = (Places(given), Places(dq), Places(dk), Places(dv));
            call.Run(a, Calls.AttentionBackward);
            scope.MoveToOuter(dq, dk, dv);
            return [null!, dq, dk, dv];
        }
    }
}
