// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>One bottleneck at a residual connection.</summary>
internal sealed class BottleneckPatch : ResidualPatch
{
    private const double NormEpsilon = 1e-5;

    private readonly BottleneckOptions _options;
    private readonly Func<Tensor, Tensor> _activation;
    private readonly NamedParameter _downWeight, _downBias, _upWeight, _upBias;
    private readonly (NamedParameter Weight, NamedParameter Bias)? _normBefore, _normAfter, _gate;
    private readonly NamedParameter? _scaling;

    public BottleneckPatch(BottleneckOptions options, PeftAdaptation adaptation, string path, int layer, long seed)
    {
        _options = options;
        _activation = Activations.Get(options.Activation);
        Device device = adaptation.Backbone.Device;
        int d = adaptation.Backbone.Config.HiddenSize, m = options.Width(d, layer);
        NamedParameter Add(string name, Func<Draws, Tensor> make)
        {
            using var off = no_grad();
            return adaptation.Add($"{path}.{name}", make(new Draws(seed, $"{path}.{name}")).to(device));
        }
        (NamedParameter, NamedParameter) Norm(string name) =>
            (Add($"{name}.weight", _ => ones([d])), Add($"{name}.bias", _ => zeros([d])));
        Tensor Down(Draws draws) => options.Init == "mam_adapter" ? draws.Kaiming(m, d) : Matrix(draws, m, d);
        Tensor Up(Draws draws) => options.Init == "mam_adapter" ? zeros([d, m]) : Matrix(draws, d, m);

        if (options.OwnNormBefore) _normBefore = Norm("adapter_norm_before");
        // The norm stands first in AdapterHub's list of parts, so the projection's number moves up.
        string down = options.OwnNormBefore ? "adapter_down.1" : "adapter_down.0";
        _downWeight = Add($"{down}.weight", Down);
        _downBias = Add($"{down}.bias", _ => zeros([m]));
        _upWeight = Add("adapter_up.weight", Up);
        _upBias = Add("adapter_up.bias", _ => zeros([d]));
        if (options.OwnNormAfter) _normAfter = Norm("adapter_norm_after");
        if (options.Gate) _gate = (Add("gate.weight", draws => draws.Normal(0.02, 1, d)), Add("gate.bias", _ => zeros([1])));
        if (options.Constant is null) _scaling = Add("scaling", _ => ones([options.Scaling == "channel" ? d : 1]));
    }

    private Tensor Matrix(Draws draws, long rows, long columns) => _options.Init == "houlsby"
        ? draws.TruncatedNormal(0.01, 0.02, rows, columns)
        : draws.Normal(0.02, rows, columns);

    public override Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass)
    {
        Tensor u = _options.Parallel ? output + NormAfter(Inner(stream, pass)) : Sequential(stream, output, next, pass);
        return _options.OriginalNormAfter ? next(stream, u) : u;
    }

    private Tensor Sequential(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass)
    {
        Tensor h = _options.OriginalNormBefore ? next(stream, output) : output;
        Tensor residual = _options.Residual switch
        {
            BottleneckResidual.AfterNorm => h,
            BottleneckResidual.PostAdd when _options.OriginalNormBefore => output + stream,
            _ => output,
        };
        Tensor b = Inner(h, pass);
        return _options.ResidualInsideOwnNorm ? NormAfter(b + residual) : NormAfter(b) + residual;
    }

    // s · (W_up φ(W_down h + b_down) + b_up), gated: [batch, tokens, hidden]
    private Tensor Inner(Tensor h, Pass pass)
    {
        Tensor x = h.to_type(_downWeight.Value.dtype);
        Tensor low = _normBefore is { } norm ? nn.functional.layer_norm(x, [x.shape[^1]], norm.Weight.Value, norm.Bias.Value, NormEpsilon) : x;
        low = _activation(nn.functional.linear(low, _downWeight.Value, _downBias.Value));            // [batch, tokens, m]
        Tensor y = pass.Dropout(nn.functional.linear(low, _upWeight.Value, _upBias.Value), _options.Dropout);
        if (_scaling is not null) y = y * _scaling.Value;
        else if (_options.Constant is { } s and not 1) y = y * s;
        if (_gate is { } gate) y = y * nn.functional.linear(x, gate.Weight.Value, gate.Bias.Value).sigmoid().mean([1], keepdim: true);
        return y.to_type(h.dtype);
    }

    private Tensor NormAfter(Tensor y)
    {
        if (_normAfter is not { } norm) return y;
        Tensor x = y.to_type(norm.Weight.Value.dtype);
        return nn.functional.layer_norm(x, [x.shape[^1]], norm.Weight.Value, norm.Bias.Value, NormEpsilon).to_type(y.dtype);
    }
}
