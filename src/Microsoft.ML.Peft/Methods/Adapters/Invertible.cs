// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>A patch of the embeddings that a language-model head undoes in front of its output table.</summary>
public interface IInvertible
{
    /// <summary>The inverse of what the patch does.</summary>
    /// <param name="hidden">Hidden states <c>[batch, tokens, hidden]</c>.</param>
    Tensor Inverse(Tensor hidden);
}

/// <summary>
/// The invertible block of MAD-X (Pfeiffer et al. 2020, arXiv 2005.00052; NICE, Dinh et al. 2015): with the states cut into
/// halves, <c>y₁ = x₁ + F(x₂)</c>, <c>y₂ = x₂ + G(y₁)</c>; F and G are two layers each.
/// </summary>
internal sealed class NicePatch : SequencePatch, IInvertible
{
    public override bool KeepsTokens => true;

    private readonly long _first;
    private readonly Func<Tensor, Tensor> _f, _g;

    /// <param name="hidden">Width of the states.</param>
    /// <param name="reduction">Half width over the inner width.</param>
    /// <param name="activation">The activation between the two layers.</param>
    /// <param name="path">Path of the block.</param>
    /// <param name="add">Owns a parameter: name, initial values.</param>
    public NicePatch(int hidden, double reduction, Func<Tensor, Tensor> activation, string path, Func<string, Func<Draws, Tensor>, NamedParameter> add)
    {
        _first = hidden / 2;
        long second = hidden - _first;
        _f = Make("F", second, _first);
        _g = Make("G", _first, second);

        Func<Tensor, Tensor> Make(string name, long inputs, long outputs)
        {
            long inner = Inner(inputs, reduction);
            NamedParameter weight0 = add($"{path}.{name}.0.weight", draws => draws.Normal(0.02, inner, inputs)), bias0 = add($"{path}.{name}.0.bias", _ => zeros([inner]));
            NamedParameter weight2 = add($"{path}.{name}.2.weight", draws => draws.Normal(0.02, outputs, inner)), bias2 = add($"{path}.{name}.2.bias", _ => zeros([outputs]));
            return x => nn.functional.linear(activation(nn.functional.linear(x, weight0.Value, bias0.Value)), weight2.Value, bias2.Value);
        }
    }

    private static long Inner(long inputs, double reduction) => Math.Max(1, (long)Math.Floor(inputs / reduction));

    /// <summary>Trained numbers of a block.</summary>
    public static long Count(long hidden, double reduction)
    {
        long first = hidden / 2, second = hidden - first;
        long One(long inputs, long outputs) => Inner(inputs, reduction) * (inputs + outputs + 1) + outputs;
        return One(second, first) + One(first, second);
    }

    public override Tensor Change(Tensor hidden, Pass pass)
    {
        Tensor x = hidden.to_type(ScalarType.Float32);
        Tensor x2 = x.narrow(-1, _first, x.shape[^1] - _first);
        Tensor y1 = x.narrow(-1, 0, _first) + _f(x2);
        return cat([y1, x2 + _g(y1)], -1).to_type(hidden.dtype);
    }

    public Tensor Inverse(Tensor hidden)
    {
        Tensor y = hidden.to_type(ScalarType.Float32);
        Tensor y1 = y.narrow(-1, 0, _first);
        Tensor x2 = y.narrow(-1, _first, y.shape[^1] - _first) - _g(y1);
        return cat([y1 - _f(x2), x2], -1).to_type(hidden.dtype);
    }
}
