// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Images or sounds to what a network reads. Immutable; called from many threads.</summary>
/// <typeparam name="T">What a row is decoded to.</typeparam>
/// <param name="onBad">What becomes of rows that cannot be read.</param>
/// <param name="room">Bytes of decoded training rows that are kept.</param>
internal abstract class MediaEncoder<T>(OnBadInput onBad, long room) : RowEncoder<MediaRow<T>> where T : class
{
    private static readonly JsonSerializerOptions _json = new() { IncludeFields = true };
    private string? _settings;

    // Enough for a few batches; a window of large pictures must fit into memory.
    public override int Window => 64;

    public override bool SkipsUnreadable => onBad == OnBadInput.Skip;

    public OnBadInput OnBad => onBad;

    /// <summary>Many of them, in words.</summary>
    public abstract string Plural { get; }

    /// <summary>What an error about a row that cannot be read advises.</summary>
    public abstract string Advice { get; }

    /// <summary>Tokens of every row; null where they depend on it.</summary>
    public virtual int? FixedTokens => null;

    /// <summary>Shape of every row, where it is known.</summary>
    public virtual IReadOnlyList<int>? Shape => null;

    public virtual bool Masked => false;

    public virtual bool StandsAlone => true;

    public virtual float Padding => 0;

    public virtual bool FitsPositions => false;

    public virtual bool MasksFrames => false;

    /// <summary>True where training sees other numbers at each draw.</summary>
    public abstract bool Augments { get; }

    /// <summary>How rows become numbers, in words that a resumed run must find the same.</summary>
    public string Settings => _settings ??= JsonSerializer.Serialize(Choices, _json);

    /// <summary>What decides how a row is seen in training, by name.</summary>
    protected abstract Dictionary<string, object?> Choices { get; }

    /// <summary>Decodes a file's bytes.</summary>
    /// <param name="encoded">The bytes.</param>
    /// <param name="source">Where they come from, for messages.</param>
    /// <exception cref="FormatException">They cannot be decoded.</exception>
    public abstract T Decode(byte[] encoded, string source);

    /// <summary>Refuses what can be decoded but not used.</summary>
    /// <param name="media">The decoded row.</param>
    /// <exception cref="FormatException">It cannot be used.</exception>
    public virtual void Check(T media)
    {
    }

    /// <summary>Hash of a value that came decoded.</summary>
    /// <param name="media">The decoded row.</param>
    public abstract byte[] Fingerprint(T media);

    /// <summary>Bytes of a decoded row.</summary>
    /// <param name="media">The decoded row.</param>
    public abstract long SizeOf(T media);

    /// <summary>Tokens that the network makes of a row, about.</summary>
    /// <param name="media">The decoded row.</param>
    public virtual int Tokens(T media) => FixedTokens!.Value;

    /// <summary>Makes what the network reads.</summary>
    /// <param name="media">The decoded row.</param>
    /// <param name="draw">What augmentation draws from; null for none.</param>
    /// <param name="place">Gives the place to write to.</param>
    public abstract void Make(T media, ulong? draw, InputPlace place);

    /// <summary>Mixes the rows of a training batch with one another: see <see cref="ExampleInput.Mix"/>.</summary>
    public virtual float[]? Mix(Span<float> values, IReadOnlyList<long> shape, ulong draw) => null;

    public override Example Encode(MediaRow<T> row, long number = -1, int label = 0) =>
        new() { Input = new MediaInput<T>(this, row), Label = label, Row = number };

    public override RowCollector<MediaRow<T>> Collect() => new Collector(this, room);

    // Every row is read through before training, so that a bad one is found in the first minute and not in the last hour.
    private sealed class Collector(MediaEncoder<T> encoder, long room) : RowCollector<MediaRow<T>>
    {
        private readonly List<Example> _rows = [];

        public override void Add(MediaRow<T> row, long number, int label) => _rows.Add(encoder.Encode(row with { Number = number }, number, label));

        public override CollectedRows Finish(IChannel channel)
        {
            var failures = new UnreadableInputException?[_rows.Count];
            var kept = new MediaRoom(room);
            Parallelly.For(_rows.Count, (r, state) =>
            {
                try
                {
                    ((MediaInput<T>)_rows[r].Input!).Prepare(kept);
                }
                catch (UnreadableInputException e)
                {
                    failures[r] = e;
                    // The rows before it are still looked at, so that the first bad row is the one that is named.
                    if (!encoder.SkipsUnreadable) state.Break();
                }
            });
            UnreadableInputException? first = failures.FirstOrDefault(f => f is not null);
            if (first is not null && !encoder.SkipsUnreadable) throw first;
            Example[] rows = first is null ? [.. _rows] : [.. _rows.Where((_, r) => failures[r] is null)];
            long skipped = _rows.Count - rows.Length;
            if (skipped > 0) channel.Warning(MessageSensitivity.None, $"{skipped} of {_rows.Count} {encoder.Plural} cannot be read and are left out, the first: {first!.Message}");
            channel.Info(MessageSensitivity.None, FormattableString.Invariant($"{rows.Length} {encoder.Plural} read through, {kept.Taken / 1048576.0:0.0} MiB of them kept decoded."));
            return new CollectedRows(rows, skipped);
        }
    }
}
