// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Scores of every vocabulary entry for each token that the decoder should write, <c>[batch, decoder tokens, vocabulary]</c>, by
/// the backbone's own language head: a site, which methods may adapt. It has no parameters itself.
/// </summary>
public sealed class SequenceToSequenceHead : Head
{
    /// <summary>Makes the head over a network of two stacks that was loaded with its language head.</summary>
    /// <param name="backbone">The backbone that it reads.</param>
    /// <exception cref="ArgumentException">The backbone has no decoder or no language head.</exception>
    public SequenceToSequenceHead(Backbone backbone)
    {
        if (backbone.Config.DecoderStart is null || !backbone.Sites.Any(s => s.Role == SiteRole.LanguageHead))
            throw new ArgumentException(
                $"This {backbone.Config.ModelType} backbone writes no text from text; load t5 or mt5 with languageHead: true.", nameof(backbone));
    }

    /// <inheritdoc/>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) => backbone.VocabularyScores(output.Last, pass);

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass) => features;

    /// <summary>What a decoder reads to learn to write labels: these shifted right behind the start token, padding in the place of -100.</summary>
    /// <param name="labels">Token ids, int64 <c>[batch, tokens]</c>; -100 is not counted.</param>
    /// <param name="config">The backbone's configuration.</param>
    /// <returns>Token ids, int64 <c>[batch, tokens]</c>.</returns>
    public static Tensor DecoderIds(Tensor labels, BackboneConfig config)
    {
        Tensor first = full([labels.shape[0], 1], config.DecoderStartId, dtype: labels.dtype, device: labels.device);
        Tensor shifted = cat([first, labels.narrow(1, 0, labels.shape[1] - 1)], 1);
        return shifted.masked_fill(shifted.eq(-100), config.PadId);
    }

    /// <summary>Mean cross-entropy of each token's scores against the label at its place.</summary>
    /// <param name="scores">Scores <c>[batch, tokens, vocabulary]</c>.</param>
    /// <param name="labels">Token ids of each row's own tokens, int64 <c>[batch, own tokens]</c>, not shifted; -100 is not counted.</param>
    /// <returns>A scalar.</returns>
    public static Tensor Loss(Tensor scores, Tensor labels) => nn.functional.cross_entropy(
        scores.reshape(-1, scores.shape[^1]).to_type(TorchSharp.torch.ScalarType.Float32),
        CausalLanguageHead.BehindPrompts(labels, scores.shape[1]).reshape(-1), ignore_index: -100);
}
