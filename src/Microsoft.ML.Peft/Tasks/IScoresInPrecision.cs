// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A transformer that is told in what numbers it scores.</summary>
internal interface IScoresInPrecision
{
    Precision ScoringPrecision { get; set; }
}
