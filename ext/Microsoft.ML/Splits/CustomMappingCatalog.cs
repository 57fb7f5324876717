// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>Filters by users' own code.</summary>
public static class CustomMappingCatalog
{
    /// <summary>Leaves out the rows that the predicate says true to.</summary>
    public static IDataView FilterByCustomPredicate<TSrc>(this DataOperationsCatalog catalog, IDataView input, Func<TSrc, bool> filterPredicate)
        where TSrc : class, new()
        => new PredicateFilter<TSrc>(catalog.GetEnvironment(), Contracts.CheckRef(input, nameof(input)), Contracts.CheckRef(filterPredicate, nameof(filterPredicate)));
}
