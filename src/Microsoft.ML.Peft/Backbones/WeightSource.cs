// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>Where a backbone takes its frozen tensors from: a folder, or another backbone.</summary>
public interface IWeightSource
{
    /// <summary>True where the tensor exists.</summary>
    /// <param name="name">Name inside the base model, without its prefix.</param>
    bool Has(string name);

    /// <summary>Gives a tensor of its own handle, in the file's layout.</summary>
    /// <param name="name">Name inside the base model, without its prefix.</param>
    /// <param name="shape">Expected shape.</param>
    Tensor Load(string name, params long[] shape);

    /// <summary>Gives a matrix that files keep transposed, the right way round.</summary>
    /// <param name="name">Name inside the base model, without its prefix.</param>
    /// <param name="rows">Rows of the result: columns in the file.</param>
    /// <param name="columns">Columns of the result: rows in the file.</param>
    Tensor LoadTransposed(string name, long rows, long columns) => Load(name, columns, rows).t().contiguous();
}

/// <summary>The weights of an existing backbone, shared, with some replaced.</summary>
internal sealed class SharedWeights : IWeightSource
{
    private readonly Dictionary<string, Tensor> _tensors = new(StringComparer.Ordinal);

    public SharedWeights(Backbone original, IReadOnlyDictionary<Site, (Tensor Weight, Tensor? Bias)> replaced)
    {
        foreach (WeightSite site in original.Sites.OfType<WeightSite>())
        {
            // A tied head is tied to what the table becomes, unless it is itself replaced.
            if (site is Projection { TiedTo: not null } && !replaced.ContainsKey(site)) continue;
            (Tensor weight, Tensor? bias) = replaced.TryGetValue(site, out (Tensor, Tensor?) made) ? made : (site.Quantised is { } few ? zeros([1]).expand([.. few.Shape]) : site.Weight, site.Bias);
            bool transposed = site is Projection { StoredTransposed: true };
            _tensors[site.Name + site.WeightSuffix] = transposed ? weight.t() : weight;
            if (bias is not null) _tensors[site.BiasName] = bias;
            if (site is BatchNorm norm) (_tensors[site.Name + ".running_mean"], _tensors[site.Name + ".running_var"]) = (norm.Mean, norm.Variance);
        }
    }

    public bool Has(string name) => _tensors.ContainsKey(name);

    // A detached tensor is another handle on the same numbers: each backbone disposes its own handles.
    public Tensor Load(string name, params long[] shape) => _tensors[name].detach();
}

/// <summary>Weights in which a layer's names stand for another layer's tensors.</summary>
internal sealed partial class RestackedWeights(IWeightSource original, IReadOnlyList<int> layers) : IWeightSource
{
    public bool Has(string name) => original.Has(Original(name));

    public Tensor Load(string name, params long[] shape) => original.Load(Original(name), shape);

    // The first number of a path is the layer's.
    private string Original(string name) => LayerNumber().Replace(name, match => layers[int.Parse(match.ValueSpan, System.Globalization.CultureInfo.InvariantCulture)].ToString(System.Globalization.CultureInfo.InvariantCulture), 1);

    [System.Text.RegularExpressions.GeneratedRegex(@"(?<=\.)\d+(?=\.)")]
    private static partial System.Text.RegularExpressions.Regex LayerNumber();
}

/// <summary>Weights of one part of a file: names have the part's prefix, but for those that stand beside it.</summary>
internal sealed class PrefixedWeights(IWeightSource original, string prefix) : IWeightSource
{
    public bool Has(string name) => original.Has(prefix + name) || original.Has(name);

    public Tensor Load(string name, params long[] shape) => original.Load(original.Has(prefix + name) ? prefix + name : name, shape);
}

/// <summary>Tensors by name in memory; for tests and for fresh backbones of a geometry.</summary>
/// <param name="tensors">Tensors by their bare names; the source keeps its handles.</param>
public sealed class MemoryWeights(IReadOnlyDictionary<string, Tensor> tensors) : IWeightSource
{
    /// <inheritdoc/>
    public bool Has(string name) => tensors.ContainsKey(name);

    /// <inheritdoc/>
    public Tensor Load(string name, params long[] shape) => tensors[name].detach().clone();
}
