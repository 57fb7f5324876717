// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Training through ML.NET: it learns, evaluates, starts anew each time, follows the context's seed, stops when asked.</summary>
[TestClass]
public sealed class TextClassificationFitTests : OneThread
{
    private readonly MLContext _ml = new(1);

    [TestMethod]
    public void ASecondTextIsRead()
    {
        Review[] rows = TinyTexts.Rows(90);
        // Only the second column tells the kinds apart.
        foreach (Review row in rows) (row.Text, row.Title) = (row.Title, row.Text);
        IDataView data = _ml.Data.LoadFromEnumerable(rows);
        double Accuracy(string? second) => _ml.MulticlassClassification.Evaluate(TinyTexts.Pipeline(_ml, TinyTexts.Options(o =>
            (o.Sentence2ColumnName, o.Training.Epochs, o.Training.LearningRate) = (second, 12, 1e-2))).Fit(data).Transform(data)).MicroAccuracy;
        Assert.IsGreaterThan(0.8, Accuracy("Title"));
        Assert.IsLessThan(0.7, Accuracy(null));
    }

    [TestMethod]
    public void LayersFilterTheTargetsOfRoles()
    {
        long Trained(params string[] targets) => Count(new LoraOptions { Rank = 4, Targets = targets, Layers = [1] });
        long Count(PeftMethod method)
        {
            using TextClassificationTransformer model = TinyTexts.Train(_ml, TinyTexts.View(_ml, 12), o => (o.Method, o.Training.Epochs) = (method, 1));
            return model.TrainableParameters;
        }

        long head = Count(new HeadOnlyOptions()), site = 2 * 4 * TinyBert.Hidden;
        Assert.AreEqual(head + (2 * site), Trained());
        Assert.AreEqual(head + site, Trained("Query"));
        Assert.AreEqual(head + site, Trained("query"));
        Assert.AreEqual(head + (4 * site) + (2 * 4 * (TinyBert.Hidden + TinyBert.Inner)), Trained(TargetedMethod.AllLinear));
    }

    [TestMethod]
    public void TheEmbeddedBackboneIsTakenWhereNoneIsNamed()
    {
        IDataView data = TinyTexts.View(_ml, 24);
        using TextClassificationTransformer model = _ml.Transforms.Conversion.MapValueToKey("Label")
            .Append(_ml.Peft().TextClassification(new HeadOnlyOptions(), sentence1ColumnName: "Text", maxEpochs: 20, learningRate: 1e-2))
            .Fit(data).LastTransformer;
        Assert.AreEqual(384, model.Model.Backbone.Config.HiddenSize);
        Assert.IsGreaterThan(22_000_000, model.TotalParameters);
        Assert.IsGreaterThan(0.9, _ml.MulticlassClassification.Evaluate(model.Transform(TinyTexts.Keyed(_ml, data))).MicroAccuracy);
    }
}
