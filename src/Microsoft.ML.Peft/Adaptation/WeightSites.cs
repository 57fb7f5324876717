// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>A site with frozen numbers: a projection, a norm, a table, a convolution or a constant.</summary>
public abstract class WeightSite : Site
{
    private protected WeightSite(string name, SiteRole role, int layer, Tensor weight, Tensor? bias)
        : base(name, role, layer)
    {
        Weight = weight;
        Bias = bias;
        BiasName = name + ".bias";
    }

    private Tensor _weight = null!;

    /// <summary>
    /// The frozen weight in logical layout: <c>[out, in]</c>, <c>[width]</c> or <c>[rows, width]</c>. Where it is kept in few bits,
    /// a new tensor at each use, which belongs to the running dispose scope.
    /// </summary>
    public Tensor Weight
    {
        get => Quantised is null ? _weight : Quantised.Dequantise();
        internal set => _weight = value;
    }

    private protected Tensor Dense => _weight;

    /// <summary>The weight as it is kept in 4 or 8 bits; null where it is dense.</summary>
    public QuantisedWeight? Quantised { get; private set; }

    /// <summary>Keeps the weight in few bits from now on.</summary>
    internal void Hold(QuantisedWeight quantised) => (Quantised, _weight) = (quantised, null!);

    /// <summary>The frozen bias <c>[out]</c>, or null.</summary>
    public Tensor? Bias { get; internal set; }

    /// <summary>The weight's name in files, after the site's own.</summary>
    internal string WeightSuffix { get; init; } = ".weight";

    /// <summary>The bias's name in files, inside the base model.</summary>
    internal string BiasName { get; init; }

    /// <summary>Applies the site with the patch that the pass wears here.</summary>
    /// <param name="x">Input of the site.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output of the site.</returns>
    public Tensor Forward(Tensor x, Pass pass) => Forward(x, pass.Patch<WeightPatch>(this), pass);

    /// <summary>Applies the site with a patch, whatever the pass wears: what stacks, mixtures and rows of their own are made of.</summary>
    /// <param name="x">Input of the site.</param>
    /// <param name="patch">A patch of this site, or null for the bare site.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output of the site.</returns>
    public abstract Tensor Forward(Tensor x, WeightPatch? patch, Pass pass);

    /// <summary>A low-rank term's share of this site's output.</summary>
    /// <param name="term">The term; at a convolution <c>A [rank, in · kernel]</c>.</param>
    /// <param name="x">Input of the site.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Addend to the output, in the type of x.</returns>
    public virtual Tensor Apply(LowRankTerm term, Tensor x, Pass pass) => term.Apply(x, pass);

    /// <summary>Weight and bias as the patch makes them; the frozen ones where there is no patch.</summary>
    private protected (Tensor Weight, Tensor? Bias) Effective(WeightPatch? patch, Pass pass) =>
        patch is null ? (Weight, Bias) : patch.Rewrite(Weight, Bias, pass);
}

/// <summary>A linear map <c>y = x Wᵀ + b</c>, from <c>[..., in]</c> to <c>[..., out]</c>.</summary>
public sealed class Projection : WeightSite
{
    /// <summary>Makes a projection over frozen tensors.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">Frozen weight <c>[out, in]</c>.</param>
    /// <param name="bias">Frozen bias <c>[out]</c>, or null.</param>
    /// <param name="storedTransposed">True where files keep the weight as <c>[in, out]</c> (GPT-2's Conv1D).</param>
    public Projection(string name, SiteRole role, int layer, Tensor weight, Tensor? bias, bool storedTransposed = false)
        : base(name, role, layer, weight, bias)
    {
        StoredTransposed = storedTransposed;
        Out = (int)weight.shape[0];
        In = (int)weight.shape[1];
    }

    /// <summary>Width of the output.</summary>
    public int Out { get; }

    /// <summary>Width of the input.</summary>
    public int In { get; }

    /// <summary>True where files keep the weight as <c>[in, out]</c>.</summary>
    public bool StoredTransposed { get; }

    /// <summary>The table whose rows are this map's weight too (tied language heads); null where the weight is its own.</summary>
    public Embedding? TiedTo { get; init; }

    /// <summary>True where kernels may keep a packed copy of the weight: it is dense, in float32, on the CPU, and no vocabulary's table.</summary>
    internal bool Packs => Quantised is null && TiedTo is null && Role != SiteRole.LanguageHead
        && Dense.dtype == ScalarType.Float32 && Dense.device_type == DeviceType.CPU && !Dense.requires_grad;

    private readonly PackedPair _packed = new();

    /// <summary>The weight packed for <c>x Wᵀ</c>.</summary>
    internal PackedWeight PackedForward(Precision precision = Precision.Float32) => _packed.Forward(Dense, precision);

    /// <summary>The weight packed for <c>dy W</c>.</summary>
    internal PackedWeight PackedBackward(Precision precision = Precision.Float32) => _packed.Backward(Dense, precision);

    /// <summary>True where a form of the weight is there already.</summary>
    internal bool Packed(Precision precision) => _packed.Has(precision);

    private readonly RoundedWeight _rounded = new();

    /// <summary>True where a copy of the weight may be kept in bfloat16 for products on a GPU.</summary>
    internal bool Rounds => Quantised is null && TiedTo is null && Role != SiteRole.LanguageHead && Dense.dtype == ScalarType.Float32 && !Dense.requires_grad;

    /// <summary>The weight in bfloat16.</summary>
    internal Tensor Rounded() => _rounded.Of(Dense);

    private readonly Int8Steps _steps = new();

    /// <summary>The weight in 8 bits, for libtorch where the kernels are off.</summary>
    internal Tensor Stepped() => _steps.Of(Dense);

    /// <summary>The transposed weight in 8 bits, for the gradient of the input.</summary>
    internal Tensor SteppedBack() => _steps.TransposedOf(Dense);

    /// <summary>Frees packed and rounded copies; a later use makes them anew.</summary>
    internal void Unpack()
    {
        _packed.Dispose();
        _rounded.Dispose();
        _steps.Dispose();
    }

    /// <summary>Applies the map with a patch.</summary>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="patch">The patch, or null for the bare map.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output <c>[..., out]</c>.</returns>
    public override Tensor Forward(Tensor x, WeightPatch? patch, Pass pass) => Forward(x, patch, Follow.Nothing, pass);

    /// <summary>Applies the map with the patch that the pass wears here, and what follows it at once.</summary>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="follow">What follows.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output <c>[..., out]</c>.</returns>
    internal Tensor Forward(Tensor x, Follow follow, Pass pass) => Forward(x, pass.Patch<WeightPatch>(this), follow, pass);

    private Tensor Forward(Tensor x, WeightPatch? patch, Follow follow, Pass pass) => patch?.Form switch
    {
        null => Product(x, Bias, follow, pass),
        PatchForm.LowRank => LowRank(x, patch, follow, pass),
        PatchForm.Weight => follow.Apply(Rewritten(x, patch, pass), pass),
        _ => follow.Apply(patch.Around(x, input => Product(input, Bias, Follow.Nothing, pass), pass), pass),
    };

    // The frozen product.
    private Tensor Product(Tensor x, Tensor? bias, Follow follow, Pass pass)
    {
        if (FrozenLinear.Fits(this, x, bias)) return FrozenLinear.Apply(x, this, bias, null, follow, pass);
        if (DeviceProduct.Fits(this, x, pass)) return follow.Apply(DeviceProduct.Apply(x, Rounded(), bias), pass);
        if (Int8Steps.Fits(this, x, pass)) return follow.Apply(Int8Steps.Product(this, x, bias), pass);
        return follow.Apply(Quantised is { } few ? few.Product(x, bias) : Products.Linear(x, Weight, bias), pass);
    }

    private Tensor Rewritten(Tensor x, WeightPatch patch, Pass pass)
    {
        (Tensor weight, Tensor? bias) = patch.Rewrite(Weight, Bias, pass);
        return Products.Linear(x, weight, bias);
    }

    private Tensor LowRank(Tensor x, WeightPatch patch, Follow follow, Pass pass)
    {
        Tensor? bias = patch.RewriteBias(Bias, pass);
        SharedProduct.Terms? shared = Quantised is null ? pass.Together?.For(this, patch, x) : null;
        IReadOnlyList<LowRankTerm> terms = shared?.Own ?? patch.Terms(pass);
        if (FrozenLinear.Fits(this, x, bias) && FrozenLinear.Fits(terms, pass))
            return FrozenLinear.Apply(x, this, bias, terms.Count == 1 && shared is not null ? shared.Beside() : new(FrozenLinear.Joined(terms)), follow, pass);
        return follow.Apply(LowRank(x, bias, terms, shared, pass), pass);
    }

    private Tensor LowRank(Tensor x, Tensor? bias, IReadOnlyList<LowRankTerm> terms, SharedProduct.Terms? shared, Pass pass)
    {
        if (Quantised is null && x.dtype == ScalarType.Float32 && terms.All(t => t.A.dtype == ScalarType.Float32)) return Accumulated(x, bias, terms, shared, pass);
        Tensor y = Product(x, bias, Follow.Nothing, pass);
        foreach (LowRankTerm term in terms) y = y + term.Apply(x, pass);
        return y;
    }

    // On flat rows the second factor's product adds to the frozen product's result: no passes for scale and sum.
    private Tensor Accumulated(Tensor x, Tensor? bias, IReadOnlyList<LowRankTerm> terms, SharedProduct.Terms? shared, Pass pass)
    {
        long[] shape = x.shape;
        Tensor y = Product(x.reshape(-1, In), bias, Follow.Nothing, pass);
        for (int i = 0; i < terms.Count; i++)
        {
            LowRankTerm term = terms[i];
            Tensor low = shared?.Low(i) ?? nn.functional.linear(pass.Dropout(x, term.Dropout).reshape(-1, In), term.A);   // [rows, rank]
            y.addmm_(low, term.B.t(), 1, (float)term.Scale);
            if (term.BiasB is not null) y = y + term.BiasB * term.Scale;
        }
        shape[^1] = Out;
        return y.view(shape);
    }
}

/// <summary>A layer norm over the last axis, or its root-mean-square form, which neither subtracts the mean nor shifts.</summary>
public class Norm : WeightSite
{
    /// <summary>Makes a norm over frozen tensors.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">Scale <c>[width]</c>.</param>
    /// <param name="bias">Shift <c>[width]</c>, or null.</param>
    /// <param name="epsilon">Added to the variance.</param>
    /// <param name="rootMeanSquare">True for <c>w · x / √(mean(x²) + ε)</c> (Zhang and Sennrich 2019, arXiv 1910.07467).</param>
    public Norm(string name, SiteRole role, int layer, Tensor weight, Tensor? bias, double epsilon, bool rootMeanSquare = false)
        : base(name, role, layer, weight, bias) => (Epsilon, RootMeanSquare) = (epsilon, rootMeanSquare);

    /// <summary>Added to the variance, or to the mean square.</summary>
    public double Epsilon { get; }

    /// <summary>True where the norm divides by the root of the mean square.</summary>
    public bool RootMeanSquare { get; }

    /// <summary>True where each channel is normalised over the tokens of its row, <c>[batch, tokens, width]</c>, and not each token over its channels.</summary>
    public bool OverTime { get; init; }

    /// <summary>Normalises with a patch.</summary>
    /// <param name="x">Input <c>[..., width]</c>.</param>
    /// <param name="patch">The patch, or null for the bare norm.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output of the same shape.</returns>
    public override Tensor Forward(Tensor x, WeightPatch? patch, Pass pass)
    {
        if (patch is { Form: PatchForm.Around }) return patch.Around(x, input => Normalise(input, null, pass), pass);
        return Normalise(x, patch, pass);
    }

    /// <summary>Normalises a sum with the patch that the pass wears here.</summary>
    /// <param name="stream">One addend <c>[..., width]</c>.</param>
    /// <param name="output">The other, of the same shape.</param>
    /// <param name="pass">The running forward pass.</param>
    internal Tensor ForwardSum(Tensor stream, Tensor output, Pass pass)
    {
        if (OverTime || !NativeKernels.On || pass.Patches[this] is not null || !FusedNorm.Fits(stream, output, Weight, Bias)) return Forward(stream + output, pass);
        return FusedNorm.Apply(stream, output, Weight, Bias, Epsilon, RootMeanSquare);
    }

    private Tensor Normalise(Tensor x, WeightPatch? patch, Pass pass)
    {
        (Tensor weight, Tensor? bias) = Effective(patch, pass);
        if (OverTime) return nn.functional.layer_norm(x.transpose(1, 2), [x.shape[1]], null, null, Epsilon).transpose(1, 2) * weight + (bias ?? zeros_like(weight));
        if (FusedNorm.Fits(x, null, weight, bias)) return FusedNorm.Apply(x, null, weight, bias, Epsilon, RootMeanSquare);
        if (!RootMeanSquare) return nn.functional.layer_norm(x, [weight.shape[0]], weight, bias, Epsilon);
        Tensor wide = x.to_type(ScalarType.Float32);
        Tensor y = (wide * (wide.square().mean([-1], keepdim: true) + Epsilon).rsqrt()).to_type(x.dtype) * weight;
        return bias is null ? y : y + bias;
    }
}

/// <summary>A frozen tensor that is used as it is, under a name of its own in files: class tokens, position tables of images.</summary>
public sealed class Constant : WeightSite
{
    /// <summary>Makes a constant over a frozen tensor.</summary>
    /// <param name="name">Name of the tensor in files.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">The tensor, of any shape.</param>
    public Constant(string name, SiteRole role, int layer, Tensor weight) : base(name, role, layer, weight, null) => WeightSuffix = "";

    /// <summary>The tensor with the patch that the pass wears here.</summary>
    /// <param name="pass">The running forward pass.</param>
    public Tensor Value(Pass pass) => Effective(pass.Patch<WeightPatch>(this), pass).Weight;

    /// <summary>Adds the tensor to x.</summary>
    /// <param name="x">Any tensor that it broadcasts to.</param>
    /// <param name="patch">The patch, or null.</param>
    /// <param name="pass">The running forward pass.</param>
    public override Tensor Forward(Tensor x, WeightPatch? patch, Pass pass) => patch is { Form: PatchForm.Around }
        ? patch.Around(x, input => input + Weight, pass)
        : x + Effective(patch, pass).Weight;
}

/// <summary>A table of rows looked up by id.</summary>
public sealed class Embedding : WeightSite
{
    /// <summary>Makes a table over a frozen tensor.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">Table <c>[rows, width]</c>.</param>
    public Embedding(string name, SiteRole role, int layer, Tensor weight)
        : base(name, role, layer, weight, null)
    {
    }

    /// <summary>Looks rows up with a patch.</summary>
    /// <param name="x">Row numbers, int64, any shape <c>[...]</c>.</param>
    /// <param name="patch">The patch, or null for the bare table.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Rows <c>[..., width]</c>.</returns>
    public override Tensor Forward(Tensor x, WeightPatch? patch, Pass pass)
    {
        if (patch is { Form: PatchForm.Around }) return patch.Around(x, input => LookUp(input, Weight), pass);
        return LookUp(x, Effective(patch, pass).Weight);
    }

    /// <summary>The whole table with the patch that the pass wears here, <c>[rows, width]</c>: for decoders that share it.</summary>
    /// <param name="pass">The running forward pass.</param>
    public Tensor Table(Pass pass) => Effective(pass.Patch<WeightPatch>(this), pass).Weight;

    private static Tensor LookUp(Tensor ids, Tensor table)
    {
        long[] shape = [.. ids.shape, table.shape[1]];
        return table.index_select(0, ids.reshape(-1)).reshape(shape);
    }
}
