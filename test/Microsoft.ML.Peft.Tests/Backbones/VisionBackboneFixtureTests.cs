// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>Every case of fixtures/vision-audio that runs a network that exists here; the others are listed by name.</summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class VisionBackboneFixtureTests
{
    public TestContext TestContext { get; set; } = null!;

    public static IEnumerable<object[]> Models
    {
        get
        {
            if (!Shared.Exists) yield break;
            foreach (string folder in Shared.Cases("vision-audio"))
                if (ModelType(folder) is { } type && BackboneLoader.ModelTypes.Contains(type)) yield return [Path.GetFileName(folder)];
        }
    }

    private static string? ModelFolder(string folder)
    {
        string? other = (string?)JsonNode.Parse(File.ReadAllText(Path.Combine(folder, "case.json")))!["base"];
        string model = other is null ? Path.Combine(folder, "model") : Path.Combine(Path.GetDirectoryName(folder)!, other);
        return File.Exists(Path.Combine(model, "config.json")) ? model : null;
    }

    private static string? ModelType(string folder) => ModelFolder(folder) is { } model
        ? (string?)JsonNode.Parse(File.ReadAllText(Path.Combine(model, "config.json")))!["model_type"]
        : null;

    [TestMethod]
    public void PublishedGeometriesHaveTheirParameters()
    {
        JsonObject counts = JsonNode.Parse(File.ReadAllText(Path.Combine(Shared.Root, "fixtures", "vision-audio", "parameter-counts.json")))!["counts"]!.AsObject();
        (string Name, string Config)[] known =
        [
            ("vit-base-patch16-224", """{"model_type": "vit"}"""),
            ("vit-large-patch16-224", """{"model_type": "vit", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}"""),
        ];
        int compared = 0;
        foreach ((string name, string config) in known)
        {
            if (counts[name]?["parts"]?["vit"] is not { } expected) continue;
            using var scope = NewDisposeScope();
            using Backbone backbone = BackboneLoader.Build(JsonNode.Parse(config)!.AsObject(), new Shapes());
            Assert.AreEqual((long)expected, backbone.ParameterCount, name);
            compared++;
        }
        Assert.IsGreaterThan(0, compared);
    }

    // Any shape in one number of memory, without a pooler.
    private sealed class Shapes : IWeightSource
    {
        public bool Has(string name) => !name.StartsWith("pooler", StringComparison.Ordinal);

        public Tensor Load(string name, params long[] shape) => empty([1]).expand(shape);
    }

    [TestMethod]
    public void CasesOfOtherKindsAreListed()
    {
        _ = Shared.Root;
        string[] all = [.. Shared.Cases("vision-audio").Select(f => Path.GetFileName(f)!)], here = [.. Models.Select(c => (string)c[0])];
        foreach (string name in all.Except(here)) TestContext.WriteLine($"{name}: a family of later work, or no network");
        TestContext.WriteLine($"{here.Length} of {all.Length} cases run");
        Assert.IsNotEmpty(here);
    }

    [TestMethod]
    [DynamicData(nameof(Models))]
    public void FamilyEqualsReference(string name)
    {
        using var c = new FixtureCase(Path.Combine(Shared.Fixtures, "vision-audio", name));
        using var scope = NewDisposeScope();
        using CheckpointFolder folder = CheckpointFolder.Open(ModelFolder(c.Folder)!);
        using Backbone backbone = BackboneLoader.Load(folder);
        var worst = new Worst();
        using (no_grad()) Forward(c, backbone, folder, worst);
        Gradients(c, backbone, folder, worst);
        worst.Done(TestContext);
    }

    private static TokenBatch Batch(FixtureCase c) => TokenBatch.OfImages(c["pixel_values"], interpolatePositions: c.Json.GetProperty("api").GetString()!.Contains("interpolate_pos_encoding=True", StringComparison.Ordinal));

    private static SequenceClassificationHead Head(FixtureCase c, Backbone backbone, CheckpointFolder folder)
    {
        var head = new SequenceClassificationHead(backbone, (int)c["logits"].shape[1]);
        CollectionAssert.AreEqual(Array.Empty<string>(), HeadWeights.Load(head, folder).ToArray());
        return head;
    }

    private static void Forward(FixtureCase c, Backbone backbone, CheckpointFolder folder, Worst worst)
    {
        double tolerance = c.Json.GetProperty("tolerance").GetDouble();
        void Compare(string name, Tensor found) => worst.Compare($"{c.Name} {name}", found, c[name], tolerance);
        var look = new Look();
        var pass = new Pass(new PatchTable([KeyValuePair.Create<Site, Patch>(backbone.Sites.OfType<AttentionCore>().First(), look)])) { KeepHiddenStates = true };
        BackboneOutput output = backbone.Forward(Batch(c), pass);
        for (int i = 0; c.Has($"hidden_states.{i}"); i++) Compare($"hidden_states.{i}", output.HiddenStates![i]);
        if (c.Has("last_hidden_state")) Compare("last_hidden_state", output.Last);
        if (c.Has("pooler_output")) Compare("pooler_output", backbone.Pool(output, pass));
        if (c.Has("attentions.0")) Compare("attentions.0", look.Shares!.narrow(0, 0, 1));
        look.Shares!.Dispose();
        foreach (string name in c.Names.Where(n => n.StartsWith("positions.", StringComparison.Ordinal))) Compare(name, Positions(backbone, name["positions.".Length..]));
        if (!c.Has("logits")) return;
        using SequenceClassificationHead head = Head(c, backbone, folder);
        Compare("logits", head.Forward(backbone, output, pass));
        // Only the class token is read: the last layer may make no other.
        using var model = new AdaptedModel(backbone, null, head);
        Compare("logits", model.Forward(Batch(c), new Pass()));
    }

    // Positions of a size: embeddings with them of images of zeros, less what such patches are.
    private static Tensor Positions(Backbone backbone, string size)
    {
        long[] sides = [.. size.Split('x').Select(long.Parse)];
        Tensor pixels = zeros([1, 3, sides[0], sides[1]]);
        BackboneOutput output = backbone.Forward(TokenBatch.OfImages(pixels, interpolatePositions: true), new Pass { KeepHiddenStates = true });
        Tensor positioned = output.HiddenStates![0], patch = backbone.Sites.OfType<Convolution>().Single().Bias!, first = backbone.Sites.OfType<Constant>().Single(s => s.Role == SiteRole.ClassToken).Weight;
        return cat([positioned.narrow(1, 0, 1) - first, positioned.narrow(1, 1, positioned.shape[1] - 1) - patch], 1);
    }

    private static void Gradients(FixtureCase c, Backbone backbone, CheckpointFolder folder, Worst worst)
    {
        string[] wanted = [.. c.Names.Where(n => n.StartsWith("grad.", StringComparison.Ordinal))];
        if (wanted.Length == 0) return;
        double tolerance = c.Json.GetProperty("tolerance").GetDouble();
        using SequenceClassificationHead head = Head(c, backbone, folder);
        var copies = new Dictionary<string, Tensor>();
        var patches = new Dictionary<Site, Patch>();
        foreach (WeightSite site in backbone.Sites.OfType<WeightSite>())
        {
            Tensor copy = copies[backbone.PathOf(site) + (site is Constant ? "" : ".weight")] = site.Weight.detach().clone().requires_grad_();
            patches[site] = new Copy(copy);
        }
        foreach (NamedParameter parameter in head.Parameters) copies[parameter.Name] = parameter.Value;
        foreach (bool checkpointing in (bool[])[false, true])
        {
            foreach (Tensor copy in copies.Values) copy.grad?.fill_(0);
            var pass = new Pass(new PatchTable(patches), training: checkpointing) { Checkpointing = checkpointing };
            Tensor logits = head.Forward(backbone, backbone.Forward(Batch(c), pass), pass);
            Tensor loss = nn.functional.cross_entropy(logits, c["labels"]);
            worst.Compare($"{c.Name} loss", loss, c["loss"], tolerance);
            loss.backward();
            foreach (string name in wanted)
                worst.Compare($"{c.Name} {name}{(checkpointing ? " by checkpointing" : "")}", copies[name[5..]].grad!, c[name], tolerance);
        }
    }

    private sealed class Copy(Tensor weight) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Weight;

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor frozen, Tensor? bias, Pass? pass) => (weight, bias);
    }

    private sealed class Look : AttentionPatch
    {
        public Tensor? Shares { get; private set; }

        public override bool Trainable => false;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
        {
            Tensor scores = input.Query.matmul(input.Key.transpose(-1, -2)) / Math.Sqrt(input.Query.shape[^1]);
            Shares = (input.Bias is null ? scores : scores + input.Bias).softmax(-1).DetachFromDisposeScope();
            return next(input);
        }
    }
}
