// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// A map cut into square windows, perhaps shifted (Liu et al. 2021, arXiv 2103.14030): padded at the end to whole windows,
/// rolled by the shift, cut. Inserted tokens stand in front of the places of every window.
/// </summary>
/// <param name="Grid">The map.</param>
/// <param name="Side">Side w of a window.</param>
/// <param name="Shift">Places that the map is rolled by.</param>
internal sealed record Windows(MapGrid Grid, int Side, int Shift)
{
    // Added to the scores of places that lie in one window only because the map was rolled.
    private const double Apart = -100;

    private long Rows => (Grid.Rows + Side - 1) / Side * Side;

    private long Columns => (Grid.Columns + Side - 1) / Side * Side;

    /// <summary>Number of windows of an image.</summary>
    public long Count => Rows / Side * (Columns / Side);

    private long Places => (long)Side * Side;

    /// <summary>Cuts tokens.</summary>
    /// <param name="x"><c>[batch, inserted + places, channels]</c>.</param>
    /// <param name="inserted">Tokens in front, which each window gets.</param>
    /// <returns><c>[batch, windows · (inserted + w²), channels]</c>.</returns>
    public Tensor Cut(Tensor x, int inserted)
    {
        (long batch, long width) = (x.shape[0], x.shape[2]);
        Tensor map = x.narrow(1, inserted, Grid.Places).reshape(batch, Grid.Rows, Grid.Columns, width);
        if (Rows > Grid.Rows || Columns > Grid.Columns) map = nn.functional.pad(map, [0, 0, 0, Columns - Grid.Columns, 0, Rows - Grid.Rows]);
        if (Shift > 0) map = map.roll([-Shift, -Shift], [1, 2]);
        Tensor cut = map.reshape(batch, Rows / Side, Side, Columns / Side, Side, width).permute(0, 1, 3, 2, 4, 5).reshape(batch, Count, Places, width);
        if (inserted > 0) cut = cat([x.narrow(1, 0, inserted).unsqueeze(1).expand(batch, Count, inserted, width), cut], 2);
        return cut.reshape(batch, Count * (inserted + Places), width);
    }

    /// <summary>Puts windows together again; what each window made of the inserted tokens is averaged.</summary>
    /// <param name="y"><c>[batch, windows · (inserted + w²), channels]</c>.</param>
    /// <param name="inserted">Tokens in front of each window.</param>
    /// <returns><c>[batch, inserted + places, channels]</c>.</returns>
    public Tensor Join(Tensor y, int inserted)
    {
        (long batch, long width) = (y.shape[0], y.shape[2]);
        Tensor cut = y.reshape(batch, Count, inserted + Places, width);
        Tensor map = cut.narrow(2, inserted, Places).reshape(batch, Rows / Side, Columns / Side, Side, Side, width)
            .permute(0, 1, 3, 2, 4, 5).reshape(batch, Rows, Columns, width);
        if (Shift > 0) map = map.roll([Shift, Shift], [1, 2]);
        Tensor places = map.narrow(1, 0, Grid.Rows).narrow(2, 0, Grid.Columns).reshape(batch, Grid.Places, width);
        return inserted == 0 ? places : cat([cut.narrow(2, 0, inserted).mean([1]), places], 1);
    }

    /// <summary>A linear map's output as heads of windows.</summary>
    /// <param name="y"><c>[batch, windows · tokens, heads · width]</c>.</param>
    /// <param name="core">The attention.</param>
    /// <returns><c>[batch · windows, heads, tokens, width]</c>.</returns>
    public Tensor Split(Tensor y, AttentionCore core) => Heads.Split(y.reshape(y.shape[0] * Count, y.shape[1] / Count, y.shape[2]), core);

    /// <summary>Contexts of windows as tokens again.</summary>
    /// <param name="context"><c>[batch · windows, heads, tokens, width]</c>.</param>
    /// <returns><c>[batch, windows · tokens, heads · width]</c>.</returns>
    public Tensor Joined(Tensor context)
    {
        Tensor y = Heads.Join(context);
        return y.reshape(y.shape[0] / Count, Count * y.shape[1], y.shape[2]);
    }

    /// <summary>What is added to the scores: the bias of relative places, and what keeps apart what is not one region.</summary>
    /// <param name="relative">Bias of relative places <c>[1, heads, w², w²]</c>.</param>
    /// <param name="inserted">Tokens in front of each window; 0 is added for these.</param>
    /// <param name="batch">Number of images.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <param name="apart">How often the reference adds the mask.</param>
    /// <returns><c>[1 or batch · windows, heads, inserted + w², inserted + w²]</c>.</returns>
    public Tensor Bias(Tensor relative, int inserted, long batch, Pass pass, int apart = 1)
    {
        Tensor bias = relative;
        if (Shift > 0)
        {
            Tensor mask = pass.Once((Key: nameof(Mask), This: this), () => Mask(relative.device));           // [windows, 1, w², w²]
            bias = (relative + (mask * apart).to_type(relative.dtype)).repeat(batch, 1, 1, 1);
        }
        return inserted == 0 ? bias : nn.functional.pad(bias, [inserted, 0, inserted, 0]);
    }

    // Places of one window are apart where they come from different sides of the map's seam.
    private Tensor Mask(Device device)
    {
        long[] Regions(long length) => [.. Enumerable.Range(0, (int)length).Select(i => i < length - Side ? 0L : i < length - Shift ? 1L : 2L)];
        Tensor rows = tensor(Regions(Rows)).view(-1, 1), columns = tensor(Regions(Columns)).view(1, -1);
        Tensor region = (rows * 3 + columns).view(Rows / Side, Side, Columns / Side, Side).permute(0, 2, 1, 3).reshape(Count, Places);
        Tensor differs = region.unsqueeze(1).ne(region.unsqueeze(2)).to_type(ScalarType.Float32);            // [windows, w², w²]
        return (differs * Apart).unsqueeze(1).to(device);
    }

    /// <summary>Rows of a table of relative places for each pair of a window's places.</summary>
    /// <param name="reach">Side of the windows that the table is for; at least <see cref="Side"/>.</param>
    /// <returns>Int64 <c>[w⁴]</c>.</returns>
    public long[] Relative(int reach)
    {
        var index = new long[Places * Places];
        for (long i = 0; i < Places; i++)
            for (long j = 0; j < Places; j++)
                index[i * Places + j] = (i / Side - j / Side + reach - 1) * (2 * reach - 1) + (i % Side - j % Side + reach - 1);
        return index;
    }

    /// <summary>Bias of relative places out of a table.</summary>
    /// <param name="table"><c>[(2 reach - 1)², heads]</c>.</param>
    /// <param name="reach">Side of the windows that the table is for.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns><c>[1, heads, w², w²]</c>.</returns>
    public Tensor Looked(Tensor table, int reach, Pass pass)
    {
        Tensor index = pass.Once((Key: nameof(Relative), Side, reach), () => tensor(Relative(reach)).to(table.device));
        return table.index_select(0, index).view(Places, Places, -1).permute(2, 0, 1).unsqueeze(0);
    }

    /// <summary>Each two by two places side by side, an odd edge padded; inserted tokens are repeated.</summary>
    /// <param name="x"><c>[batch, inserted + places, channels]</c>.</param>
    /// <param name="grid">The map.</param>
    /// <param name="inserted">Tokens in front.</param>
    /// <returns><c>[batch, inserted + places / 4, 4 · channels]</c>.</returns>
    public static Tensor Merged(Tensor x, MapGrid grid, int inserted)
    {
        (long batch, long width) = (x.shape[0], x.shape[2]);
        (long oddRows, long oddColumns) = (grid.Rows % 2, grid.Columns % 2);
        Tensor map = x.narrow(1, inserted, grid.Places).reshape(batch, grid.Rows, grid.Columns, width);
        if (oddRows + oddColumns > 0) map = nn.functional.pad(map, [0, 0, 0, oddColumns, 0, oddRows]);
        (long rows, long columns) = ((grid.Rows + oddRows) / 2, (grid.Columns + oddColumns) / 2);
        // The lower neighbour stands before the right one.
        Tensor merged = map.reshape(batch, rows, 2, columns, 2, width).permute(0, 1, 3, 4, 2, 5).reshape(batch, rows * columns, 4 * width);
        return inserted == 0 ? merged : cat([x.narrow(1, 0, inserted).repeat(1, 1, 4), merged], 1);
    }
}
