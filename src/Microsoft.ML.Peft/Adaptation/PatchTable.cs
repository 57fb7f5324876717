// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>One patch a site, immutable: what a pass wears.</summary>
public sealed class PatchTable
{
    private readonly Patch?[] _patches;

    /// <summary>No patch anywhere.</summary>
    public static PatchTable Empty { get; } = new([]);

    /// <summary>Makes a table.</summary>
    /// <param name="patches">Pairs of site and patch; at most one a site.</param>
    /// <param name="device">Where the network runs.</param>
    /// <exception cref="ArgumentException">A site has two patches.</exception>
    public PatchTable(IEnumerable<KeyValuePair<Site, Patch>> patches, DeviceType device = DeviceType.CPU)
    {
        Device = device;
        List<KeyValuePair<Site, Patch>> list = [.. patches];
        _patches = new Patch?[list.Count == 0 ? 0 : list.Max(p => p.Key.Index) + 1];
        LowestTrainable = int.MaxValue;
        CanRunAgain = list.All(p => p.Value.CanRunAgain);
        PositionShift = list.Select(p => p.Value).OfType<AttentionPatch>().Select(p => p.PositionShift).DefaultIfEmpty().Max();
        foreach ((Site site, Patch patch) in list)
        {
            if (_patches[site.Index] is not null)
                throw new ArgumentException($"Two patches at site {site.Name}; stack them into one first.");
            _patches[site.Index] = patch;
            if (patch.Trainable) LowestTrainable = Math.Min(LowestTrainable, site.Layer);
        }
    }

    /// <summary>Where the network runs.</summary>
    public DeviceType Device { get; }

    /// <summary>The lowest layer with a trainable patch (-1: the embeddings); <see cref="int.MaxValue"/> for none.</summary>
    public int LowestTrainable { get; }

    /// <summary>True where layers may run again in the backward pass in place of keeping their activations.</summary>
    public bool CanRunAgain { get; } = true;

    /// <summary>Positions by which the row's own tokens move: keys that are worn in front of them and count as tokens.</summary>
    public int PositionShift { get; }

    /// <summary>The patch at a site, or null.</summary>
    /// <param name="site">A site of the backbone.</param>
    public Patch? this[Site site] => (uint)site.Index < (uint)_patches.Length ? _patches[site.Index] : null;
}
