// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>
/// One case of fixtures/vision-audio that runs a network. It keeps account of the tensors that were looked at: what a test
/// does not read fails by name.
/// </summary>
internal sealed class VisionCase : IDisposable
{
    private readonly HashSet<string> _read = new(StringComparer.Ordinal);
    private readonly FixtureCase _case;

    /// <summary>Opens a case.</summary>
    /// <param name="folder">Its folder.</param>
    /// <param name="model">Another folder for its network; null for its own.</param>
    public VisionCase(string folder, string? model = null)
    {
        _case = new FixtureCase(folder);
        Model = CheckpointFolder.Open(model ?? ModelFolder(folder) ?? throw new AssertFailedException($"{folder} has no model"));
        Config = BackboneLoader.ReadConfig(Model.Files);
        Tolerance = _case.Json.GetProperty("tolerance").GetDouble();
    }

    /// <summary>The folder of the case's network: its own, or the base that it names; null for cases without.</summary>
    public static string? ModelFolder(string folder)
    {
        string? other = (string?)JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "case.json")))!["base"];
        string model = other is null ? Path.Combine(folder, "model") : Path.Combine(Path.GetDirectoryName(folder)!, other);
        return File.Exists(Path.Combine(model, "config.json")) ? model : null;
    }

    /// <summary>The <c>model_type</c> of a folder's network; null for cases without.</summary>
    public static string? ModelType(string folder) => ModelFolder(folder) is { } model
        ? (string?)JsonNode.Parse(File.ReadAllText(Path.Combine(model, "config.json")))!["model_type"]
        : null;

    public string Name => _case.Name;

    /// <summary>The call that made the reference values.</summary>
    public string Api => _case.Json.GetProperty("api").GetString()!;

    public CheckpointFolder Model { get; }

    /// <summary>The network's config.json.</summary>
    public JsonObject Config { get; }

    public double Tolerance { get; }

    public Worst Worst { get; } = new();

    /// <summary>True where positions are to be fitted to the size of the images.</summary>
    public bool Interpolates => Api.Contains("interpolate_pos_encoding=True", StringComparison.Ordinal);

    public bool Has(string tensor) => _case.Has(tensor);

    /// <summary>A tensor of the case; it counts as read.</summary>
    public Tensor this[string tensor]
    {
        get
        {
            _read.Add(tensor);
            return _case[tensor];
        }
    }

    /// <summary>Names of the tensors that begin in a way, without that beginning.</summary>
    public IEnumerable<string> Named(string beginning) =>
        _case.Names.Where(n => n.StartsWith(beginning, StringComparison.Ordinal)).Select(n => n[beginning.Length..]);

    public void Compare(string tensor, Tensor found, string how = "") => Worst.Compare($"{Name} {tensor}{how}", found, this[tensor], Tolerance);

    /// <summary>Compares where the case has the tensor.</summary>
    public void CompareIfThere(string tensor, Func<Tensor> found)
    {
        if (Has(tensor)) Compare(tensor, found());
    }

    /// <summary>Compares all of a pass's hidden states that the case has.</summary>
    /// <param name="states">Hidden states.</param>
    /// <param name="beginning">What stands before their names.</param>
    public void CompareStates(IReadOnlyList<Tensor> states, string beginning = "")
    {
        for (int i = 0; Has($"{beginning}hidden_states.{i}"); i++) Compare($"{beginning}hidden_states.{i}", states[i]);
    }

    /// <summary>The case's images or sounds.</summary>
    public TokenBatch Batch() => Has("pixel_values")
        ? TokenBatch.OfImages(this["pixel_values"], Interpolates)
        : TokenBatch.OfSound(this[Has("input_values") ? "input_values" : "input_features"], Has("attention_mask") ? this["attention_mask"] : null);

    /// <summary>A classifier with the numbers of the file, as many classes as the case has scores.</summary>
    public SequenceClassificationHead Head(Backbone backbone)
    {
        var head = new SequenceClassificationHead(backbone, (int)this["logits"].shape[1]);
        CollectionAssert.AreEqual(Array.Empty<string>(), HeadWeights.Load(head, Model).ToArray());
        return head;
    }

    /// <summary>Compares the gradients of a loss, with activations kept and by checkpointing.</summary>
    /// <param name="backbones">Whose numbers are asked for a gradient.</param>
    /// <param name="others">Further numbers, by their names in the file.</param>
    /// <param name="loss">The loss, given a pass for each of the networks.</param>
    /// <param name="gradient">Finds a gradient that no single number has by its name; may give null.</param>
    public void CompareGradients(
        IReadOnlyList<Backbone> backbones, IEnumerable<NamedParameter> others, Func<Pass[], Tensor> loss, Func<string, Leaves, Tensor?>? gradient = null)
    {
        string[] wanted = [.. Named("grad.")];
        if (wanted.Length == 0 && !Has("loss")) return;
        using var leaves = new Leaves(backbones);
        foreach (NamedParameter parameter in others) leaves.Add(parameter.Name, parameter.Value);
        foreach (bool checkpointing in (bool[])[false, true])
        {
            leaves.Clear();
            // Reference values are those of a network that drops nothing.
            Pass[] passes = [.. leaves.Tables.Select(t => new Pass(t, training: checkpointing) { Checkpointing = checkpointing, DropWith = (x, _) => x })];
            Tensor value = loss(passes);
            string how = checkpointing ? " by checkpointing" : "";
            Compare("loss", value, how);
            value.backward();
            foreach (string name in wanted)
            {
                if ((gradient?.Invoke(name, leaves) ?? leaves.Gradient(name)) is { } found) Compare($"grad.{name}", found, how);
                else Worst.Fail($"{Name}: no number is named {name}");
            }
        }
    }

    /// <summary>Fails for each difference that is too large, and for each tensor that nothing looked at.</summary>
    public void Done(TestContext context)
    {
        foreach (string name in _case.Names.Where(n => !_read.Contains(n))) Worst.Fail($"{Name}: nothing looked at {name}");
        Worst.Done(context);
    }

    public void Dispose()
    {
        Model.Dispose();
        _case.Dispose();
    }
}

/// <summary>Every frozen number of some networks as a leaf that gets a gradient.</summary>
internal sealed class Leaves : IDisposable
{
    private readonly Dictionary<string, Tensor> _byName = new(StringComparer.Ordinal);
    private readonly List<Tensor> _copies = [];

    public Leaves(IReadOnlyList<Backbone> backbones)
    {
        foreach (Backbone backbone in backbones)
        {
            var patches = new Dictionary<Site, Patch>();
            foreach (WeightSite site in backbone.Sites.OfType<WeightSite>().Where(s => s is not Projection { TiedTo: not null }))
            {
                Tensor weight = Copy(backbone, site, site.Name + site.WeightSuffix, site.Weight);
                patches[site] = new CopyOf(weight, site.Bias is null ? null : Copy(backbone, site, site.BiasName, site.Bias));
            }
            // One matrix with two uses is one leaf.
            foreach (Projection tied in backbone.Sites.OfType<Projection>().Where(s => s.TiedTo is not null))
                patches[tied] = new CopyOf(_byName[tied.TiedTo!.Name + tied.TiedTo.WeightSuffix], null);
            Tables.Add(new PatchTable(patches));
        }
    }

    /// <summary>What a pass over each of the networks wears.</summary>
    public List<PatchTable> Tables { get; } = [];

    public void Add(string name, Tensor leaf) => _byName[name] = leaf;

    /// <summary>The gradient of a number, by its name in the file; null where there is none.</summary>
    public Tensor? Gradient(string name) => _byName.GetValueOrDefault(name)?.grad;

    public void Clear()
    {
        foreach (Tensor leaf in _byName.Values) leaf.grad?.fill_(0);
    }

    // Files are published with the prefix and without it.
    private Tensor Copy(Backbone backbone, Site site, string name, Tensor frozen)
    {
        Tensor copy = frozen.detach().clone().requires_grad_();
        _copies.Add(copy.DetachFromDisposeScope());
        _byName[backbone.PathOf(site)[..^site.Name.Length] + name] = copy;
        _byName.TryAdd(name, copy);
        return copy;
    }

    public void Dispose()
    {
        foreach (Tensor copy in _copies) copy.Dispose();
    }

    private sealed class CopyOf(Tensor weight, Tensor? own) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Weight;

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor frozen, Tensor? bias, Pass? pass) => (weight, own);
    }
}

/// <summary>Keeps the shares of an attention, <c>[batch, heads, tokens, keys]</c>.</summary>
internal sealed class ShareWatch : AttentionPatch
{
    public Tensor? Shares { get; private set; }

    public override bool Trainable => false;

    public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
    {
        Tensor scores = input.Query.matmul(input.Key.transpose(-1, -2)) / Math.Sqrt(input.Query.shape[^1]);
        Shares?.Dispose();
        Shares = (input.Bias is null ? scores : scores + input.Bias).softmax(-1).DetachFromDisposeScope();
        return next(input);
    }
}
