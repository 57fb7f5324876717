// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>One bottleneck at a residual connection.</summary>
internal sealed class BottleneckPatch : ResidualPatch, IComposableResidual
{
    private const double NormEpsilon = 1e-5;

    private readonly BottleneckOptions _options;
    private readonly Func<Tensor, Tensor> _activation, _down, _up;
    private readonly (NamedParameter Weight, NamedParameter Bias)? _normBefore, _normAfter, _gate;
    private readonly NamedParameter? _scaling;

    /// <param name="options">The options.</param>
    /// <param name="path">Path of the bottleneck.</param>
    /// <param name="hidden">Width d of the states.</param>
    /// <param name="width">Width m of the bottleneck.</param>
    /// <param name="phm">Hypercomplex projections, or null for plain ones.</param>
    /// <param name="add">Owns a parameter: name, initial values.</param>
    public BottleneckPatch(BottleneckOptions options, string path, int hidden, int width, PhmLayers? phm, Func<string, Func<Draws, Tensor>, NamedParameter> add)
    {
        _options = options;
        _activation = Activations.Get(options.Activation);
        (NamedParameter, NamedParameter) Norm(string name) =>
            (add($"{path}.{name}.weight", _ => ones([hidden])), add($"{path}.{name}.bias", _ => zeros([hidden])));
        Func<Tensor, Tensor> Plain(string name, int outputs, Func<Draws, Tensor> draw)
        {
            NamedParameter weight = add($"{path}.{name}.weight", draw), bias = add($"{path}.{name}.bias", _ => zeros([outputs]));
            return x => nn.functional.linear(x, weight.Value, bias.Value);
        }
        bool mam = options.Init == "mam_adapter";

        if (options.OwnNormBefore) _normBefore = Norm("adapter_norm_before");
        // The norm stands first in AdapterHub's list of parts, so the projection's number moves up.
        string down = options.OwnNormBefore ? "adapter_down.1" : "adapter_down.0";
        _down = phm is not null ? phm.Make($"{path}.{down}", "down", hidden, width)
            : Plain(down, width, draws => mam ? draws.Kaiming(width, hidden) : Matrix(draws, width, hidden));
        _up = phm is not null ? phm.Make($"{path}.adapter_up", "up", width, hidden)
            : Plain("adapter_up", hidden, draws => mam ? zeros([hidden, width]) : Matrix(draws, hidden, width));
        if (options.OwnNormAfter) _normAfter = Norm("adapter_norm_after");
        if (options.Gate) _gate = (add($"{path}.gate.weight", draws => draws.Normal(0.02, 1, hidden)), add($"{path}.gate.bias", _ => zeros([1])));
        if (options.Constant is null) _scaling = add($"{path}.scaling", _ => ones([options.Scaling == "channel" ? hidden : 1]));
    }

    private Tensor Matrix(Draws draws, long rows, long columns) => _options.Init == "houlsby"
        ? draws.TruncatedNormal(0.01, 0.02, rows, columns)
        : draws.Normal(0.02, rows, columns);

    public override Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass)
    {
        (Tensor hidden, Tensor residual) = Before(stream, output, next);
        return After(Inside(hidden, residual, pass).Output, stream, output, next);
    }

    public (Tensor Hidden, Tensor Residual) Before(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next)
    {
        if (_options.Parallel) return (stream, stream);
        Tensor h = _options.OriginalNormBefore ? next(stream, output) : output;
        return (h, _options.Residual switch
        {
            BottleneckResidual.AfterNorm => h,
            BottleneckResidual.PostAdd when _options.OriginalNormBefore => output + stream,
            _ => output,
        });
    }

    public (Tensor Output, Tensor Contribution) Inside(Tensor hidden, Tensor residual, Pass pass)
    {
        Tensor b = Inner(hidden, pass);
        return (_options.Parallel ? NormAfter(b) : _options.ResidualInsideOwnNorm ? NormAfter(b + residual) : NormAfter(b) + residual, b);
    }

    // What runs beside the part has no residual of its own: the part's output joins it here.
    public Tensor After(Tensor made, Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next)
    {
        Tensor u = _options.Parallel ? output + made : made;
        return _options.OriginalNormAfter ? next(stream, u) : u;
    }

    // s · (W_up φ(W_down h + b_down) + b_up), gated: [batch, tokens, hidden]
    private Tensor Inner(Tensor h, Pass pass)
    {
        Tensor x = h.to_type(ScalarType.Float32);
        Tensor low = _normBefore is { } norm ? nn.functional.layer_norm(x, [x.shape[^1]], norm.Weight.Value, norm.Bias.Value, NormEpsilon) : x;
        low = _activation(_down(low));                                                               // [batch, tokens, m]
        Tensor y = DropRows(pass.Dropout(_up(low), _options.Dropout), pass);
        if (_scaling is not null) y = y * _scaling.Value;
        else if (_options.Constant is { } s and not 1) y = y * s;
        if (_gate is { } gate) y = y * nn.functional.linear(x, gate.Weight.Value, gate.Bias.Value).sigmoid().mean([1], keepdim: true);
        return y.to_type(h.dtype);
    }

    // Stochastic depth: a row keeps the whole bottleneck or none of it.
    private Tensor DropRows(Tensor y, Pass pass) => !pass.Training || _options.StochasticDepth <= 0 ? y
        : y * pass.Dropout(ones([y.shape[0], 1, 1], device: y.device), _options.StochasticDepth);

    private Tensor NormAfter(Tensor y)
    {
        if (_normAfter is not { } norm) return y;
        Tensor x = y.to_type(norm.Weight.Value.dtype);
        return nn.functional.layer_norm(x, [x.shape[^1]], norm.Weight.Value, norm.Bias.Value, NormEpsilon).to_type(y.dtype);
    }
}
