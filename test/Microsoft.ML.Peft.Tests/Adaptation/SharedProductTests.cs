// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>Queries, keys and values of one input share the product of their first factors.</summary>
[TestClass]
public class SharedProductTests
{
    [TestMethod]
    public void TheSharedProductGivesWhatEachSiteMakesAlone()
    {
        using var model = new MatrixModel(new LoraOptions { Targets = ["query", "key", "value"], Dropout = 0, Init = "false", RankPattern = { ["key"] = 3 } });
        using var scope = NewDisposeScope();
        Tensor x = new Draws(1, "x").Normal(1, 2, 5, 32);
        Projection[] sites = [.. model.Backbone.Sites.OfType<Projection>().Where(s => s.Layer == 0 && s.Role is SiteRole.Query or SiteRole.Key or SiteRole.Value && s.Layer == 0)];
        WeightPatch Worn(int i) => (WeightPatch)model.Model.Patches[sites[i]]!;
        var alone = new Pass(model.Model.Patches);
        Tensor[] expected = [.. sites.Select(s => s.Forward(x, alone))];
        var pass = new Pass(model.Model.Patches);
        pass.Share(x, sites);
        Assert.IsNotNull(pass.Together);
        for (int i = 0; i < sites.Length; i++)
        {
            Assert.IsNotNull(pass.Together.For(sites[i], Worn(i), x));
            Assert.IsLessThan(1e-5, Deviations.Distance(expected[i], sites[i].Forward(x, pass)), sites[i].ToString());
        }
        // Another input is not mixed up with the shared one.
        Tensor other = x + 1;
        Assert.IsNull(pass.Together.For(sites[0], Worn(0), other));
        Assert.IsNull(pass.Together.For(sites[0], Worn(1), x), "nor another patch with the worn one");
        Assert.IsLessThan(1e-5, Deviations.Distance(sites[0].Forward(other, alone), sites[0].Forward(other, pass)));
    }

    [TestMethod]
    public void GradientsFlowThroughTheSharedProduct()
    {
        float[] Gradients(bool share)
        {
            using var model = new MatrixModel(new LoraOptions { Targets = ["query", "key"], Dropout = 0, Init = "false" });
            using var scope = NewDisposeScope();
            Tensor x = new Draws(1, "x").Normal(1, 2, 5, 32);
            Projection[] sites = [.. model.Backbone.Sites.OfType<Projection>().Where(s => s.Layer == 0 && s.Role is SiteRole.Query or SiteRole.Key && s.Layer == 0)];
            var pass = new Pass(model.Model.Patches, training: true);
            if (share) pass.Share(x, sites);
            Assert.AreEqual(share, pass.Together is not null);
            sites.Select(s => s.Forward(x, pass).square().sum()).Aggregate((a, b) => a + b).backward();
            return [.. model.Adaptation!.Parameters.Where(p => p.Value.grad is not null).SelectMany(p => p.Value.grad!.contiguous().data<float>().ToArray())];
        }

        float[] apart = Gradients(false), shared = Gradients(true);
        Assert.AreNotEqual(0, apart.Length);
        Assert.IsTrue(apart.Zip(shared).All(p => Math.Abs(p.First - p.Second) <= 1e-4 * (1 + Math.Abs(p.First))));
    }

    [TestMethod]
    public void WithDropoutEachSiteHasAnInputOfItsOwn()
    {
        using var model = new MatrixModel(new LoraOptions { Targets = ["query", "key"], Dropout = 0.5 });
        using var scope = NewDisposeScope();
        Tensor x = zeros([1, 2, 32]);
        Projection[] sites = [.. model.Backbone.Sites.OfType<Projection>().Where(s => s.Layer == 0 && s.Role is SiteRole.Query or SiteRole.Key && s.Layer == 0)];
        var training = new Pass(model.Model.Patches, training: true);
        training.Share(x, sites);
        Assert.IsNull(training.Together);
        var scoring = new Pass(model.Model.Patches);
        scoring.Share(x, sites);
        Assert.IsNotNull(scoring.Together);
    }
}
