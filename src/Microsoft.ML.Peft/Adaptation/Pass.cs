// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

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

    /// <summary>A precision in place of the model's; null for that.</summary>
    internal Precision? Instead { get; init; }

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
    internal void Share(Tensor x, params ReadOnlySpan<Projection> sites)
    {
        Together = SharedProduct.Of(x, this, sites);
        (_shareInput, _int8Rows) = (x, null);
    }

    private Tensor? _shareInput, _int8Rows;

    /// <summary>The input that projections share, in int8; null for one that nobody said is shared.</summary>
    internal Tensor? Int8Rows(Tensor x) => ReferenceEquals(x, _shareInput) ? _int8Rows ??= FrozenLinear.Int8Rows(x) : null;

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

    /// <summary>True where recorded masks are dropped by.</summary>
    internal bool DropsByHand => Training && DropWith is not null;

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
