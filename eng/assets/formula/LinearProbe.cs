// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>What a linear classifier makes of frozen features: the share of right answers on rows that it has not seen.</summary>
internal static class LinearProbe
{
    private const int Steps = 600;

    /// <summary>Trains a softmax regression on features that are normed per dimension, and scores the test rows.</summary>
    public static double Accuracy(Backbone backbone, ImageSet train, ImageSet test, bool mean)
    {
        using var scope = NewDisposeScope();
        Tensor seen = Features(backbone, train, mean), unseen = Features(backbone, test, mean);
        Tensor centre = seen.mean([0]), scale = 1 / (seen.std(0, unbiased: false) + 1e-6);
        (seen, unseen) = ((seen - centre) * scale, (unseen - centre) * scale);
        Tensor labels = tensor(Array.ConvertAll(train.Labels, l => (long)l)), answers = tensor(Array.ConvertAll(test.Labels, l => (long)l));
        int classes = train.Labels.Max() + 1;
        using var weight = new NamedParameter("weight", zeros([classes, seen.shape[1]]));
        using var bias = new NamedParameter("bias", zeros([classes]));
        using var optimizer = new AdamW([weight, bias], weightDecay: 1e-2);
        for (int step = 0; step < Steps; step++)
        {
            using var inner = NewDisposeScope();
            Tensor loss = nn.functional.cross_entropy(nn.functional.linear(seen, weight.Value, bias.Value), labels);
            autograd.backward([loss], []);
            optimizer.Step(1e-2, 1 - (double)step / Steps);
        }
        using var off = no_grad();
        return nn.functional.linear(unseen, weight.Value, bias.Value).argmax(1).eq(answers).to_type(ScalarType.Float32).mean().item<float>();
    }

    private static Tensor Features(Backbone backbone, ImageSet set, bool mean)
    {
        const int Batch = 100;
        using var off = no_grad();
        using var scope = NewDisposeScope();
        int length = set.Pixels.Length / set.Labels.Length, side = (int)Math.Sqrt(length / 3);
        var parts = new List<Tensor>();
        for (int from = 0; from < set.Labels.Length; from += Batch)
        {
            using var inner = NewDisposeScope();
            int rows = Math.Min(Batch, set.Labels.Length - from);
            Tensor pixels = tensor(set.Pixels.AsSpan(from * length, rows * length).ToArray(), [rows, 3, side, side]);
            BackboneOutput output = backbone.Forward(TokenBatch.OfImages(pixels), new Pass());
            parts.Add((mean ? output.Last.narrow(1, 1, output.Last.shape[1] - 1).mean([1]) : output.First()).MoveToOuterDisposeScope());
        }
        return cat(parts).MoveToOuterDisposeScope();
    }
}
