// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// A frozen network built of adaptable sites. It holds no state of a run and knows no method: everything that varies is
/// in the <see cref="Pass"/>, so many threads may run it at once and many adaptations share it.
/// </summary>
public abstract partial class Backbone : IDisposable
{
    // A constructor that throws leaves no object to dispose; the builder on the same thread frees its tensors.
    [ThreadStatic]
    private static List<Tensor>? _underConstruction;

    private readonly List<Site> _sites = [];
    private readonly List<Tensor> _owned = [];

    /// <summary>Makes an empty backbone.</summary>
    /// <param name="config">Its geometry.</param>
    protected Backbone(BackboneConfig config) => Config = config;

    /// <summary>Geometry and settings, from config.json.</summary>
    public BackboneConfig Config { get; private set; }

    /// <summary>All sites, in the order of the network.</summary>
    public IReadOnlyList<Site> Sites => _sites;

    /// <summary>Prefix of the base model's tensors in a task model's file, e.g. <c>bert</c>.</summary>
    public abstract string Prefix { get; }

    /// <summary>Tokens at the front of each row that stand for the row: 1 for BERT's [CLS], 0 for decoders, where no such token is.</summary>
    public virtual int LeadingTokens => 1;

    /// <summary>Where the weights are.</summary>
    public Device Device { get; protected set; } = CPU;

    /// <summary>The taps over all hidden states.</summary>
    public Taps Taps { get; private set; } = null!;

    /// <summary>The pooler's projection, or null where the file has none.</summary>
    public Projection? Pooler { get; protected set; }

    /// <summary>True where no token sees a later one (decoders): a row is read at its last token then, not at its first.</summary>
    public virtual bool Causal => false;

    /// <summary>True where norms stand behind the residual connections (BERT), false where they stand before each part.</summary>
    public virtual bool PostNorm => _sites.All(s => s.Role != SiteRole.FinalNorm);

    /// <summary>Number of frozen numbers.</summary>
    public long ParameterCount => _owned.Sum(t => t.numel()) + _quantised.Sum(q => q.Shape[0] * q.Shape[1])
        - _sites.OfType<BatchNorm>().Sum(norm => norm.Mean.numel() + norm.Variance.numel());

    /// <summary>Width of the hidden states at a layer: that of its stage where stages differ.</summary>
    /// <param name="layer">Layer number; below 0 for the embeddings, the layer count for what stands after.</param>
    public virtual int WidthAt(int layer) => Config.HiddenSize;

    /// <summary>True where the hidden states of all layers have the same width and the same places.</summary>
    public virtual bool HasOneWidth => true;

    /// <summary>False where the hidden states are the places of a map, among which no further tokens can stand.</summary>
    public virtual bool TakesTokens => true;

    /// <summary>
    /// The maps of the stages, <c>[batch, channels, rows, columns]</c>: that of the embeddings first, then each stage's at its end. The
    /// pass must have kept the hidden states.
    /// </summary>
    /// <param name="output">What <see cref="Forward"/> gave, with <see cref="BackboneOutput.HiddenStates"/>.</param>
    /// <exception cref="NotSupportedException">The network has no stages.</exception>
    public virtual IReadOnlyList<Tensor> StageMaps(BackboneOutput output) =>
        throw new NotSupportedException($"A {Config.ModelType} backbone has no stages with maps of their own.");

    /// <summary>Tensors of the file that the network does not use: heads of other tasks, buffers, or a sign of a wrong file.</summary>
    public IReadOnlyList<string> UnusedTensors { get; private set; } = [];

    internal void Placed(Device device, IReadOnlyList<string> unused)
    {
        Device = device;
        UnusedTensors = unused;
    }

    /// <summary>Registers a site.</summary>
    /// <typeparam name="T">Kind of site.</typeparam>
    /// <param name="site">The site.</param>
    protected T Add<T>(T site) where T : Site
    {
        site.Index = _sites.Count;
        _sites.Add(site);
        if (site is Taps taps) Taps = taps;
        if (_format is { } format && site is Projection projection) Quantise(projection, format);
        return site;
    }

    /// <summary>Builds a network; where that fails half-way, what it owned by then is freed.</summary>
    /// <param name="build">Makes the network.</param>
    /// <param name="format">How its linear maps are kept; null for dense.</param>
    internal static Backbone Built(Func<Backbone> build, WeightFormat? format = null)
    {
        List<Tensor>? outer = _underConstruction;
        List<Tensor> made = _underConstruction = [];
        WeightFormat? outerFormat = _format;
        _format = format;
        using var scope = NewDisposeScope();
        try
        {
            return build();
        }
        catch
        {
            foreach (Tensor tensor in made) tensor.Dispose();
            throw;
        }
        finally
        {
            _underConstruction = outer;
            _format = outerFormat;
        }
    }

    /// <summary>Takes ownership of a frozen tensor.</summary>
    /// <param name="tensor">The tensor.</param>
    protected Tensor Own(Tensor tensor)
    {
        tensor.requires_grad = false;
        _underConstruction?.Add(tensor);
        _owned.Add(tensor.DetachFromDisposeScope());
        return tensor;
    }

    /// <summary>Runs the network.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="pass">What the run wears; its layout is set here.</param>
    /// <exception cref="ArgumentException">A row is longer than the position table, or an id is outside the vocabulary.</exception>
    public BackboneOutput Forward(TokenBatch batch, Pass pass)
    {
        List<Tensor>? states = pass.KeepHiddenStates || ClassifierReadsHiddenStates || Taps.Wanted(pass) ? [] : null;
        if (states is not null) pass.FirstTokenOnly = false;
        BackboneOutput? encoder = null;
        Tensor hidden;
        if (Config.DecoderStart is { } start)
        {
            if (batch.Encoded is { } there) states?.AddRange(there.HiddenStates ?? []);
            encoder = batch.Encoded ?? Encode(batch, states, pass);
            pass.TaskIds = batch.TaskIds;
            hidden = Segment(start, Lowest(batch, pass), () => BeginDecoder(encoder, batch, pass), pass);
        }
        else
        {
            hidden = Begin(batch, pass);
        }
        int first = states?.Count ?? 0;
        hidden = RunLayers(hidden, Config.DecoderStart ?? 0, Config.LayerCount, states, Lowest(batch, pass), pass);
        pass.BeginSegment(Config.LayerCount + 1);
        hidden = states is null ? Finish(hidden, pass) : Taps.Forward(states, last => Finish(last, pass), pass);
        pass.Cache?.Extend(pass.Layout);
        return new BackboneOutput(hidden, pass.Layout, states?[first..]) { Encoder = encoder, Batch = batch };
    }

    /// <summary>Runs the encoder of a network of two stacks by itself: what a decoder reads step after step.</summary>
    /// <param name="batch">Tokens; the decoder's are not read.</param>
    /// <param name="pass">What the run wears; its layout is set here.</param>
    /// <exception cref="InvalidOperationException">The network has one stack.</exception>
    public BackboneOutput Encode(TokenBatch batch, Pass pass) => Config.DecoderStart is null
        ? throw new InvalidOperationException($"A {Config.ModelType} backbone is one stack of layers; use Forward.")
        : Encode(batch, pass.KeepHiddenStates || Taps.Wanted(pass) ? [] : null, pass);

    private BackboneOutput Encode(TokenBatch batch, List<Tensor>? states, Pass pass)
    {
        int end = Config.DecoderStart!.Value;
        Tensor hidden = RunLayers(Begin(batch, pass), 0, end, states, Lowest(batch, pass), pass);
        Tensor last = Segment(end, Lowest(batch, pass), () =>
        {
            pass.BeginSegment(Config.LayerCount + 2);
            return FinishEncoder(hidden, pass);
        }, pass);
        return new BackboneOutput(last, pass.Layout, states?[..]);
    }

    private Tensor Begin(TokenBatch batch, Pass pass)
    {
        pass.Layout = LayoutOf(batch, pass);
        pass.TaskIds = batch.TaskIds;
        return Segment(-1, Lowest(batch, pass), () => Embed(batch, pass), pass);
    }

    private Tensor BeginDecoder(BackboneOutput encoder, TokenBatch batch, Pass pass)
    {
        pass.BeginSegment(Config.LayerCount + 3);
        pass.Encode(encoder.Last, encoder.Layout);
        return EmbedDecoder(batch, pass);
    }

    private Tensor RunLayers(Tensor hidden, int from, int to, List<Tensor>? states, int lowest, Pass pass)
    {
        states?.Add(hidden);
        for (int layer = from; layer < to; layer++)
        {
            Tensor input = hidden;
            int number = layer;
            hidden = pass.Checkpointing && pass.Patches.CanRunAgain && layer >= lowest && pass.Training
                ? Checkpoint.Run(input, x => RunLayer(number, x, pass), pass)
                : Segment(layer, lowest, () => RunLayer(number, input, pass), pass);
            states?.Add(hidden);
        }
        return hidden;
    }

    private Tensor RunLayer(int layer, Tensor hidden, Pass pass)
    {
        pass.BeginSegment(layer + 1);
        return pass.Scoped(() => Layer(layer, hidden, pass));
    }

    // A gradient that is asked for of what comes in goes through everything.
    private static int Lowest(TokenBatch batch, Pass pass) => batch.WantsGradient ? -1 : pass.Patches.LowestTrainable;

    // Nothing below the lowest trainable patch needs a graph.
    private static Tensor Segment(int layer, int lowest, Func<Tensor> body, Pass pass)
    {
        if (layer == -1) pass.BeginSegment(0);
        if (layer >= lowest || !is_grad_enabled()) return body();
        using var off = no_grad();
        return body();
    }

    /// <summary>The first token through the pooler, <c>tanh(W h₀ + b)</c>, <c>[batch, hidden]</c>.</summary>
    /// <param name="output">What <see cref="Forward"/> gave.</param>
    /// <param name="pass">The same pass.</param>
    /// <exception cref="InvalidOperationException">The backbone has no pooler.</exception>
    public virtual Tensor Pool(BackboneOutput output, Pass pass)
    {
        if (Pooler is null) throw new InvalidOperationException($"This {Config.ModelType} backbone has no pooler; use mean pooling or the first token.");
        return Pooler.Forward(output.First(), pass).tanh();
    }

    /// <summary>
    /// What the family's own classifier of images or sounds reads, <c>[batch, <see cref="ClassifierWidth"/>]</c>: a class
    /// token, a mean of tokens, pooled maps. Its parameters are the head's, not the backbone's.
    /// </summary>
    /// <param name="output">What <see cref="Forward"/> gave.</param>
    /// <param name="pass">The same pass.</param>
    public virtual Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => output.First();

    /// <summary>True where <see cref="ClassifierFeatures"/> reads the states of all layers, which are kept then.</summary>
    private protected virtual bool ClassifierReadsHiddenStates => false;

    /// <summary>Mean of the row's own real tokens of a state, <c>[batch, hidden]</c>.</summary>
    private protected static Tensor MeanOfFrames(Tensor state, Layout layout)
    {
        Tensor own = layout.Own(state);
        if (!layout.Padded) return own.mean([1]);
        Tensor mask = layout.Own(layout.Mask).to_type(own.dtype).unsqueeze(-1);
        return (own * mask).sum(1) / mask.sum(1).clamp(1);
    }

    /// <summary>Width of <see cref="ClassifierFeatures"/>.</summary>
    public virtual int ClassifierWidth => Config.HiddenSize;

    /// <summary>True where <see cref="ClassifierFeatures"/> reads <see cref="BackboneOutput.First"/> and nothing else.</summary>
    public virtual bool ClassifierReadsFirstTokenOnly => LeadingTokens == 1 && Config.Input == BackboneInput.Text;

    /// <summary>Embeddings of a batch, <c>[batch, tokens, hidden]</c>.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="pass">The running forward pass.</param>
    protected abstract Tensor Embed(TokenBatch batch, Pass pass);

    /// <summary>One layer, <c>[batch, tokens, hidden]</c> to the same shape.</summary>
    /// <param name="layer">Layer number from 0.</param>
    /// <param name="hidden">Input.</param>
    /// <param name="pass">The running forward pass.</param>
    protected abstract Tensor Layer(int layer, Tensor hidden, Pass pass);

    /// <summary>What comes after the last layer (a final norm).</summary>
    /// <param name="hidden">Output of the last layer.</param>
    /// <param name="pass">The running forward pass.</param>
    protected virtual Tensor Finish(Tensor hidden, Pass pass) => hidden;

    /// <summary>Which tokens the network makes of a batch, and which of them are real.</summary>
    /// <param name="batch">Tokens, or images.</param>
    /// <param name="pass">The pass that is about to run.</param>
    protected virtual Layout LayoutOf(TokenBatch batch, Pass pass) =>
        new(batch.Mask, batch.Padded || pass.Cache is { Padded: true }) { Past = pass.Cache?.Mask };

    /// <summary>What comes after an encoder's last layer, in networks of two stacks.</summary>
    /// <param name="hidden">Output of the encoder's last layer.</param>
    /// <param name="pass">The running forward pass.</param>
    protected virtual Tensor FinishEncoder(Tensor hidden, Pass pass) => hidden;

    /// <summary>Embeddings of what a decoder reads, in networks of two stacks; sets the pass's layout to the decoder's.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="pass">The running forward pass; <see cref="Pass.Encoded"/> is there.</param>
    protected virtual Tensor EmbedDecoder(TokenBatch batch, Pass pass) =>
        throw new NotSupportedException($"A {Config.ModelType} backbone has no decoder.");

    /// <summary>Scores of every vocabulary entry, <c>[..., vocabulary]</c>, by the table or projection that the network has for them.</summary>
    /// <param name="hidden">Final hidden states <c>[..., hidden]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <exception cref="NotSupportedException">The network makes no such scores.</exception>
    public virtual Tensor VocabularyScores(Tensor hidden, Pass pass) =>
        throw new NotSupportedException($"A {Config.ModelType} backbone was loaded without a language head; load one that has it with languageHead: true.");

    /// <summary>A backbone of the same family over other weights at some sites; the rest is shared.</summary>
    /// <param name="replaced">New weight and bias a site; the new backbone takes handles of its own on them.</param>
    public Backbone With(IReadOnlyDictionary<Site, (Tensor Weight, Tensor? Bias)> replaced)
    {
        Backbone other = Built(() => Rebuild(new SharedWeights(this, replaced)));
        other.Placed(Device, UnusedTensors);
        foreach ((Site mine, Site theirs) in Sites.Zip(other.Sites))
            if (mine is WeightSite { Quantised: { } few } && !replaced.ContainsKey(mine)) other.Hold((WeightSite)theirs, few.Share());
        return other;
    }

    /// <summary>True where each layer has weights of its own under its number.</summary>
    private protected virtual bool LayersStandAlone => Config.DecoderStart is null;

    /// <summary>A network of some of this one's layers, in any order and as often as wanted; weights are shared.</summary>
    /// <param name="layers">Numbers of this network's layers.</param>
    /// <returns>A backbone of its own; dispose it when done, this one stays usable.</returns>
    /// <exception cref="ArgumentException">There is no such layer, or no layer is named.</exception>
    /// <exception cref="NotSupportedException">Layers of this family cannot be stacked anew: they are shared, in two stacks, or in stages.</exception>
    public Backbone Restacked(IReadOnlyList<int> layers)
    {
        if (layers.Count == 0 || layers.Any(layer => layer < 0 || layer >= Config.LayerCount))
            throw new ArgumentException($"The layers [{string.Join(", ", layers)}] cannot be stacked; this {Config.ModelType} backbone has the layers 0 to {Config.LayerCount - 1}.", nameof(layers));
        if (!LayersStandAlone)
            throw new NotSupportedException($"The layers of a {Config.ModelType} backbone cannot be stacked anew: they are shared, or in two stacks, or in stages of different widths.");
        Backbone other = BackboneLoader.Rebuild(Config with { LayerCount = layers.Count }, new RestackedWeights(new SharedWeights(this, new Dictionary<Site, (Tensor, Tensor?)>()), layers));
        other.Placed(Device, UnusedTensors);
        return other;
    }

    /// <summary>The same network over another source of weights.</summary>
    /// <param name="weights">Frozen tensors.</param>
    protected abstract Backbone Rebuild(IWeightSource weights);

    /// <summary>The full module path of a site inside a task model, e.g. <c>bert.encoder.layer.0.attention.self.query</c>.</summary>
    /// <param name="site">A site of this backbone.</param>
    public string PathOf(Site site) => Prefix.Length == 0 || site.AtRoot || site.Role == SiteRole.LanguageHead ? site.Name : $"{Prefix}.{site.Name}";

    /// <summary>The site of a Hugging Face module path, with or without the prefix; null where there is none.</summary>
    /// <param name="name">Module path.</param>
    public Site? FindSite(string name)
    {
        string stored = Checkpoints.ModuleNames.ToCheckpoint(Config.ModelType, name);
        string bare = stored.StartsWith(Prefix + ".", StringComparison.Ordinal) ? stored[(Prefix.Length + 1)..] : stored;
        return _sites.FirstOrDefault(s => s.Name == bare);
    }

    /// <inheritdoc/>
    public virtual void Dispose()
    {
        foreach (Projection projection in _sites.OfType<Projection>()) projection.Unpack();
        foreach (Tensor tensor in _owned) tensor.Dispose();
        _owned.Clear();
        foreach (QuantisedWeight quantised in _quantised) quantised.Dispose();
        _quantised.Clear();
        GC.SuppressFinalize(this);
    }
}
