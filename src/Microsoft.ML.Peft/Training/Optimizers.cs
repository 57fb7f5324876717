// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>
/// AdamW: Adam with the weight decay taken off the parameters themselves (Loshchilov and Hutter 2019, arXiv 1711.05101).
/// </summary>
public class AdamW : Optimizer
{
    private readonly double _beta1, _beta2, _epsilon;
    private readonly bool _amsgrad, _maximize;

    /// <summary>Takes hold of the parameters.</summary>
    /// <param name="parameters">All parameters.</param>
    /// <param name="weightDecay">Decay of the parameters with <see cref="NamedParameter.Decay"/>.</param>
    /// <param name="beta1">Memory of the first moment, in [0, 1).</param>
    /// <param name="beta2">Memory of the second moment, in [0, 1).</param>
    /// <param name="epsilon">Added to the square root of the second moment.</param>
    /// <param name="amsgrad">True to divide by the largest second moment so far.</param>
    /// <param name="maximize">True to climb instead of to descend.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public AdamW(
        IEnumerable<NamedParameter> parameters, double weightDecay = 0.01, double beta1 = 0.9, double beta2 = 0.999,
        double epsilon = 1e-8, bool amsgrad = false, bool maximize = false)
        : base(parameters, weightDecay, amsgrad ? ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"] : ["exp_avg", "exp_avg_sq"])
    {
        if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1))
            throw new ArgumentException($"Betas must be in [0, 1), found {beta1} and {beta2}.");
        if (!(epsilon >= 0)) throw new ArgumentException($"Epsilon must not be negative, found {epsilon}.");
        (_beta1, _beta2, _epsilon, _amsgrad, _maximize) = (beta1, beta2, epsilon, amsgrad, maximize);
    }

    /// <inheritdoc/>
    protected override void Update(Tensor value, Tensor gradient, Tensor[] state, long step, double rate, double decay)
    {
        if (decay != 0) value.mul_(1 - rate * decay);
        Move(value, _maximize ? gradient.neg() : gradient, state, step, rate);
    }

    private protected void Move(Tensor value, Tensor gradient, Tensor[] state, long step, double rate)
    {
        state[0].mul_(_beta1).add_(gradient, 1 - _beta1);
        state[1].mul_(_beta2).addcmul_(gradient, gradient, 1 - _beta2);
        Tensor second = _amsgrad ? state[2].copy_(state[2].maximum(state[1])) : state[1];
        double correction1 = 1 - Math.Pow(_beta1, step), correction2 = 1 - Math.Pow(_beta2, step);
        Tensor root = second.sqrt().div_(Math.Sqrt(correction2)).add_(_epsilon);
        value.addcdiv_(state[0], root, -rate / correction1);
    }

    // A class that overrides the update has its own way.
    private protected override bool Fuses => GetType() == typeof(AdamW);

    private protected override unsafe void UpdateFused(Stretch stretch, Tensor values, Tensor gradient, Tensor[] state)
    {
        float* At(Tensor numbers) => NativeKernels.Pointer(numbers) + stretch.Start;
        var call = new NativeAdamW
        {
            Count = stretch.Length,
            Value = At(values),
            Gradient = At(gradient),
            First = At(state[0]),
            Second = At(state[1]),
            Largest = _amsgrad ? At(state[2]) : null,
            GradientFactor = (float)(_maximize ? -stretch.Factor : stretch.Factor),
            GradientDecay = DecaysGradient ? (float)stretch.Decay : 0,
            ValueFactor = DecaysGradient ? 1 : (float)(1 - stretch.Rate * stretch.Decay),
            FirstKept = (float)_beta1,
            FirstNew = (float)(1 - _beta1),
            SecondKept = (float)_beta2,
            SecondNew = (float)(1 - _beta2),
            Step = (float)(stretch.Rate / (1 - Math.Pow(_beta1, stretch.Steps))),
            RootFactor = (float)(1 / Math.Sqrt(1 - Math.Pow(_beta2, stretch.Steps))),
            Epsilon = (float)_epsilon,
            Threads = get_num_threads(),
        };
        NativeKernels.Check(NativeKernels.Calls.AdamW(&call));
        GC.KeepAlive(values);
        GC.KeepAlive(gradient);
        GC.KeepAlive(state);
    }

    /// <summary>True where decay is added to the gradient instead of taken off the parameters.</summary>
    private protected virtual bool DecaysGradient => false;

    private protected bool Maximize => _maximize;
}

/// <summary>Adam with the weight decay added to the gradient (Kingma and Ba 2015, arXiv 1412.6980).</summary>
public sealed class Adam : AdamW
{
    /// <summary>Takes hold of the parameters.</summary>
    /// <param name="parameters">All parameters.</param>
    /// <param name="weightDecay">Decay of the parameters with <see cref="NamedParameter.Decay"/>.</param>
    /// <param name="beta1">Memory of the first moment, in [0, 1).</param>
    /// <param name="beta2">Memory of the second moment, in [0, 1).</param>
    /// <param name="epsilon">Added to the square root of the second moment.</param>
    /// <param name="amsgrad">True to divide by the largest second moment so far.</param>
    /// <param name="maximize">True to climb instead of to descend.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public Adam(
        IEnumerable<NamedParameter> parameters, double weightDecay = 0, double beta1 = 0.9, double beta2 = 0.999,
        double epsilon = 1e-8, bool amsgrad = false, bool maximize = false)
        : base(parameters, weightDecay, beta1, beta2, epsilon, amsgrad, maximize)
    {
    }

    /// <inheritdoc/>
    protected override void Update(Tensor value, Tensor gradient, Tensor[] state, long step, double rate, double decay)
    {
        if (Maximize) gradient = gradient.neg();
        if (decay != 0) gradient = gradient.add(value, decay);
        Move(value, gradient, state, step, rate);
    }

    private protected override bool Fuses => true;

    private protected override bool DecaysGradient => true;
}

/// <summary>Stochastic gradient descent, with momentum where asked for.</summary>
public sealed class Sgd : Optimizer
{
    private readonly double _momentum, _dampening;
    private readonly bool _nesterov, _maximize;

    /// <summary>Takes hold of the parameters.</summary>
    /// <param name="parameters">All parameters.</param>
    /// <param name="weightDecay">Decay, added to the gradient, of the parameters with <see cref="NamedParameter.Decay"/>.</param>
    /// <param name="momentum">Memory of past gradients, in [0, 1).</param>
    /// <param name="dampening">Share of the gradient that is left out of the momentum from the second step on.</param>
    /// <param name="nesterov">True to look ahead by the momentum.</param>
    /// <param name="maximize">True to climb instead of to descend.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public Sgd(
        IEnumerable<NamedParameter> parameters, double weightDecay = 0, double momentum = 0, double dampening = 0,
        bool nesterov = false, bool maximize = false)
        : base(parameters, weightDecay, momentum == 0 ? [] : ["momentum_buffer"])
    {
        if (!(momentum >= 0 && momentum < 1)) throw new ArgumentException($"Momentum must be in [0, 1), found {momentum}.");
        if (nesterov && (momentum == 0 || dampening != 0))
            throw new ArgumentException("Nesterov's look-ahead needs a momentum and no dampening.");
        (_momentum, _dampening, _nesterov, _maximize) = (momentum, dampening, nesterov, maximize);
    }

    /// <inheritdoc/>
    protected override void Update(Tensor value, Tensor gradient, Tensor[] state, long step, double rate, double decay)
    {
        if (_maximize) gradient = gradient.neg();
        if (decay != 0) gradient = gradient.add(value, decay);
        if (_momentum != 0)
        {
            // The first buffer is the gradient itself, without dampening.
            if (step == 1) state[0].copy_(gradient);
            else state[0].mul_(_momentum).add_(gradient, 1 - _dampening);
            gradient = _nesterov ? gradient.add(state[0], _momentum) : state[0];
        }
        value.add_(gradient, -rate);
    }
}
