// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

public interface IRowToRowMapper
{
    DataViewSchema InputSchema { get; }

    DataViewSchema OutputSchema { get; }

    IEnumerable<DataViewSchema.Column> GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns);

    DataViewRow GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns);
}

/// <summary>The part of a mapping transformer that is bound to one input schema.</summary>
internal interface IRowMapper : ICanSaveModel
{
    Func<int, bool> GetDependencies(Func<int, bool> activeOutput);

    Delegate[] CreateGetters(DataViewRow input, Func<int, bool> activeOutput, out Action disposer);

    DataViewSchema.DetachedColumn[] GetOutputColumns();

    ITransformer GetTransformer();
}

internal static class CatalogUtils
{
    internal static IHostEnvironment GetEnvironment(this IInternalCatalog catalog) => Contracts.CheckRef(catalog, nameof(catalog)).Environment;
}

internal static class DefaultColumnNames
{
    internal const string Features = "Features";
    internal const string Label = "Label";
    internal const string GroupId = "GroupId";
    internal const string Name = "Name";
    internal const string Weight = "Weight";
    internal const string Score = "Score";
    internal const string Probability = "Probability";
    internal const string PredictedLabel = "PredictedLabel";
    internal const string RecommendedItems = "Recommended";
    internal const string User = "User";
    internal const string Item = "Item";
    internal const string Date = "Date";
    internal const string FeatureContributions = "FeatureContributions";
}
