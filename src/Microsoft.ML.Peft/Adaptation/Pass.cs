// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Rows and columns of the places of a map, which stand in a sequence row by row.</summary>
/// <param name="Rows">Rows.</param>
/// <param name="Columns">Columns.</param>
/// <param name="WholeWindows">See <see cref="Backbones.TokenBatch.WholeWindows"/>.</param>
public sealed record MapGrid(long Rows, long Columns, bool WholeWindows = false)
{
    /// <summary>Number of places.</summary>
    public long Places => Rows * Columns;
}

/// <summary>Which tokens of a padded batch are real.</summary>
public sealed class Layout
{
    /// <summary>Makes the layout of a batch.</summary>
    /// <param name="mask">1 for real tokens, 0 for padding, int64 or bool <c>[batch, tokens]</c>.</param>
    /// <param name="padded">False where it is known that no token is padding (saves the mask everywhere).</param>
    /// <param name="inserted">Tokens of each row that are not the row's own (prompts).</param>
    /// <param name="insertedAt">Where those stand: the number of own tokens before them.</param>
    /// <param name="readsInserted">True where the first inserted token stands for the row.</param>
    public Layout(Tensor mask, bool padded = true, int inserted = 0, int insertedAt = 0, bool readsInserted = false)
    {
        Mask = mask;
        Padded = padded;
        Inserted = inserted;
        InsertedAt = insertedAt;
        ReadsInserted = readsInserted;
    }

    /// <summary>1 for real tokens, 0 for padding, <c>[batch, tokens]</c>.</summary>
    public Tensor Mask { get; }

    /// <summary>True where the batch has padding.</summary>
    public bool Padded { get; }

    /// <summary>The map that the rows' own tokens are the places of, in networks of stages; else null.</summary>
    public MapGrid? Grid { get; init; }

    /// <summary>Number of tokens that are not the row's own; they stand together.</summary>
    public int Inserted { get; }

    /// <summary>Number of own tokens before the inserted ones.</summary>
    public int InsertedAt { get; }

    /// <summary>True where heads that read the first token read an inserted one, as Hugging Face's task models do.</summary>
    public bool ReadsInserted { get; }

    /// <summary>Place of the token that stands for the row in heads that read the first token.</summary>
    public int First => InsertedAt == 0 && !ReadsInserted ? Inserted : 0;

    /// <summary>The layout with more tokens, all of them real.</summary>
    /// <param name="count">Number of tokens.</param>
    /// <param name="at">Number of own tokens before them.</param>
    /// <param name="readsInserted">True where the first of them stands for the row.</param>
    /// <exception cref="NotSupportedException">Other tokens were inserted at another place.</exception>
    public Layout Insert(int count, int at, bool readsInserted = false)
    {
        if (Inserted > 0 && at != InsertedAt)
            throw new NotSupportedException($"Tokens stand after {InsertedAt} own tokens already; others after {at} cannot be inserted too. Give both prompts the same order.");
        Tensor front = Mask.narrow(1, 0, at), rest = Mask.narrow(1, at, Tokens - at);
        Tensor mask = cat([front, ones([Batch, count], dtype: Mask.dtype, device: Mask.device), rest], 1);
        return new Layout(mask, Padded, Inserted + count, at, ReadsInserted || readsInserted) { Past = Past, Grid = Grid };
    }

    /// <summary>The row's own tokens of <c>[batch, tokens, ...]</c>: without the inserted ones.</summary>
    /// <param name="x">Anything with a place a token, the inserted ones included.</param>
    public Tensor Own(Tensor x)
    {
        if (Inserted == 0) return x;
        Tensor rest = x.narrow(1, InsertedAt + Inserted, x.shape[1] - InsertedAt - Inserted);
        return InsertedAt == 0 ? rest : cat([x.narrow(1, 0, InsertedAt), rest], 1);
    }

    /// <summary>The mask of cached tokens that stand before these, <c>[batch, cached]</c>; null without.</summary>
    public Tensor? Past { get; init; }

    /// <summary>Number of cached tokens.</summary>
    public long PastTokens => Past?.shape[1] ?? 0;

    /// <summary>Rows in the batch.</summary>
    public long Batch => Mask.shape[0];

    /// <summary>Tokens in a padded row.</summary>
    public long Tokens => Mask.shape[1];

    /// <summary>The layout of some rows of the batch.</summary>
    /// <param name="rows">Row numbers, int64 <c>[rows]</c>.</param>
    public Layout Rows(Tensor rows) => new(Mask.index_select(0, rows), Padded, Inserted, InsertedAt, ReadsInserted) { Past = Past?.index_select(0, rows), Grid = Grid };

    /// <summary>Added to attention scores: 0 for real keys, the lowest number for padding, <c>[batch, 1, 1, tokens]</c>; null without padding.</summary>
    /// <param name="dtype">Type of the scores.</param>
    public Tensor? KeyBias(ScalarType dtype)
    {
        if (!Padded) return null;
        if (_keyBias is not null && _keyBias.dtype == dtype) return _keyBias;
        return _keyBias = ((1.0 - Mask.to_type(dtype)) * Lowest(dtype)).unsqueeze(1).unsqueeze(1);
    }

    /// <summary>
    /// As <see cref="KeyBias"/>, and no token sees a later one: <c>[1 or batch, 1, tokens, cached + tokens]</c>; null where a
    /// single token sees all.
    /// </summary>
    /// <param name="dtype">Type of the scores.</param>
    public Tensor? CausalBias(ScalarType dtype)
    {
        if (Tokens == 1 && !Padded) return null;
        if (_causalBias is not null && _causalBias.dtype == dtype) return _causalBias;
        Tensor seen = ones([Tokens, PastTokens + Tokens], dtype: dtype, device: Mask.device).tril(PastTokens).unsqueeze(0);   // [1, tokens, keys]
        if (Padded) seen = seen * (Past is null ? Mask : cat([Past, Mask], 1)).to_type(dtype).unsqueeze(1);
        return _causalBias = ((1.0 - seen) * Lowest(dtype)).unsqueeze(1);
    }

    /// <summary>How many tokens of each row are real, where a bias says nothing but that the others are padding at the end; else null.</summary>
    /// <param name="bias">What is added to attention scores.</param>
    internal int[]? LengthsOf(Tensor? bias) => bias is not null && ReferenceEquals(bias, _keyBias) ? (_lengths ??= CountLengths()).Length == Batch ? _lengths : null : null;

    // Empty where padding stands elsewhere than at the end.
    private int[] CountLengths()
    {
        if (Mask.device_type != DeviceType.CPU || Mask.dtype != ScalarType.Int64) return [];
        using Tensor together = Mask.contiguous();
        ReadOnlySpan<long> mask = MemoryMarshal.Cast<byte, long>(together.bytes);
        var lengths = new int[Batch];
        int tokens = (int)Tokens;
        for (int row = 0; row < lengths.Length; row++)
        {
            ReadOnlySpan<long> own = mask.Slice(row * tokens, tokens);
            int length = own.IndexOf(0L);
            lengths[row] = length < 0 ? tokens : length;
            if (length >= 0 && own[length..].ContainsAnyExcept(0L)) return [];
        }
        return lengths;
    }

    private Tensor? _keyBias, _causalBias;
    private int[]? _lengths;

    // The lowest finite number, not -inf: a row that is all padding must not become NaN.
    private static double Lowest(ScalarType dtype) => dtype == ScalarType.Float16 ? -65504.0 : -3.3895313892515355e38;

    internal IEnumerable<Tensor> Tensors => new[] { Mask, Past, _keyBias, _causalBias }.OfType<Tensor>();
}

/// <summary>
/// The context of one forward pass: which patches are worn, whether it trains, its random numbers, and what many sites
/// share. A pass belongs to one thread and one batch.
/// </summary>
public sealed class Pass
{
    private static readonly object _encoded = new();

    private Dictionary<object, object> _shared = [];
    private ulong _segmentKey, _masks;

    /// <summary>Makes a pass over the bare backbone.</summary>
    public Pass() : this(PatchTable.Empty)
    {
    }

    /// <summary>Makes a pass that wears the given patches.</summary>
    /// <param name="patches">One patch a site.</param>
    /// <param name="training">True to drop out.</param>
    /// <param name="seed">Mixed into the random numbers of each segment, so that any segment can be run again; null leaves the generator alone.</param>
    public Pass(PatchTable patches, bool training = false, ulong? seed = null)
    {
        Patches = patches;
        Training = training;
        Seed = seed;
    }

    /// <summary>The patches that are worn.</summary>
    public PatchTable Patches { get; }

    /// <summary>True while training: dropout is on.</summary>
    public bool Training { get; }

    /// <summary>Key of the random numbers of this pass, or null.</summary>
    public ulong? Seed { get; }

    /// <summary>True to run each layer again in the backward pass instead of keeping its activations.</summary>
    public bool Checkpointing { get; init; }

    /// <summary>In what numbers products with frozen weights are made. Set by <see cref="AdaptedModel.Forward"/> as the model says.</summary>
    public Precision Precision { get; internal set; }

    /// <summary>True to return the hidden states of all layers.</summary>
    public bool KeepHiddenStates { get; set; }

    /// <summary>
    /// True where nothing but each row's own first token is read after the last layer: that layer then makes no other where
    /// nothing it wears could tell. Set by <see cref="AdaptedModel.Forward"/> as the head says.
    /// </summary>
    public bool FirstTokenOnly { get; internal set; }

    /// <summary>Which tokens are real; set by the backbone at the start and by sequence patches.</summary>
    public Layout Layout { get; set; } = null!;

    /// <summary>Which task each row belongs to, int64 <c>[batch]</c>; null where the batch does not say. Set by the backbone.</summary>
    public Tensor? TaskIds { get; internal set; }

    /// <summary>Number of the layer that runs, from 0; -1 before the first.</summary>
    public int Layer { get; private set; } = -1;

    /// <summary>Keys and values of the tokens before these, to which a decoder adds those of this pass; null for none.</summary>
    public KeyValueCache? Cache { get; init; }

    /// <summary>The encoder's final states <c>[batch, tokens, hidden]</c>, which a decoder's attention reads; null before and without a decoder.</summary>
    public Tensor? Encoded => (Tensor?)_shared.GetValueOrDefault(_encoded);

    /// <summary>Which of the encoder's tokens are real; null before and without a decoder.</summary>
    public Layout? EncodedLayout { get; private set; }

    internal void Encode(Tensor states, Layout layout) => (_shared[_encoded], EncodedLayout) = (states, layout);

    /// <summary>The patch that is worn at a site, or null.</summary>
    /// <typeparam name="T">Kind of patch that fits the site.</typeparam>
    /// <param name="site">A site of the backbone.</param>
    public T? Patch<T>(Site site) where T : Patch => (T?)Patches[site];

    /// <summary>Makes a value at its first use in this pass and gives the same value afterwards.</summary>
    /// <param name="key">Who asks.</param>
    /// <param name="make">Makes the value: a tensor, several, or a tuple of them (others must live outside of the layer's scope).</param>
    public T Once<T>(object key, Func<T> make) where T : class
    {
        if (_shared.TryGetValue(key, out object? value)) return (T)value;
        T made = make();
        _shared[key] = made;
        return made;
    }

    private readonly HashSet<object> _done = [];

    /// <summary>True at the first call with a key, also where a layer runs again in the backward pass: for what a pass does once.</summary>
    internal bool FirstTime(object key) => _done.Add(key);

    /// <summary>What projections of one input share, until the next ones do.</summary>
    internal SharedProduct? Together { get; private set; }

    /// <summary>Tells that some projections are about to read the same input, so that they may share products.</summary>
    /// <param name="x">Their input.</param>
    /// <param name="sites">The projections.</param>
    internal void Share(Tensor x, params ReadOnlySpan<Projection> sites) => Together = SharedProduct.Of(x, this, sites);

    /// <summary>Repeats the batch: what follows in this pass has the given rows.</summary>
    internal void Repeat(Tensor rows) => (Layout, TaskIds) = (Layout.Rows(rows), TaskIds?.index_select(0, rows));

    /// <summary>The group of rows that runs by itself right now, or -1 for the whole batch; see <see cref="RowPatches"/>.</summary>
    internal int Group { get; private set; } = -1;

    /// <summary>Narrows the pass to a group of rows, until the result is disposed.</summary>
    internal GroupScope Narrow(int group, Tensor rows)
    {
        var scope = new GroupScope(this, Layout, TaskIds, Encoded, EncodedLayout, Group);
        (Layout, TaskIds, Group) = (Layout.Rows(rows), TaskIds?.index_select(0, rows), group);
        if (Encoded is { } states) Encode(states.index_select(0, rows), EncodedLayout!.Rows(rows));
        return scope;
    }

    internal readonly struct GroupScope(Pass pass, Layout layout, Tensor? taskIds, Tensor? encoded, Layout? encodedLayout, int group) : IDisposable
    {
        public void Dispose()
        {
            (pass.Layout, pass.TaskIds, pass.Group) = (layout, taskIds, group);
            if (encoded is not null) pass.Encode(encoded, encodedLayout!);
        }
    }

    /// <summary>The shared values as they are now.</summary>
    internal Dictionary<object, object> Shared() => new(_shared);

    /// <summary>Those of shared values that have a graph: what a part of the network reads beside its input.</summary>
    internal static Tensor[] WithGraph(Dictionary<object, object> shared) =>
        [.. shared.Values.SelectMany(Tensors).Where(t => t.requires_grad).Distinct<Tensor>(ReferenceEqualityComparer.Instance)];

    /// <summary>Runs a body whose shared values are its own.</summary>
    /// <param name="shared">Those that it finds.</param>
    /// <param name="instead">Tensors that it sees in the place of some of them.</param>
    /// <param name="body">The body.</param>
    internal T Isolated<T>(Dictionary<object, object> shared, IReadOnlyDictionary<Tensor, Tensor> instead, Func<T> body)
    {
        Dictionary<object, object> outer = _shared;
        _shared = shared.ToDictionary(p => p.Key, p => Replaced(p.Value, instead));
        try
        {
            return body();
        }
        finally
        {
            _shared = outer;
        }
    }

    /// <summary>
    /// Runs a part of the network in a dispose scope of its own. What the backward pass needs it keeps itself; all else is
    /// freed at the part's end, for the next part to reuse.
    /// </summary>
    internal Tensor Scoped(Func<Tensor> part)
    {
        using var scope = NewDisposeScope();
        Tensor output = part();
        if (scope.Contains(output)) scope.MoveToOuter(output);
        KeepShared(scope);
        return output;
    }

    /// <summary>Moves what later parts of the pass read out of a scope that is about to end.</summary>
    internal void KeepShared(DisposeScope scope)
    {
        foreach (Tensor tensor in Layout.Tensors.Concat(EncodedLayout?.Tensors ?? []).Concat(_shared.Values.SelectMany(Tensors)))
            if (scope.Contains(tensor)) scope.MoveToOuter(tensor);
    }

    private static IEnumerable<Tensor> Tensors(object value) => value switch
    {
        Tensor tensor => [tensor],
        IEnumerable<Tensor> tensors => tensors,
        System.Runtime.CompilerServices.ITuple tuple => Enumerable.Range(0, tuple.Length).SelectMany(i => tuple[i] is { } item ? Tensors(item) : []),
        _ => [],
    };

    private static object Replaced(object value, IReadOnlyDictionary<Tensor, Tensor> instead) => value switch
    {
        Tensor tensor => instead.GetValueOrDefault(tensor, tensor),
        Tensor[] tensors => Array.ConvertAll(tensors, t => instead.GetValueOrDefault(t, t)),
        IEnumerable<Tensor> tensors => tensors.Select(t => instead.GetValueOrDefault(t, t)).ToList(),
        System.Runtime.CompilerServices.ITuple tuple => Activator.CreateInstance(tuple.GetType(),
            [.. Enumerable.Range(0, tuple.Length).Select(i => tuple[i] is { } item ? Replaced(item, instead) : null)])!,
        _ => value,
    };

    /// <summary>Drops entries while training; gives x itself otherwise, without a copy.</summary>
    /// <param name="x">Any tensor.</param>
    /// <param name="probability">Share of entries dropped, in [0, 1).</param>
    public Tensor Dropout(Tensor x, double probability) =>
        !Training || probability <= 0 ? x
        : DropWith is not null ? DropWith(x, probability)
        : Seed is not null && DropoutMask.Fits(x) ? DropoutMask.Apply(x, probability, _segmentKey + ++_masks)
        : nn.functional.dropout(x, probability, true);

    /// <summary>True where nothing is dropped, or a key alone says what: kernels can make such a mask themselves.</summary>
    /// <param name="probability">Share of entries dropped.</param>
    internal bool CanKey(double probability) => !Training || probability <= 0 || (DropWith is null && Seed is not null);

    /// <summary>The mask that <see cref="Dropout"/> would draw next.</summary>
    /// <param name="probability">Share of entries dropped.</param>
    internal NativeDropout Mask(double probability) =>
        Training && probability > 0 ? NativeDropout.Of(probability, _segmentKey + ++_masks) : default;

    /// <summary>Standard normal numbers for a patch that adds noise; while training they follow the seed and the segment.</summary>
    /// <param name="shape">Shape.</param>
    /// <param name="device">Where they go.</param>
    /// <returns>Numbers in float32.</returns>
    public Tensor Noise(long[] shape, Device device) => NoiseWith?.Invoke(shape) ?? randn(shape, device: device);

    /// <summary>Gives noise in libtorch's place: recorded numbers, in tests.</summary>
    internal Func<long[], Tensor>? NoiseWith { get; init; }

    /// <summary>Drops entries in libtorch's place: recorded masks, in tests.</summary>
    internal Func<Tensor, double, Tensor>? DropWith { get; init; }

    /// <summary>Starts a segment of the network: its random numbers depend on the seed and the segment alone.</summary>
    /// <param name="segment">0 for the embeddings, layer + 1 for a layer, and on.</param>
    public void BeginSegment(int segment)
    {
        Layer = segment - 1;
        if (Seed is not { } seed || !Training) return;
        (_segmentKey, _masks) = (Mix(unchecked(seed + (ulong)segment * 0x9E3779B97F4A7C15UL)), 0);
        long key = unchecked((long)_segmentKey);
        random.manual_seed(key);
        if (Patches.Device == DeviceType.CUDA) cuda.manual_seed_all(key);
    }

    /// <summary>A 64-bit mixer (SplitMix64's finisher): neighbours in, unrelated numbers out.</summary>
    /// <param name="x">Any number.</param>
    public static ulong Mix(ulong x)
    {
        x += 0x9E3779B97F4A7C15UL;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9UL;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBUL;
        return x ^ (x >> 31);
    }
}

/// <summary>One patch a site, immutable: what a pass wears.</summary>
public sealed class PatchTable
{
    private readonly Patch?[] _patches;

    /// <summary>No patch anywhere.</summary>
    public static PatchTable Empty { get; } = new([]);

    /// <summary>Makes a table.</summary>
    /// <param name="patches">Pairs of site and patch; at most one a site.</param>
    /// <param name="device">Where the network runs.</param>
    /// <exception cref="ArgumentException">A site has two patches.</exception>
    public PatchTable(IEnumerable<KeyValuePair<Site, Patch>> patches, DeviceType device = DeviceType.CPU)
    {
        Device = device;
        List<KeyValuePair<Site, Patch>> list = [.. patches];
        _patches = new Patch?[list.Count == 0 ? 0 : list.Max(p => p.Key.Index) + 1];
        LowestTrainable = int.MaxValue;
        CanRunAgain = list.All(p => p.Value.CanRunAgain);
        PositionShift = list.Select(p => p.Value).OfType<AttentionPatch>().Select(p => p.PositionShift).DefaultIfEmpty().Max();
        foreach ((Site site, Patch patch) in list)
        {
            if (_patches[site.Index] is not null)
                throw new ArgumentException($"Two patches at site {site.Name}; stack them into one first.");
            _patches[site.Index] = patch;
            if (patch.Trainable) LowestTrainable = Math.Min(LowestTrainable, site.Layer);
        }
    }

    /// <summary>Where the network runs.</summary>
    public DeviceType Device { get; }

    /// <summary>The lowest layer with a trainable patch (-1: the embeddings); <see cref="int.MaxValue"/> for none.</summary>
    public int LowestTrainable { get; }

    /// <summary>True where layers may run again in the backward pass in place of keeping their activations.</summary>
    public bool CanRunAgain { get; } = true;

    /// <summary>Positions by which the row's own tokens move: keys that are worn in front of them and count as tokens.</summary>
    public int PositionShift { get; }

    /// <summary>The patch at a site, or null.</summary>
    /// <param name="site">A site of the backbone.</param>
    public Patch? this[Site site] => (uint)site.Index < (uint)_patches.Length ? _patches[site.Index] : null;
}
