// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>How a frozen weight is kept in memory.</summary>
public enum WeightFormat
{
    /// <summary>4 bits a number (NF4, Dettmers et al. 2023, arXiv 2305.14314) and a float32 scale a block of 64: 4.5 bits.</summary>
    Nf4,
    /// <summary>NF4 whose scales are kept in 8 bits, with a float32 scale a block of 256 of them: 4.127 bits.</summary>
    Nf4Double,
    /// <summary>8 bits a number and a float32 scale a row: <c>q = round(127 w / max |row|)</c>.</summary>
    Int8,
}

/// <summary>
/// A frozen weight in 4 or 8 bits. It is restored at each use; gradients flow through the restored weight to the input, never to
/// the codes.
/// </summary>
public sealed class QuantisedWeight : IDisposable
{
    /// <summary>Numbers of a block of NF4.</summary>
    public const int Block = 64;

    private const int ScaleBlock = 256;

    private static readonly float[] _levels =
    [
        -1f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
        -0.09105003625154495f, 0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
        0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1f,
    ];

    private readonly long[] _shape;
    private readonly Tensor _codes, _scales;
    private readonly Tensor? _pairs, _scaleOfScales;
    private readonly double _offset;

    private QuantisedWeight(WeightFormat format, ScalarType dtype, long[] shape, Tensor codes, Tensor scales, Tensor? scaleOfScales, double offset, Tensor? pairs)
    {
        (Format, Dtype, _shape, _offset) = (format, dtype, shape, offset);
        _codes = codes.DetachFromDisposeScope();
        _scales = scales.DetachFromDisposeScope();
        _scaleOfScales = scaleOfScales?.DetachFromDisposeScope();
        _pairs = pairs?.DetachFromDisposeScope();
    }

    /// <summary>The sixteen levels of NF4, ascending.</summary>
    public static ReadOnlySpan<float> Levels => _levels;

    /// <summary>How it is kept.</summary>
    public WeightFormat Format { get; }

    /// <summary>The type in which it is restored.</summary>
    public ScalarType Dtype { get; }

    /// <summary>Logical shape <c>[out, in]</c>.</summary>
    public IReadOnlyList<long> Shape => _shape;

    /// <summary>Memory that it takes.</summary>
    public long Bytes => Stored.Sum(t => t.numel() * t.element_size());

    /// <summary>Bits a number.</summary>
    public double BitsPerNumber => 8.0 * Bytes / (_shape[0] * _shape[1]);

    // Eight bytes of the double form's offset are not counted, nor the table that all share.
    private IEnumerable<Tensor> Stored => new[] { _codes, _scales, _scaleOfScales }.OfType<Tensor>();

    /// <summary>Codes of NF4 one by one, 0 to 15, or of int8, -127 to 127, <c>[out, in]</c> on the CPU; for inspection.</summary>
    public int[,] Codes()
    {
        using var scope = NewDisposeScope();
        var codes = new int[_shape[0], _shape[1]];
        byte[] bytes = _codes.cpu().bytes.ToArray();
        for (long i = 0; i < codes.LongLength; i++)
            codes[i / _shape[1], i % _shape[1]] = Format == WeightFormat.Int8 ? (sbyte)bytes[i] : i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15;
        return codes;
    }

    /// <summary>Scales of the blocks (NF4) or rows (int8) as they are used, float32, on the CPU; for inspection.</summary>
    public float[] Scales()
    {
        using var scope = NewDisposeScope();
        return RestoredScales().cpu().contiguous().data<float>().ToArray();
    }

    /// <summary>Quantises a weight.</summary>
    /// <param name="weight">A floating, finite weight <c>[out, in]</c>; stays as it is.</param>
    /// <param name="format">How to keep it.</param>
    /// <param name="halfScales">True to take int8's weight and row maxima in float16 first, as bitsandbytes' files hold them.</param>
    /// <exception cref="ArgumentException">The weight is no floating matrix, or not finite.</exception>
    public static QuantisedWeight Of(Tensor weight, WeightFormat format, bool halfScales = false)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        if (weight.dim() != 2 || !weight.is_floating_point())
            throw new ArgumentException($"Only a floating matrix can be quantised; found [{string.Join(", ", weight.shape)}], {weight.dtype}.", nameof(weight));
        Tensor dense = weight.to_type(ScalarType.Float32).contiguous();
        if (!dense.isfinite().all().item<bool>()) throw new ArgumentException("The weight holds numbers that are not finite; it cannot be quantised.", nameof(weight));
        return format == WeightFormat.Int8 ? Int8(halfScales ? dense.to_type(ScalarType.Float16).to_type(ScalarType.Float32) : dense, weight.dtype)
            : Nf4(dense, weight.dtype, format);
    }

    private static QuantisedWeight Int8(Tensor dense, ScalarType dtype)
    {
        Tensor most = dense.abs().amax([1], keepdim: true);                                      // [out, 1]
        Tensor codes = (dense * 127 / most.clamp(min: 1e-30)).round().to_type(ScalarType.Int8);
        return new QuantisedWeight(WeightFormat.Int8, dtype, dense.shape, codes, most, null, 0, null);
    }

    private static QuantisedWeight Nf4(Tensor dense, ScalarType dtype, WeightFormat format)
    {
        float[] numbers = dense.cpu().data<float>().ToArray();
        var scales = new float[(numbers.Length + Block - 1) / Block];
        var codes = new byte[scales.Length * Block / 2];
        Parallel.For(0, scales.Length, b =>
        {
            ReadOnlySpan<float> block = numbers.AsSpan(b * Block, Math.Min(Block, numbers.Length - (b * Block)));
            float most = 0;
            foreach (float number in block) most = Math.Max(most, Math.Abs(number));
            scales[b] = most;
            for (int i = 0; i < Block; i++)
            {
                byte code = Nearest(i < block.Length && most > 0 ? block[i] / most : 0);
                codes[((b * Block) + i) / 2] |= (byte)(i % 2 == 0 ? code << 4 : code);
            }
        });
        Device device = dense.device;
        Tensor pairs = tensor(Enumerable.Range(0, 256).SelectMany(c => new[] { _levels[c >> 4], _levels[c & 15] }).ToArray(), [256, 2]).to(device);
        Tensor kept = tensor(codes).to(device), scale = tensor(scales).to(device);
        if (format == WeightFormat.Nf4) return new QuantisedWeight(format, dtype, dense.shape, kept, scale, null, 0, pairs);
        double offset = scales.Average(s => (double)s);
        long blocks = (scales.Length + ScaleBlock - 1) / ScaleBlock;
        Tensor shifted = zeros([blocks * ScaleBlock], device: device);
        shifted.narrow(0, 0, scales.Length).copy_(scale - offset);
        Tensor grouped = shifted.view(blocks, ScaleBlock), most = grouped.abs().amax([1], keepdim: true);
        Tensor rounded = (grouped * 127 / most.clamp(min: 1e-30)).round().to_type(ScalarType.Int8).reshape(-1).narrow(0, 0, scales.Length).clone();
        return new QuantisedWeight(format, dtype, dense.shape, kept, rounded, most, offset, pairs);
    }

    // The code of the level that is nearest.
    private static byte Nearest(float value)
    {
        int low = 0, high = 15;
        while (high - low > 1)
        {
            int middle = (low + high) / 2;
            if (value < _levels[middle]) high = middle;
            else low = middle;
        }
        return (byte)(value - _levels[low] <= _levels[high] - value ? low : high);
    }

    /// <summary>The restored weight <c>[out, in]</c>; a new tensor of the running dispose scope.</summary>
    public Tensor Dequantise()
    {
        using var off = no_grad();
        using var scope = NewDisposeScope();
        Tensor scales = RestoredScales(), made;
        if (Format == WeightFormat.Int8) made = _codes.to_type(ScalarType.Float32) * (scales / 127);
        else
        {
            Tensor values = _pairs!.index_select(0, _codes.to_type(ScalarType.Int32)).view(-1, Block) * scales.unsqueeze(1);
            made = values.reshape(-1).narrow(0, 0, _shape[0] * _shape[1]).reshape(_shape);
        }
        return made.to_type(Dtype).MoveToOuterDisposeScope();
    }

    private Tensor RestoredScales()
    {
        if (Format != WeightFormat.Nf4Double) return _scales;
        long count = _scales.numel(), blocks = _scaleOfScales!.shape[0];
        Tensor wide = _scaleOfScales.expand(blocks, ScaleBlock).reshape(-1).narrow(0, 0, count);
        return _scales.to_type(ScalarType.Float32) * (wide / 127) + _offset;
    }

    /// <summary>Another handle on the same numbers, for another owner.</summary>
    internal QuantisedWeight Share() => new(Format, Dtype, _shape, _codes.detach(), _scales.detach(), _scaleOfScales?.detach(), _offset, _pairs?.detach());

    /// <summary>Product with an input; the backward pass restores the weight again instead of keeping it.</summary>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="bias">Bias <c>[out]</c>, or null.</param>
    public Tensor Product(Tensor x, Tensor? bias)
    {
        if (!is_grad_enabled() || !x.requires_grad) return Products.Linear(x, Dequantise(), bias);
        Tensor y = Function.apply(x, this);
        return bias is null ? y : y + bias;
    }

    private sealed class Function : autograd.SingleTensorFunction<Function>
    {
        public override string Name => nameof(QuantisedWeight);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var (x, weight) = ((Tensor)vars[0], (QuantisedWeight)vars[1]);
            ctx.save_data("weight", weight);
            using var off = no_grad();
            using var scope = NewDisposeScope();
            return Products.Linear(x, weight.Dequantise(), null).MoveToOuterDisposeScope();
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            var weight = (QuantisedWeight)ctx.get_data("weight")!;
            using var scope = NewDisposeScope();
            return [grad_output.matmul(weight.Dequantise()).MoveToOuterDisposeScope(), null!];
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (Tensor tensor in Stored) tensor.Dispose();
        _pairs?.Dispose();
    }
}
