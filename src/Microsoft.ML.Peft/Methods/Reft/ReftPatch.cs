// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>One edit of hidden states.</summary>
internal sealed class ReftUnit
{
    private readonly ReftOptions _options;
    private readonly NamedParameter _weight, _bias, _projection;
    private readonly NamedParameter? _base;
    private readonly Func<Tensor, Tensor> _activation;

    public ReftUnit(ReftOptions options, PeftAdaptation adaptation, string path, int layer, long seed)
    {
        _options = options;
        _activation = options.NonLinearity is null ? x => x : Activations.Get(options.NonLinearity);
        Device device = adaptation.Backbone.Device;
        long d = adaptation.Backbone.WidthAt(layer), r = options.Rank;
        double bound = 1 / Math.Sqrt(d);
        NamedParameter Add(string name, Func<Draws, Tensor> draw, bool trainable = true) =>
            adaptation.Add($"{path}.{name}", draw(new Draws(seed, $"{path}.{name}")).to(device), trainable);
        _weight = Add("learned_source.weight", draws => draws.Uniform(bound, r, d));
        _bias = Add("learned_source.bias", draws => draws.Uniform(bound, r));
        if (!options.Orthogonal)
        {
            _projection = Add("projection.weight", draws => draws.Uniform(bound, r, d));
            return;
        }
        // A turn of a fixed orthonormal basis: −1 on the diagonal is no turn at all. Only the part left of it is read, and the
        // signs of the diagonal: decay would turn R for no reason.
        _projection = Add("projection.parametrizations.weight.original", _ => cat([(ones([r]) * -1).diag(), zeros([r, d - r])], 1));
        _projection.Decay = false;
        _base = Add("projection.parametrizations.weight.0.base", draws => Orthonormal.Basis(draws, (int)d), trainable: false);
    }

    /// <summary>R, <c>[r, hidden]</c>.</summary>
    public Tensor Projection() => _base is null ? _projection.Value : Orthonormal.Turned(_base.Value, _projection.Value);

    /// <summary>The edited states.</summary>
    /// <param name="h">States <c>[batch, positions, hidden]</c> in float32.</param>
    /// <param name="pass">The running forward pass.</param>
    public Tensor Edit(Tensor h, Pass pass)
    {
        Tensor projection = Projection();
        Tensor change = _activation(nn.functional.linear(h, _weight.Value, _bias.Value));
        if (_options.SubtractProjection) change = change - nn.functional.linear(h, projection);
        return pass.Dropout(h + change.matmul(projection), _options.Dropout);
    }
}

/// <summary>Orthonormal rows by Householder reflections of a fixed basis.</summary>
internal static class Orthonormal
{
    /// <summary>
    /// <c>(base · H_1 … H_r E)ᵀ</c> with the signs of the diagonal; <c>H_j = I − τ_j v_j v_jᵀ</c>, <c>v_j = e_j + A_j</c>,
    /// <c>τ_j = 2 / (1 + |A_j|²)</c>, A the part of originalᵀ below the diagonal.
    /// </summary>
    /// <param name="basis">Orthonormal <c>[d, d]</c>.</param>
    /// <param name="original">The trained matrix <c>[r, d]</c>.</param>
    /// <returns>R <c>[r, d]</c>.</returns>
    public static Tensor Turned(Tensor basis, Tensor original)
    {
        long r = original.shape[0], d = original.shape[1];
        Tensor below = original.triu(1);                                        // rows are the columns A_j
        Tensor unit = cat([ones([r], device: original.device).diag(), zeros([r, d - r], device: original.device)], 1);
        Tensor v = unit + below, tau = 2 / (1 + below.square().sum(1, keepdim: true));
        Tensor q = unit;                                                        // Qᵀ: rows are columns of Q
        for (long j = r - 1; j >= 0; j--)
        {
            Tensor vj = v.narrow(0, j, 1);                                      // [1, d]
            q = q - q.matmul(vj.t()).matmul(vj) * tau.narrow(0, j, 1);
        }
        Tensor signs = original.narrow(1, 0, r).diag().detach().sign();
        return (q * signs.unsqueeze(1)).matmul(basis.t());
    }

    /// <summary>A random orthonormal matrix: reflections of normal vectors, one a column (Stewart 1980).</summary>
    /// <param name="draws">Random numbers.</param>
    /// <param name="size">Rows and columns.</param>
    public static Tensor Basis(Draws draws, int size)
    {
        Tensor q = ones([size]).diag();
        for (int j = 0; j < size; j++)
        {
            using var scope = NewDisposeScope();
            Tensor x = draws.Normal(1, size - j);
            float first = x[0].item<float>(), length = x.norm().item<float>();
            float shift = first >= 0 ? length : -length;
            Tensor v = cat([x.narrow(0, 0, 1) + shift, x.narrow(0, 1, size - j - 1)], 0).unsqueeze(1);
            Tensor rest = q.narrow(1, j, size - j);                             // q · H, H on the last columns
            rest.sub_(rest.matmul(v).matmul(v.t()) * (2 / v.square().sum()));
        }
        return q;
    }
}

/// <summary>ReFT around a layer: its output is edited at some tokens of each row.</summary>
internal sealed class ReftPatch(ReftOptions options, ReftUnit first, ReftUnit last) : BlockPatch
{
    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor h = next(x), mask = pass.Layout.Mask.ne(0).to_type(ScalarType.Int64);
        long tokens = h.shape[1];
        Tensor start = mask.argmax(1), end = tokens - 1 - mask.flip(1).argmax(1);                    // first and last real token
        Tensor edited = h;
        // Both read what the layer gave; what the last tokens get is written over. A unit without positions has a gradient of 0.
        edited = Write(edited, h, start.unsqueeze(1) + Count(options.PrefixPositions, h), first, pass);
        edited = Write(edited, h, end.unsqueeze(1) - (options.SuffixPositions - 1) + Count(options.SuffixPositions, h), last, pass);
        return edited;
    }

    private static Tensor Count(long positions, Tensor like) => arange(positions, ScalarType.Int64, like.device).unsqueeze(0);

    private static Tensor Write(Tensor into, Tensor h, Tensor positions, ReftUnit unit, Pass pass)
    {
        // A row shorter than the number of positions has some of them in its padding, or twice at its end.
        Tensor index = positions.clamp(0, h.shape[1] - 1).unsqueeze(2).expand(h.shape[0], positions.shape[1], h.shape[2]);
        Tensor change = unit.Edit(h.gather(1, index).to_type(ScalarType.Float32), pass).to_type(h.dtype);
        return into.scatter(1, index, change);
    }
}
