// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>How the tensors of a checkpoint and those that a network wants fit together.</summary>
/// <param name="Missing">Names of optional tensors that are not there (a new head): to be initialised.</param>
/// <param name="Extra">Names of tensors that the network does not want, buffers left aside: worth a warning.</param>
public sealed record CheckpointCheck(IReadOnlyList<string> Missing, IReadOnlyList<string> Extra);
