// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Linear probe: the backbone stays as it is and only the task's head is trained. No trained numbers in the backbone, no
/// gradient through it; frozen features may be computed once (Alain and Bengio 2016, arXiv 1610.01644).
/// </summary>
public sealed class HeadOnlyOptions : PeftMethod
{
    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "head-only";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "partial";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "none beside the head";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-2;

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed) => new(this, backbone);

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => 0;
}
