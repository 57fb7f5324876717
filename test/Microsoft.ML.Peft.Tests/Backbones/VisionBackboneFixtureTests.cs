// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>
/// Every case of fixtures/vision-audio that runs a network. Classifiers of images and sounds need nothing of their own here
/// (<see cref="Classifies"/>); a family with more has a part of this class with two fields of its own, found by their types:
/// runs by <c>model_type</c>, and published geometries by name.
/// </summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed partial class VisionBackboneFixtureTests
{
    public TestContext TestContext { get; set; } = null!;

    // What all fields of a type hold together.
    private static Dictionary<string, T> Together<T>() => typeof(VisionBackboneFixtureTests)
        .GetFields(BindingFlags.NonPublic | BindingFlags.Static)
        .Where(field => field.FieldType == typeof(Dictionary<string, T>))
        .SelectMany(field => (Dictionary<string, T>)field.GetValue(null)!)
        .ToDictionary(entry => entry.Key, entry => entry.Value);

    private static bool Runs(string modelType) => BackboneLoader.ModelTypes.Contains(modelType) || Together<Action<VisionCase>>().ContainsKey(modelType);

    public static IEnumerable<object[]> Models => !Shared.Exists ? [] : Shared.Cases("vision-audio")
        .Where(folder => VisionCase.ModelType(folder) is { } type && Runs(type))
        .Select(folder => new object[] { Path.GetFileName(folder) });

    /// <summary>Every case that has a network runs; those of pictures and sounds alone belong to the tests of data.</summary>
    [TestMethod]
    public void CasesOfOtherKindsAreListed()
    {
        _ = Shared.Root;
        string[] here = [.. Models.Select(c => (string)c[0])];
        string[] others = [.. Shared.Cases("vision-audio").Where(folder => !here.Contains(Path.GetFileName(folder)))];
        foreach (string folder in others) TestContext.WriteLine($"{Path.GetFileName(folder)}: no network in it");
        TestContext.WriteLine($"{here.Length} of {here.Length + others.Length} cases run");
        Assert.IsNotEmpty(here);
        string[] unknown = [.. others.Where(folder => VisionCase.ModelType(folder) is not null).Select(folder => $"{Path.GetFileName(folder)} ({VisionCase.ModelType(folder)})")];
        Assert.IsEmpty(unknown, $"no network for {string.Join(", ", unknown)}");
    }

    [TestMethod]
    [DynamicData(nameof(Models))]
    public void FamilyEqualsReference(string name)
    {
        using var c = new VisionCase(Path.Combine(Shared.Fixtures, "vision-audio", name));
        using var scope = NewDisposeScope();
        Together<Action<VisionCase>>().GetValueOrDefault((string)c.Config["model_type"]!, Classifies)(c);
        c.Done(TestContext);
    }

    // A network with a classifier, or without: states, scores, loss, gradients.
    private static void Classifies(VisionCase c) => Classifies(c, null);

    private static void Classifies(VisionCase c, Action<Backbone, BackboneOutput, Pass>? more)
    {
        using Backbone backbone = BackboneLoader.Load(c.Model);
        using SequenceClassificationHead? head = c.Has("logits") ? c.Head(backbone) : null;
        using (no_grad()) States(c, backbone, head, more);
        if (head is null || !c.Has("labels")) return;
        c.CompareGradients([backbone], head.Parameters, passes =>
            nn.functional.cross_entropy(head.Forward(backbone, backbone.Forward(c.Batch(), passes[0]), passes[0]), c["labels"]));
    }

    private static void States(VisionCase c, Backbone backbone, SequenceClassificationHead? head, Action<Backbone, BackboneOutput, Pass>? more)
    {
        var watches = c.Named("attentions.").ToDictionary(layer => layer, _ => new ShareWatch());
        var pass = new Pass(new PatchTable(watches.Select(w =>
            KeyValuePair.Create<Site, Patch>(backbone.Sites.OfType<AttentionCore>().Single(s => s.Layer == int.Parse(w.Key)), w.Value))))
        {
            KeepHiddenStates = true,
        };
        BackboneOutput output = backbone.Forward(c.Batch(), pass);
        c.CompareStates(output.HiddenStates!);
        c.CompareIfThere("last_hidden_state", () => output.Last);
        c.CompareIfThere("pooler_output", () => backbone.Pool(output, pass));
        foreach ((string layer, ShareWatch watch) in watches)
        {
            Tensor expected = c[$"attentions.{layer}"];
            c.Compare($"attentions.{layer}", watch.Shares!.narrow(0, 0, expected.shape[0]));
            watch.Shares!.Dispose();
        }
        foreach (string size in c.Named("positions.")) c.Compare($"positions.{size}", Positions(backbone, [.. size.Split('x').Select(long.Parse)]));
        foreach (string state in c.Named("feature_maps."))
            c.Compare($"feature_maps.{state}", ((ImageEncoder)backbone).FeatureMap(output, state == "stem" ? 0 : int.Parse(state["stage".Length..]), pass));
        more?.Invoke(backbone, output, pass);
        if (head is null) return;
        c.Compare("logits", head.Forward(backbone, output, pass));
        // Where the first token alone is read, the last layer may make no other.
        using var model = new AdaptedModel(backbone, null, c.Head(backbone));
        c.Compare("logits", model.Forward(c.Batch(), new Pass()), " by the model");
    }

    // Positions of a size: embeddings with them of images of zeros, less what tokens and such patches are.
    private static Tensor Positions(Backbone backbone, long[] sides)
    {
        Convolution patches = backbone.Sites.OfType<Convolution>().Single();
        Tensor pixels = zeros([1, patches.In, sides[0], sides[1]]);
        BackboneOutput output = backbone.Forward(TokenBatch.OfImages(pixels, interpolatePositions: true), new Pass { KeepHiddenStates = true });
        Tensor[] leading = [.. backbone.Sites.OfType<Constant>().Where(s => s.Role is SiteRole.ClassToken or SiteRole.DistillationToken).Select(s => s.Weight.view(1, 1, -1))];
        Tensor positioned = output.HiddenStates![0], rest = positioned.narrow(1, leading.Length, positioned.shape[1] - leading.Length);
        return cat([.. leading.Select((token, i) => positioned.narrow(1, i, 1) - token), patches.Bias is { } bias ? rest - bias : rest], 1);
    }

    [TestMethod]
    public void PublishedGeometriesHaveTheirParameters()
    {
        string file = Path.Combine(Shared.Fixtures, "vision-audio", "parameter-counts.json");
        if (!File.Exists(file)) file = Path.Combine(Shared.Root, "fixtures", "vision-audio", "parameter-counts.json");
        JsonObject counts = JsonNode.Parse(File.ReadAllText(file))!["counts"]!.AsObject();
        Dictionary<string, Func<long>> known = Together<Func<long>>();
        var failures = new List<string>();
        foreach ((string name, JsonNode? expected) in counts)
        {
            using var scope = NewDisposeScope();
            if (!known.TryGetValue(name, out Func<long>? count)) failures.Add($"{name}: no such geometry here");
            else if (count() is var found && found != (long)expected!["parameters"]!) failures.Add($"{name}: {found} numbers, expected {expected["parameters"]}");
        }
        Assert.IsEmpty(failures, string.Join(Environment.NewLine, failures));
        Assert.IsNotEmpty(counts);
    }

    /// <summary>Numbers of a network with its classifier, or without.</summary>
    /// <param name="config">The geometry.</param>
    /// <param name="classes">Number of classes; 0 for no classifier.</param>
    /// <param name="pooler">True where the file has a pooler.</param>
    private static long Numbers(string config, int classes, bool pooler = false)
    {
        using Backbone backbone = BackboneLoader.Build(JsonNode.Parse(config)!.AsObject(), new Shapes(pooler));
        if (classes == 0) return backbone.ParameterCount;
        using var head = new SequenceClassificationHead(backbone, classes);
        return backbone.ParameterCount + head.Parameters.Sum(p => p.Value.numel());
    }

    // Any shape in one number of memory.
    private sealed class Shapes(bool pooler = false) : IWeightSource
    {
        public bool Has(string name) => (pooler || !name.StartsWith("pooler.dense", StringComparison.Ordinal)) && name != "proj_out.weight";

        public Tensor Load(string name, params long[] shape) => shape.Length == 0 ? empty([1]).view() : empty([1]).expand(shape);
    }
}
