// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>A batch as a network reads it: tokens, padded to one length; or images, or sounds.</summary>
/// <param name="Ids">Token ids, int64 <c>[batch, tokens]</c>.</param>
/// <param name="Mask">1 for real tokens, 0 for padding, int64 <c>[batch, tokens]</c>.</param>
/// <param name="TypeIds">Token types, int64 <c>[batch, tokens]</c>; null for all 0.</param>
/// <param name="PositionIds">Positions, int64 <c>[batch, tokens]</c>; null for the family's rule.</param>
/// <param name="Padded">False where it is known that nothing is padding.</param>
/// <param name="TaskIds">Which task each row belongs to, int64 <c>[batch]</c>, for methods that have several; null for none.</param>
public sealed record TokenBatch(Tensor Ids, Tensor Mask, Tensor? TypeIds = null, Tensor? PositionIds = null, bool Padded = true, Tensor? TaskIds = null)
{
    /// <summary>Some rows of the batch.</summary>
    /// <param name="rows">Row numbers, int64 <c>[rows]</c>.</param>
    public TokenBatch Rows(Tensor rows) => this with
    {
        Ids = Ids.index_select(0, rows),
        Mask = Mask.index_select(0, rows),
        TypeIds = TypeIds?.index_select(0, rows),
        TaskIds = TaskIds?.index_select(0, rows),
        PositionIds = PositionIds is { } positions && positions.shape[0] > 1 ? positions.index_select(0, rows) : PositionIds,
        DecoderIds = DecoderIds?.index_select(0, rows),
        DecoderMask = DecoderMask?.index_select(0, rows),
        Encoded = Encoded is { } encoded ? new(encoded.Last.index_select(0, rows), encoded.Layout.Rows(rows), null) : null,
        Pixels = Pixels?.index_select(0, rows),
        Embeddings = Embeddings is { } first && first.shape[0] > 1 ? first.index_select(0, rows) : Embeddings,
        Sound = Sound?.index_select(0, rows),
    };

    /// <summary>What the decoder reads, int64 <c>[batch, decoder tokens]</c>; for networks of two stacks, else null.</summary>
    public Tensor? DecoderIds { get; init; }

    /// <summary>1 for real tokens of the decoder, int64 <c>[batch, decoder tokens]</c>; null where all count (a decoder never looks ahead).</summary>
    public Tensor? DecoderMask { get; init; }

    /// <summary>First states in the place of tokens, <c>[1 or batch, tokens, hidden]</c>, for networks that take them (queries); else null.</summary>
    public Tensor? Embeddings { get; init; }

    /// <summary>True where a gradient is asked for of what the network reads.</summary>
    internal bool WantsGradient =>
        Pixels is { requires_grad: true } || Sound is { requires_grad: true } || Embeddings is { requires_grad: true } || Encoded is { Last.requires_grad: true };

    /// <summary>The encoder's output of an earlier run, which is then not run again; null to run it.</summary>
    public BackboneOutput? Encoded { get; init; }

    /// <summary>Normalised images <c>[batch, channels, height, width]</c>, or videos with frames before the channels; for vision networks, else null.</summary>
    public Tensor? Pixels { get; init; }

    /// <summary>
    /// Samples <c>[batch, samples]</c>, or spectrograms as the family wants them; for networks that hear, else null. Where
    /// rows were padded to one length, <see cref="Mask"/> is 1 for what is real, <c>[batch, samples]</c> or <c>[batch, frames]</c>.
    /// </summary>
    public Tensor? Sound { get; init; }

    /// <summary>True to fit position tables to images of another size than the network's.</summary>
    public bool InterpolatePositions { get; init; }

    /// <summary>True to take the middle of position tables for sounds that are shorter than the network's.</summary>
    public bool CutPositions { get; init; }

    /// <summary>True to mask spans of frames while training, as the network's configuration says (wav2vec 2.0); they follow from the pass's seed.</summary>
    public bool MaskFrames { get; init; }

    /// <summary>
    /// True to pad a map that is not larger than a window to a whole window, and to shift there too, as Hugging Face's
    /// <c>SwinBackbone</c> does; false to shrink the window to such a map, as its classifiers do.
    /// </summary>
    public bool WholeWindows { get; init; }

    /// <summary>A batch of images; the network itself says how many tokens they make, none of which is padding.</summary>
    /// <param name="pixels">Normalised images <c>[batch, channels, height, width]</c>, or videos <c>[batch, frames, channels, height, width]</c>.</param>
    /// <param name="interpolatePositions">True to fit position tables to images of another size than the network's.</param>
    public static TokenBatch OfImages(Tensor pixels, bool interpolatePositions = false)
    {
        Tensor none = zeros([pixels.shape[0], 0], ScalarType.Int64, pixels.device);
        return new TokenBatch(none, none, Padded: false) { Pixels = pixels, InterpolatePositions = interpolatePositions };
    }

    /// <summary>A batch of another network's states, for networks that query them.</summary>
    /// <param name="states">States <c>[batch, tokens, width]</c>; a gradient goes back to them where they ask for one.</param>
    /// <param name="mask">1 for states that count, int64 <c>[batch, tokens]</c>; null for all.</param>
    /// <param name="queries">Queries <c>[1 or batch, queries, hidden]</c>; null for the network's own.</param>
    public static TokenBatch OfStates(Tensor states, Tensor? mask = null, Tensor? queries = null)
    {
        Tensor none = zeros([states.shape[0], 0], ScalarType.Int64, states.device);
        var layout = new Layout(mask ?? ones([states.shape[0], states.dim() > 1 ? states.shape[1] : 1], ScalarType.Int64, states.device), padded: mask is not null);
        return new TokenBatch(none, none, Padded: false) { Encoded = new BackboneOutput(states, layout, null), Embeddings = queries };
    }

    /// <summary>A batch of sounds; the network itself says how many tokens they make.</summary>
    /// <param name="sound">Samples <c>[batch, samples]</c>, or spectrograms as the family wants them.</param>
    /// <param name="mask">1 for what is real, 0 for padding, int64 <c>[batch, samples]</c> or <c>[batch, frames]</c>; null where nothing is padding.</param>
    public static TokenBatch OfSound(Tensor sound, Tensor? mask = null)
    {
        Tensor none = zeros([sound.shape[0], 0], ScalarType.Int64, sound.device);
        return new TokenBatch(none, mask ?? none, Padded: mask is not null) { Sound = sound };
    }
}

/// <summary>What a forward pass gives.</summary>
/// <param name="Last">Hidden states after the last layer and what follows it <c>[batch, tokens, hidden]</c>; one token where the pass asked for the first only.</param>
/// <param name="Layout">Which of the tokens are real.</param>
/// <param name="HiddenStates">
/// Embedding output and each layer's output, where the pass keeps them; else null. The last of them is as the layer gave it:
/// a final norm is in <paramref name="Last"/> alone.
/// </param>
public sealed record BackboneOutput(Tensor Last, Layout Layout, IReadOnlyList<Tensor>? HiddenStates)
{
    /// <summary>The same of the encoder, in networks of two stacks; else null.</summary>
    public BackboneOutput? Encoder { get; init; }

    /// <summary>The tokens that the network ran over, where they are known.</summary>
    public TokenBatch? Batch { get; init; }

    /// <summary>The token that stands for each row after the last layer, <c>[batch, hidden]</c>: its own first, or a prompt where that is read.</summary>
    public Tensor First() => Last.select(1, Last.shape[1] == 1 ? 0 : Layout.First);

    /// <summary>Each row's last real token after the last layer, <c>[batch, hidden]</c>.</summary>
    /// <param name="pad">Id of the padding token, by which padding is told as Hugging Face's decoders tell it; null for the mask.</param>
    public Tensor LastReal(int? pad = null)
    {
        Tensor own = Layout.Own(Last);
        long tokens = own.shape[1];
        if (pad is null && !Layout.Padded) return own.select(1, tokens - 1);
        // Methods that drop tokens keep the mask right, not the ids.
        Tensor real = pad is { } id && Batch is { } batch && batch.Ids.shape[1] == tokens ? batch.Ids.ne(id) : Layout.Own(Layout.Mask).ne(0);
        Tensor at = (arange(tokens, ScalarType.Int64, own.device) * real.to_type(ScalarType.Int64)).argmax(1);   // [batch]
        return own.gather(1, at.view(-1, 1, 1).expand(-1, 1, own.shape[2])).squeeze(1);
    }
}
