// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// The principal components of rows that come batch by batch (incremental decomposition, Ross et al. 2008), in float64.
/// It owns its tensors.
/// </summary>
internal sealed class Components : IDisposable
{
    private readonly int _count;
    private Tensor? _mean, _sum, _squares, _previous;
    private long _rows;

    public Components(int count) => _count = count;

    /// <summary>Directions <c>[count, width]</c>, the strongest first, the largest entry of each positive; null before the first batch.</summary>
    public Tensor? Directions { get; private set; }

    /// <summary>Singular values <c>[count]</c>.</summary>
    public Tensor? Singular { get; private set; }

    /// <summary>Takes a batch in; one with fewer rows than components is left aside.</summary>
    /// <param name="rows">Rows <c>[rows, width]</c>, float64.</param>
    public void Add(Tensor rows)
    {
        long more = rows.shape[0];
        if (more < _count) return;
        using var scope = NewDisposeScope();
        Tensor mean = rows.mean([0]), centred = rows - mean;
        Tensor all = centred;
        if (Directions is not null)
        {
            Tensor shift = (_mean! - mean) * Math.Sqrt((double)_rows * more / (_rows + more));
            all = cat([Singular!.unsqueeze(1) * Directions, centred, shift.unsqueeze(0)], 0);
        }
        (Tensor _, Tensor s, Tensor vt) = linalg.svd(all, fullMatrices: false);
        Tensor directions = vt.narrow(0, 0, Math.Min(_count, vt.shape[0]));
        Tensor largest = directions.gather(1, directions.abs().argmax(1, keepdim: true)).sign();
        Tensor sum = rows.sum(0L), squares = rows.square().sum(0L);
        if (_sum is not null) (sum, squares) = (sum + _sum, squares + _squares!);
        _rows += more;
        _previous?.Dispose();
        _previous = Directions;
        Directions = Own(directions * largest);
        Singular = Own(s.narrow(0, 0, directions.shape[0]).clone(), Singular);
        _mean = Own(sum / _rows, _mean);
        _sum = Own(sum, _sum);
        _squares = Own(squares, _squares);
    }

    /// <summary>Shares of the variance that the first components explain.</summary>
    public IEnumerable<double> Explained(int most)
    {
        using var scope = NewDisposeScope();
        // The variance of all, times the number of rows.
        double whole = (_squares! - _sum!.square() / _rows).sum().item<double>();
        return [.. (Singular!.square() / whole).narrow(0, 0, Math.Min(most, Singular!.shape[0])).data<double>().ToArray()];
    }

    /// <summary>True where the first components stayed as they were in the last batch.</summary>
    public bool Rests(int count, double least)
    {
        if (count == 0) return true;
        if (_previous is null || Directions is null) return false;
        using var scope = NewDisposeScope();
        long kept = Math.Min(count, Directions.shape[0]);
        Tensor cosines = (Directions * _previous).sum(1L) / (Directions.norm(1) * _previous.norm(1));
        return cosines.narrow(0, 0, kept).min().item<double>() >= least;
    }

    // Numbers that outlive a batch belong to this object alone.
    private static Tensor Own(Tensor value, Tensor? old = null)
    {
        old?.Dispose();
        return value.DetachFromDisposeScope();
    }

    public void Dispose()
    {
        foreach (Tensor? tensor in (Tensor?[])[Directions, Singular, _mean, _sum, _squares, _previous]) tensor?.Dispose();
    }
}
