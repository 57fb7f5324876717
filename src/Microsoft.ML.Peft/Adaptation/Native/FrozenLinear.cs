// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static Microsoft.ML.Peft.Adaptation.NativeKernels;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A frozen projection with what stands beside and after it, in one kernel: <c>dropout(act(x Wᵀ + s (dropout(x) Aᵀ) Bᵀ + b))</c>.
/// The graph keeps the input where a factor is trained, and the activation's argument; masks are made again.
/// </summary>
internal static unsafe class FrozenLinear
{
    /// <summary>A low-rank term whose first product may be there already: columns of <paramref name="Low"/> from <paramref name="At"/> on.</summary>
    internal readonly record struct Beside(LowRankTerm Term, Tensor? Low = null, long At = 0);

    /// <summary>True where the kernel can take the place of libtorch's product.</summary>
    public static bool Fits(Projection site, Tensor x, Tensor? bias) => On && site.Packs && x.ndim >= 1
        && NativeKernels.Fits(x) && x.numel() / site.In * site.Out <= int.MaxValue / sizeof(float) && (bias is null || NativeKernels.Fits(bias));

    /// <summary>True where the kernel takes these terms beside the product as well: one, or several of the same input.</summary>
    public static bool Fits(IReadOnlyList<LowRankTerm> terms, Pass pass) => terms.Count > 0
        && terms.All(t => t.BiasB is null && NativeKernels.Fits(t.A) && NativeKernels.Fits(t.B) && (terms.Count == 1 ? pass.CanKey(t.Dropout) : !pass.Training || t.Dropout <= 0));

    /// <summary>Several terms of one input as one.</summary>
    public static LowRankTerm Joined(IReadOnlyList<LowRankTerm> terms) => terms.Count == 1
        ? terms[0]
        : new(cat([.. terms.Select(t => t.A)]), cat([.. terms.Select(t => t.B * t.Scale)], 1), 1);

    /// <summary>The projection's output <c>[..., out]</c>.</summary>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="site">The projection.</param>
    /// <param name="bias">Its bias, perhaps a trained one; or null.</param>
    /// <param name="beside">A low-rank term that fits, or null.</param>
    /// <param name="follow">What follows.</param>
    /// <param name="pass">The running forward pass.</param>
    public static Tensor Apply(Tensor x, Projection site, Tensor? bias, Beside? beside, Follow follow, Pass pass)
    {
        LowRankTerm? term = beside?.Term;
        bool graph = is_grad_enabled();
        bool known = follow.Activation is null || follow.Kind != ActivationKind.None, keyed = known && pass.CanKey(follow.Dropout);
        var call = new Call
        {
            Site = site,
            Precision = Usable(pass.Precision, site),
            Scale = term?.Scale ?? 0,
            LowDropout = pass.Mask(term?.Dropout ?? 0),
            Kind = known ? follow.Kind : ActivationKind.None,
            Dropout = keyed ? pass.Mask(follow.Dropout) : default,
            Input = graph && x.requires_grad,
            A = graph && term is { A.requires_grad: true },
            B = graph && term is { B.requires_grad: true },
            Bias = graph && bias is { requires_grad: true },
        };
        if (call.Precision == Precision.Int8Frozen) call.Rows = pass.Int8Rows(x);
        x = Contiguous(x);
        bias = bias is null ? null : Contiguous(bias);
        (Tensor A, Tensor B)? factors = term is { } t ? (Contiguous(t.A), Contiguous(t.B)) : null;
        Tensor y = call.Input || call.A || call.B || call.Bias
            ? Function.apply(Arguments(call, x, bias, factors))
            : Forward(call, x, bias, factors, beside, keep: false).Y;
        if (!known) y = follow.Activation!(y);
        call.Rows = null;
        return keyed ? y : pass.Dropout(y, follow.Dropout);
    }

    /// <summary>The precision in which this processor makes a site's product.</summary>
    internal static Precision Usable(Precision asked, Projection site) => asked switch
    {
        Precision.BFloat16 => Calls.HasBFloat16 ? asked : Precision.Float32,
        Precision.Int8Frozen => Int8Steps.Fits(site) ? asked : Precision.Float32,
        _ => Precision.Float32,
    };

    /// <summary>Rows in int8 as the kernel takes them, int32 <c>[rows, words]</c>, for several products of one input.</summary>
    internal static Tensor Int8Rows(Tensor x)
    {
        long width = x.shape[^1], rows = x.numel() / width;
        Tensor made = empty([rows, Calls.Int8Words(width)], dtype: ScalarType.Int32), together = Contiguous(x);
        Check(Calls.Quantise(Pointer(together), rows, width, width, (int*)Pointer(made), get_num_threads()));
        GC.KeepAlive(together);
        return made;
    }

    private static object[] Arguments(Call call, Tensor x, Tensor? bias, (Tensor A, Tensor B)? factors)
    {
        call.HasBias = bias is not null;
        List<object> arguments = [call, x];
        if (factors is { } f) arguments.AddRange([f.A, f.B]);
        if (bias is not null) arguments.Add(bias);
        return [.. arguments];
    }

    private sealed class Call
    {
        public required Projection Site { get; init; }
        public Precision Precision { get; init; }
        public double Scale { get; init; }
        public NativeDropout LowDropout { get; init; }
        public NativeDropout Dropout { get; init; }
        public ActivationKind Kind { get; init; }
        public bool Input { get; init; }
        public bool A { get; init; }
        public bool B { get; init; }
        public bool Bias { get; init; }
        public bool HasBias { get; set; }

        /// <summary>The input in int8, where other projections read it too; null for the product to make it.</summary>
        public Tensor? Rows { get; set; }
    }

    private readonly record struct Made(Tensor Y, Tensor? Low, Tensor? Before);

    private static Made Forward(Call call, Tensor x, Tensor? bias, (Tensor A, Tensor B)? factors, Beside? beside, bool keep)
    {
        Projection site = call.Site;
        long rows = x.numel() / site.In;
        long[] shape = x.shape;
        shape[^1] = site.Out;
        Tensor y = empty(shape, dtype: ScalarType.Float32);
        Tensor? before = keep && call.Kind != ActivationKind.None ? empty([rows, site.Out], dtype: ScalarType.Float32) : null;
        Tensor? low = factors is null ? null : beside?.Low ?? First(call, x, factors.Value.A, rows);
        var p = new NativeProduct
        {
            Rows = rows,
            Out = site.Out,
            In = site.In,
            X = Pointer(x),
            XRow = site.In,
            XIn = 1,
            RowsInt8 = call.Rows is { } prepared ? (int*)Pointer(prepared) : null,
            Bias = bias is null ? null : Pointer(bias),
            Activation = (int)call.Kind,
            Before = before is null ? null : Pointer(before),
            Y = Pointer(y),
            YRow = site.Out,
            Dropout = call.Dropout,
        };
        if (factors is { } f) p.Beside(Pointer(low!) + (beside?.At ?? 0), low!.shape[1], f.B.shape[1], Pointer(f.B), turned: false, call.Scale);
        Run(p, site.PackedForward(call.Precision));
        GC.KeepAlive(x);
        GC.KeepAlive(call.Rows);
        GC.KeepAlive(bias);
        GC.KeepAlive(factors?.A);
        GC.KeepAlive(factors?.B);
        return new Made(y, low, before);
    }

    // dropout(x) Aᵀ, [rows, rank]
    private static Tensor First(Call call, Tensor x, Tensor a, long rows)
    {
        (long rank, long width) = (a.shape[0], a.shape[1]);
        Tensor low = empty([rows, rank], dtype: ScalarType.Float32);
        Run(new NativeLowRank { Rows = rows, In = width, Rank = rank, X = Pointer(x), XRow = width, A = Pointer(a), ARank = width, AIn = 1, Low = Pointer(low), LowRow = rank, Scale = 1, Dropout = call.LowDropout });
        return low;
    }

    /// <summary>The product of an input with first factors <c>[ranks, in]</c>, <c>[rows, ranks]</c>; no graph.</summary>
    public static Tensor FirstFactors(Tensor x, Tensor a)
    {
        x = Contiguous(x);
        return First(new Call { Site = null! }, x, Contiguous(a), x.numel() / a.shape[1]);
    }

    internal static void Run(NativeProduct p, PackedWeight? packed = null)
    {
        p.Threads = get_num_threads();
        bool held = false;
        try
        {
            packed?.DangerousAddRef(ref held);
            p.Packed = packed?.DangerousGetHandle() ?? 0;
            Check(Calls.Product(&p));
        }
        finally
        {
            if (held) packed!.DangerousRelease();
        }
    }

    private sealed class Function : autograd.SingleTensorFunction<Function>
    {
        public override string Name => nameof(FrozenLinear);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var (call, x) = ((Call)vars[0], (Tensor)vars[1]);
            bool term = vars.Length - (call.HasBias ? 1 : 0) == 4;
            (Tensor A, Tensor B)? factors = term ? ((Tensor)vars[2], (Tensor)vars[3]) : null;
            Made made = Forward(call, x, call.HasBias ? (Tensor)vars[^1] : null, factors, null, keep: true);
            List<Tensor> saved = [];
            if (made.Before is { } before) saved.Add(before);
            if (factors is { } f) saved.AddRange([f.A, f.B, made.Low!, x]);
            ctx.save_for_backward(saved);
            ctx.save_data("call", call);
            return made.Y;
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            using var scope = NewDisposeScope();
            var call = (Call)ctx.get_data("call")!;
            List<Tensor> saved = ctx.get_saved_variables();
            Tensor? before = call.Kind != ActivationKind.None ? saved[0] : null;
            if (before is not null) saved.RemoveAt(0);
            Tensor gradient = Gradient(call, Contiguous(grad_output), before);           // of the sum before the activation
            List<Tensor> results = [null!];
            if (saved.Count > 0) results.AddRange(WithTerm(call, gradient, saved[0], saved[1], saved[2], saved[3]));
            else results.Add(call.Input ? Below(call, gradient, null, null)! : null!);
            if (call.HasBias) results.Add(call.Bias ? gradient.view(-1, call.Site.Out).sum(0L) : null!);
            foreach (Tensor result in results)
                if (result is not null) scope.MoveToOuter(result);
            return results;
        }
    }

    private static Tensor Gradient(Call call, Tensor given, Tensor? before)
    {
        NativeDropout mask = call.Dropout;
        if (before is null && mask.Threshold == 0) return given;
        Tensor gradient = empty(given.shape, dtype: ScalarType.Float32);
        Check(Calls.ActivationBackward(before is null ? null : Pointer(before), Pointer(given), Pointer(gradient), given.numel(), (int)call.Kind, &mask, get_num_threads()));
        return gradient;
    }

    private static List<Tensor> WithTerm(Call call, Tensor gradient, Tensor a, Tensor b, Tensor low, Tensor x)
    {
        (long rank, long inWidth, long outWidth) = (a.shape[0], a.shape[1], b.shape[0]);
        long rows = x.numel() / inWidth;
        Tensor back = empty([rows, rank], dtype: ScalarType.Float32);                    // s dy B
        var l = new NativeLowRank { Rows = rows, In = outWidth, Rank = rank, X = Pointer(gradient), XRow = outWidth, A = Pointer(b), ARank = 1, AIn = rank, Low = Pointer(back), LowRow = rank, Scale = (float)call.Scale };
        Run(l);
        Tensor? below = call.Input ? Below(call, gradient, back, a) : null;
        Tensor? first = call.A ? empty([rank, inWidth], dtype: ScalarType.Float32) : null, second = call.B ? empty([outWidth, rank], dtype: ScalarType.Float32) : null;
        if (second is not null) Run(l with { A = Pointer(second), Low = Pointer(low) }, gradient: true);
        if (first is not null)
            Run(l with { In = inWidth, X = Pointer(x), XRow = inWidth, A = Pointer(first), ARank = inWidth, AIn = 1, Scale = 1, Dropout = call.LowDropout }, gradient: true);
        return [below!, first!, second!];
    }

    internal static void Run(NativeLowRank l, bool gradient = false)
    {
        l.Threads = get_num_threads();
        Check(gradient ? Calls.LowRankGradient(&l) : Calls.LowRankProduct(&l));
    }

    // dy W, and what the term's first factor gives back, through its mask.
    private static Tensor Below(Call call, Tensor gradient, Tensor? back, Tensor? a)
    {
        Projection site = call.Site;
        long[] shape = gradient.shape;
        shape[^1] = site.In;
        Tensor below = empty(shape, dtype: ScalarType.Float32);
        var p = new NativeProduct { Rows = gradient.numel() / site.Out, Out = site.In, In = site.Out, X = Pointer(gradient), XRow = site.Out, XIn = 1, Y = Pointer(below), YRow = site.In };
        if (back is not null)
        {
            p.Beside(Pointer(back), back.shape[1], back.shape[1], Pointer(a!), turned: true, 1);
            p.LowDropout = call.LowDropout;
        }
        Run(p, site.PackedBackward(call.Precision));
        return below;
    }
}
