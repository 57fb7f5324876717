// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Names of AdapterHub's tensors.</summary>
internal static class AdapterHubNames
{
    /// <summary>Prefix of the base model with its dot; T5's is <c>transformer</c> there.</summary>
    /// <param name="backbone">The frozen network.</param>
    public static string Model(Backbone backbone) => backbone.Config.ModelType == "t5" ? "transformer." : backbone.Prefix.Length == 0 ? "" : backbone.Prefix + ".";
}
