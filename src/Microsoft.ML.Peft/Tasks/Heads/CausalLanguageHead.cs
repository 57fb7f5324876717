// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Scores of every vocabulary entry for the token after each token, <c>[batch, tokens, vocabulary]</c>, by the backbone's own
/// language head: a site, which methods may adapt. It has no parameters itself. Inserted tokens have scores too: the last
/// prompt tells a row's first token.
/// </summary>
public sealed class CausalLanguageHead : Head
{
    /// <summary>Makes the head over a decoder that was loaded with its language head.</summary>
    /// <param name="backbone">The backbone that it reads.</param>
    /// <exception cref="ArgumentException">The backbone has no language head.</exception>
    public CausalLanguageHead(Backbone backbone)
    {
        if (!backbone.Causal || !backbone.Sites.Any(s => s.Role == SiteRole.LanguageHead))
            throw new ArgumentException(
                $"This {backbone.Config.ModelType} backbone does not write texts on; load gpt2 or llama with languageHead: true.", nameof(backbone));
    }

    /// <inheritdoc/>
    public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) =>
        backbone.VocabularyScores(output.Last, pass);

    /// <inheritdoc/>
    public override Tensor FromFeatures(Tensor features, Pass pass) => features;

    /// <summary>Mean cross-entropy of each token's scores against the next token.</summary>
    /// <param name="scores">Scores <c>[batch, tokens, vocabulary]</c>.</param>
    /// <param name="labels">Token ids of each row's own tokens, int64 <c>[batch, own tokens]</c>, not shifted; -100 is not counted.</param>
    /// <returns>A scalar.</returns>
    public static Tensor Loss(Tensor scores, Tensor labels)
    {
        labels = BehindPrompts(labels, scores.shape[1]);
        long tokens = scores.shape[1] - 1, entries = scores.shape[2];
        Tensor predicted = scores.narrow(1, 0, tokens).reshape(-1, entries).to_type(ScalarType.Float32);
        return nn.functional.cross_entropy(predicted, labels.narrow(1, 1, tokens).reshape(-1), ignore_index: -100);
    }

    /// <summary>Labels for all places of a sequence with prompts in front, which are not counted.</summary>
    /// <param name="labels">Labels of the row's own tokens, int64 <c>[batch, own tokens]</c>.</param>
    /// <param name="tokens">Number of places.</param>
    /// <returns>Labels <c>[batch, tokens]</c>.</returns>
    public static Tensor BehindPrompts(Tensor labels, long tokens)
    {
        long more = tokens - labels.shape[1];
        return more <= 0 ? labels : cat([full([labels.shape[0], more], -100L, dtype: labels.dtype, device: labels.device), labels], 1);
    }
}
