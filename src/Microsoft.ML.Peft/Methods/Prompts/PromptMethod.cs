// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Makes the learned rows of a pass: <c>[rows, width]</c>, or <c>[batch, rows, width]</c> where each row of the batch has its own.</summary>
/// <param name="pass">The running forward pass; null while folding.</param>
public delegate Tensor PromptRows(Pass? pass);

/// <summary>
/// Base of the methods that learn P virtual tokens while the backbone stays frozen: tokens in the sequence, or keys and
/// values in front of attention's own. None of them changes a weight, so none can be merged.
/// </summary>
public abstract class PromptMethod : PeftMethod
{
    /// <summary>Name of the table of learned rows, and its key in exchanged files.</summary>
    internal const string TableName = "prompt_encoder.embedding.weight", TableKey = "prompt_embeddings";

    /// <summary>P: number of virtual tokens; 1 or more.</summary>
    public int Length { get; set; } = 20;

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Family => "prompts";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override bool Mergeable => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-2;

    internal override string FilePrefix => "base_model.";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Length < 1) throw Invalid(nameof(Length), Length, "1 or more");
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        using var scope = NewDisposeScope();
        using var off = no_grad();
        PeftAdaptation adaptation = Make(backbone);
        try
        {
            Build(adaptation, seed);
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    /// <summary>Makes the empty adaptation; methods with hooks give one of their own class.</summary>
    /// <param name="backbone">The frozen network.</param>
    protected virtual PeftAdaptation Make(Backbone backbone) => new(this, backbone);

    /// <summary>Adds parameters and patches.</summary>
    /// <param name="adaptation">The adaptation that is made.</param>
    /// <param name="seed">Seed of the initial values.</param>
    protected abstract void Build(PeftAdaptation adaptation, long seed);

    /// <summary>Owns a parameter on the backbone's device. Weight decay pulls prompts towards nothing useful and is off.</summary>
    internal static NamedParameter Add(PeftAdaptation adaptation, string name, Tensor value, bool trainable = true, string? key = null, bool exchanged = true) =>
        adaptation.Add(new NamedParameter(name, value.to(adaptation.Backbone.Device), trainable) { Decay = false, FileKey = key ?? name, Exchanged = exchanged });

    /// <summary>A fresh linear map as PyTorch starts it, uniform in ±1/√in.</summary>
    internal static Func<Tensor, Tensor> AddLinear(PeftAdaptation adaptation, string name, long outputs, long inputs, long seed)
    {
        double bound = 1 / Math.Sqrt(inputs);
        NamedParameter weight = Add(adaptation, name + ".weight", new Draws(seed, name + ".weight").Uniform(bound, outputs, inputs));
        NamedParameter bias = Add(adaptation, name + ".bias", new Draws(seed, name + ".bias").Uniform(bound, outputs));
        return x => nn.functional.linear(x, weight.Value, bias.Value);
    }

    /// <summary>The same options in another object.</summary>
    internal T Copy<T>() where T : PromptMethod => (T)PeftMethods.FromJson(PeftMethods.ToJson(this));

    /// <summary>
    /// The folded form: the encoder has run once, and its table is what is left. Parameters that are in both forms keep
    /// their numbers.
    /// </summary>
    internal static PeftAdaptation Fold(PeftAdaptation adaptation, PromptMethod folded, IEnumerable<(string Name, Tensor Table)> tables)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        PeftAdaptation made = folded.Attach(adaptation.Backbone, 0);
        foreach ((string name, Tensor table) in tables) made.Find(name)!.Load(table.reshape(made.Find(name)!.Value.shape));
        foreach (NamedParameter parameter in made.Parameters)
            if (adaptation.Find(parameter.Name) is { } same && same.Value.shape.SequenceEqual(parameter.Value.shape) && tables.All(t => t.Name != parameter.Name))
                parameter.Load(same.Value);
        return made;
    }

    /// <summary>Reads what all prompts have: <c>num_virtual_tokens</c>.</summary>
    /// <param name="config">The whole adapter_config.json.</param>
    protected void ReadLength(JsonObject config) => Length = AdapterConfig.Get<int?>(config, "num_virtual_tokens", null)
        ?? throw new ArgumentException("adapter_config.json: the field 'num_virtual_tokens' is missing; expected is a whole number.", "num_virtual_tokens");

    /// <summary>Writes what all prompts have.</summary>
    /// <param name="config">The object to fill.</param>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="submodules">Tables of P rows: 1, or 2 with one for a decoder.</param>
    /// <param name="keys">True for the geometry of keys and values, false for that of tokens.</param>
    private protected void WriteGeometry(JsonObject config, Backbone backbone, int submodules, bool keys)
    {
        AttentionCore core = backbone.Sites.OfType<AttentionCore>().First();
        config["modules_to_save"] = null;
        config["num_attention_heads"] = keys ? core.KeyHeads : core.Heads;
        config["num_layers"] = PromptPlaces.Layers(backbone);
        config["num_transformer_submodules"] = submodules;
        config["num_virtual_tokens"] = Length;
        config["token_dim"] = keys ? core.KeyHeads * core.HeadWidth : backbone.Config.HiddenSize;
    }
}

/// <summary>Where prompts and prefixes go in a backbone.</summary>
internal static class PromptPlaces
{
    private const string DecoderPrefix = "decoder.", EncoderPrefix = "encoder.";

    /// <summary>True where an encoder stands before a decoder (T5).</summary>
    public static bool HasDecoder(Backbone backbone) => Cores(backbone).Any(c => InDecoder(c)) && Cores(backbone).Any(c => c.Name.StartsWith(EncoderPrefix, StringComparison.Ordinal));

    public static bool InDecoder(Site site) => site.Name.StartsWith(DecoderPrefix, StringComparison.Ordinal);

    /// <summary>Refuses networks whose attention learned keys do not fit.</summary>
    /// <exception cref="ArgumentException">There is no attention, it stays inside of windows, or its width differs from stage to stage.</exception>
    public static void NeedKeys(Backbone backbone)
    {
        string? why = !Cores(backbone).Any() ? "has no attention that could read learned keys"
            : Cores(backbone).Any(c => c.Windowed) ? "attends inside of windows, where learned keys have no place"
            : !backbone.HasOneWidth ? "has attention of other widths from stage to stage" : null;
        if (why is not null) throw new ArgumentException($"A {backbone.Config.ModelType} backbone {why}; use lora, or vpt where tokens fit.");
    }

    /// <summary>Layers of the network, of its encoder where it has both.</summary>
    public static int Layers(Backbone backbone) => HasDecoder(backbone) ? Encoder(backbone).Count : backbone.Config.LayerCount;

    /// <summary>Self-attention of the network, of its encoder where it has both.</summary>
    public static IReadOnlyList<AttentionCore> Encoder(Backbone backbone) =>
        [.. Cores(backbone).Where(c => c.Role == SiteRole.AttentionCore && !(HasDecoder(backbone) && InDecoder(c)))];

    /// <summary>Self-attention of the decoder of a network that has both.</summary>
    public static IReadOnlyList<AttentionCore> Decoder(Backbone backbone) =>
        [.. Cores(backbone).Where(c => c.Role == SiteRole.AttentionCore && HasDecoder(backbone) && InDecoder(c))];

    /// <summary>Attention of the decoder to the encoder.</summary>
    public static IReadOnlyList<AttentionCore> Cross(Backbone backbone) => [.. Cores(backbone).Where(c => c.Role == SiteRole.CrossAttentionCore)];

    /// <summary>The places where tokens enter: one, or an encoder's and a decoder's.</summary>
    public static IReadOnlyList<Sequence> Sequences(Backbone backbone, bool words)
    {
        if (!backbone.TakesTokens)
            throw new ArgumentException($"A {backbone.Config.ModelType} backbone works on maps, among whose places no prompts can stand; use lora, bottleneck or ssf.");
        Sequence[] all = [.. backbone.Sites.OfType<Sequence>()], embedded = [.. all.Where(s => s.Role == SiteRole.EmbeddingSequence)];
        Sequence[] raw = [.. all.Where(s => s.Role == SiteRole.WordSequence)];
        // Where nothing is added to the rows of the word table, the two places are one.
        return words && raw.Length > 0 ? raw : embedded;
    }

    /// <summary>The module that holds an attention core, e.g. <c>bert.encoder.layer.0.attention.self</c>: the home of its query projection.</summary>
    public static string AttentionPath(Backbone backbone, AttentionCore core)
    {
        Projection[] queries = [.. backbone.Sites.OfType<Projection>().Where(p => p.Layer == core.Layer && p.Role is SiteRole.Query or SiteRole.QueryKeyValue)];
        // A decoder's layer has two attentions.
        string module = core.Name[..(core.Name.LastIndexOf('.') + 1)];
        Projection query = queries.FirstOrDefault(p => p.Name.StartsWith(module, StringComparison.Ordinal) && p.Layer == core.Layer) ?? queries.First(p => p.Layer == core.Layer);
        string path = backbone.PathOf(query);
        return path[..path.LastIndexOf('.')];
    }

    private static IEnumerable<AttentionCore> Cores(Backbone backbone) => backbone.Sites.OfType<AttentionCore>();
}
