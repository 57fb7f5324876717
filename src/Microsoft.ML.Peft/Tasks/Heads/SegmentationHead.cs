// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// SegFormer's decode head (Xie et al. 2021, arXiv 2105.15203): the maps of all stages through a linear map each, at the size of the first,
/// side by side from the last to the first, through one more map with a batch norm and ReLU to a score a class and place,
/// <c>[batch, classes, rows, columns]</c>. It fits every network of stages.
/// </summary>
public sealed class SegmentationHead : Head
{
    /// <summary>The usual label of a pixel that is not counted.</summary>
    public const long Ignored = 255;

    private const double NormEpsilon = 1e-5;

    private readonly List<(NamedParameter Weight, NamedParameter Bias)> _stages = [];
    private readonly NamedParameter _fuse, _normWeight, _normBias, _mean, _variance, _outWeight, _outBias;
    private readonly double _dropout;

    /// <summary>Makes a head with fresh weights, normal with the backbone's initializer range.</summary>
    /// <param name="backbone">A network of stages.</param>
    /// <param name="classes">Number of classes; 1 for one score a place, of belonging to the thing.</param>
    /// <param name="width">Channels inside the head; null for the backbone's <c>decoder_hidden_size</c>, or 256.</param>
    /// <param name="seed">Seed of the fresh weights.</param>
    /// <param name="dropout">Dropout before the last map while training; null for the backbone's <c>classifier_dropout_prob</c>, or 0.1.</param>
    /// <exception cref="ArgumentException">The backbone has no stages.</exception>
    public SegmentationHead(Backbone backbone, int classes, int? width = null, long seed = 0, double? dropout = null)
    {
        if (classes < 1) throw new ArgumentOutOfRangeException(nameof(classes), classes, "A head needs at least one class.");
        if (backbone is not StagedBackbone staged)
            throw new ArgumentException($"A {backbone.Config.ModelType} backbone has no stages with maps of their own; load segformer, swin, swinv2, convnext or resnet.", nameof(backbone));
        var read = new ConfigReader(backbone.Config.Raw);
        long inner = width ?? read.Int("decoder_hidden_size", 256);
        _dropout = dropout ?? read.Share("classifier_dropout_prob", 0.1);
        using var generator = new Generator(unchecked((ulong)seed), CPU);
        using var scope = NewDisposeScope();
        NamedParameter Make(string name, Tensor value, bool trainable = true) =>
            Add(new NamedParameter("decode_head." + name, value.to(backbone.Device), trainable) { Learned = !trainable });
        NamedParameter Weight(string name, params long[] shape) => Make(name, randn(shape, generator: generator) * backbone.Config.InitializerRange);
        for (int i = 0; i < staged.Widths.Count; i++)
            _stages.Add((Weight($"linear_c.{i}.proj.weight", inner, staged.Widths[i]), Make($"linear_c.{i}.proj.bias", zeros([inner]))));
        _fuse = Weight("linear_fuse.weight", inner, inner * staged.Widths.Count, 1, 1);
        (_normWeight, _normBias) = (Make("batch_norm.weight", ones([inner])), Make("batch_norm.bias", zeros([inner])));
        (_mean, _variance) = (Make("batch_norm.running_mean", zeros([inner]), trainable: false), Make("batch_norm.running_var", ones([inner]), trainable: false));
        (_outWeight, _outBias) = (Weight("classifier.weight", classes, inner, 1, 1), Make("classifier.bias", zeros([classes])));
        (Classes, IgnoredLabel) = (classes, read.Int("semantic_loss_ignore_index", (int)Ignored, least: int.MinValue));
    }

    /// <summary>Number of classes.</summary>
    public int Classes { get; }

    /// <summary>The label of a pixel that is not counted, by the backbone's <c>semantic_loss_ignore_index</c>.</summary>
    public long IgnoredLabel { get; }

    /// <inheritdoc/>
    public override bool ReadsHiddenStates => true;

    /// <summary>The maps of the stages at the size of the first, channels last and side by side from the last stage to the first.</summary>
    /// <param name="backbone">The backbone that ran.</param>
    /// <param name="output">What it gave, with its hidden states.</param>
    /// <param name="pass">The same pass.</param>
    /// <returns><c>[batch, rows, columns, channels of all stages]</c>.</returns>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass)
    {
        // Interpolation and the linear maps of places commute, so the narrower maps are resized.
        Tensor[] maps = [.. backbone.StageMaps(output).Skip(1)];
        (long rows, long columns) = (maps[0].shape[2], maps[0].shape[3]);
        return cat([.. maps.Select(map => AtSize(map, rows, columns)).Reverse()], -1);
    }

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass)
    {
        pass.BeginSegment(int.MaxValue);
        var parts = new List<Tensor>();
        long at = 0;
        foreach ((NamedParameter weight, NamedParameter bias) in Enumerable.Reverse(_stages))
        {
            parts.Add(nn.functional.linear(features.narrow(-1, at, weight.Value.shape[1]), weight.Value, bias.Value));
            at += weight.Value.shape[1];
        }
        Tensor x = nn.functional.linear(cat(parts, -1), _fuse.Value.flatten(1));
        x = pass.Dropout(Normalised(x, pass).relu(), _dropout);
        return nn.functional.linear(x, _outWeight.Value.flatten(1), _outBias.Value).permute(0, 3, 1, 2);
    }

    private Tensor Normalised(Tensor x, Pass pass)
    {
        if (pass.Training)
            return BatchNorm.ByBatch(x, _normWeight.Value, _normBias.Value, _mean.Value, _variance.Value, NormEpsilon, pass.FirstTime(this));
        Tensor scale = _normWeight.Value * (_variance.Value + NormEpsilon).rsqrt();
        return (_normBias.Value - _mean.Value * scale).addcmul(x, scale, 1);
    }

    /// <summary>Mean cross-entropy of the pixels that count; with one class, of belonging to it, over all pixels.</summary>
    /// <param name="scores">Scores <c>[batch, classes, rows, columns]</c>.</param>
    /// <param name="labels">Class of each pixel, int64 <c>[batch, height, width]</c>; the scores are interpolated to that size.</param>
    /// <param name="ignored">The label that is not counted.</param>
    /// <returns>A scalar; 0 where no pixel counts.</returns>
    /// <exception cref="ArgumentException">Labels are shaped otherwise, or name a class that there is not.</exception>
    public static Tensor Loss(Tensor scores, Tensor labels, long ignored = Ignored)
    {
        if (labels.dim() != 3 || labels.shape[0] != scores.shape[0])
            throw new ArgumentException($"Labels have the shape [{string.Join(", ", labels.shape)}]; expected [{scores.shape[0]}, height, width].", nameof(labels));
        long classes = scores.shape[1];
        Tensor flat = AtSize(scores, labels.shape[1], labels.shape[2]).reshape(-1, classes), wanted = labels.reshape(-1);
        Tensor counted = wanted.ne(ignored).logical_and(classes > 1 ? ones_like(wanted, ScalarType.Bool) : wanted.ge(0));
        Check(wanted, counted, classes);
        Tensor shares = counted.to_type(ScalarType.Float32);
        if (classes == 1)
        {
            Tensor score = flat.squeeze(-1), target = wanted.to_type(ScalarType.Float32) * shares;
            // max(z, 0) - z t + log(1 + e^-|z|)
            return ((score.relu() - score * target + (-score.abs()).exp().log1p()) * shares).mean();
        }
        Tensor chosen = flat.log_softmax(-1).gather(1, wanted.masked_fill(counted.logical_not(), 0).unsqueeze(1)).squeeze(1);
        return (chosen * shares).sum() * -1 / shares.sum().clamp(1);
    }

    private static void Check(Tensor labels, Tensor counted, long classes)
    {
        using var off = no_grad();
        long largest = Math.Max(classes, 2) - 1;
        Tensor wrong = counted.logical_and(labels.lt(0).logical_or(labels.gt(largest)));
        if (wrong.any().item<bool>())
            throw new ArgumentException(
                $"A pixel has the label {labels.masked_select(wrong)[0].item<long>()}; allowed are 0 to {largest}, and the label that is not counted.", nameof(labels));
    }

    /// <summary>The class of each pixel.</summary>
    /// <param name="scores">Scores of one image or several, <c>[batch, classes, rows, columns]</c>.</param>
    /// <param name="height">Height of the label map.</param>
    /// <param name="width">Width of the label map.</param>
    /// <returns>Int64 <c>[batch, height, width]</c>; with one class 1 where it is more likely than not.</returns>
    public static Tensor LabelMap(Tensor scores, long height, long width)
    {
        if (height < 1 || width < 1) throw new ArgumentOutOfRangeException(nameof(height), $"{height}x{width}", "A label map has at least one pixel.");
        Tensor sized = AtSize(scores, height, width);
        return sized.shape[3] == 1 ? sized.squeeze(-1).gt(0).to_type(ScalarType.Int64) : sized.argmax(-1);
    }

    // [batch, channels, rows, columns] to [batch, height, width, channels] by straight lines between places.
    private static Tensor AtSize(Tensor map, long height, long width)
    {
        Tensor wide = map.to_type(ScalarType.Float32);
        return (map.shape[2], map.shape[3]) == (height, width) ? wide.permute(0, 2, 3, 1)
            : Interpolation.Resize(wide, height, width, Interpolation.Linear).permute(0, 2, 3, 1);
    }
}
