// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Persistence;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A column of sounds, and what says the rate of samples.</summary>
/// <param name="name">Name of the sound column.</param>
/// <param name="root">Folder that relative paths begin in.</param>
/// <param name="rate">Samples a second, where the column holds samples.</param>
/// <param name="rateColumn">Column with the samples a second, in the place of a number; null for none.</param>
internal sealed class AudioColumns(string name, string? root, int? rate, string? rateColumn) : MediaColumn<AudioClip>(name, "audio", root)
{
    public int? Rate => rate;

    public string? RateColumn => rateColumn;

    public override IReadOnlyList<string> Names => rateColumn is null ? [Name] : [Name, rateColumn];

    protected override string Decoded => "Vector<Single> (samples)";

    protected override bool IsDecoded(DataViewType item, bool vector) => vector && item == NumberDataViewType.Single;

    private static bool IsRate(DataViewType type) => type == NumberDataViewType.Int32 || type == NumberDataViewType.Single;

    public override void Check(DataViewSchema schema)
    {
        base.Check(schema);
        if (rateColumn is null)
        {
            if (rate is null && schema[Name].Type is VectorDataViewType { ItemType: var item } && item == NumberDataViewType.Single)
                throw new ArgumentException($"The audio column '{Name}' holds samples; say how many there are in a second with SampleRate or SampleRateColumnName.", "inputSchema");
            return;
        }
        DataViewSchema.Column column = schema.GetColumnOrNull(rateColumn) ?? throw InputColumns.Missing(rateColumn, "sample rate", schema.Select(c => c.Name));
        if (!IsRate(column.Type))
            throw new ArgumentOutOfRangeException("inputSchema", $"Schema mismatch for sample rate column '{rateColumn}': expected Int32 or Single, got {column.Type}.");
    }

    public override void Check(SchemaShape shape)
    {
        base.Check(shape);
        if (rateColumn is not null)
            OutputShapes.CheckColumn(shape, rateColumn, "sample rate", c => c.Kind == SchemaShape.Column.VectorKind.Scalar && !c.IsKey && IsRate(c.ItemType), "Int32 or Single");
    }

    protected override Func<AudioClip> DecodedReader(DataViewRow row)
    {
        ValueGetter<VBuffer<float>> getter = row.GetGetter<VBuffer<float>>(row.Schema[Name]);
        Func<int> rateOf = RateReader(row);
        VBuffer<float> value = default;
        return () =>
        {
            getter(ref value);
            return new AudioClip(value.DenseValues().ToArray(), rateOf());
        };
    }

    private Func<int> RateReader(DataViewRow row)
    {
        if (rateColumn is null) return () => rate!.Value;
        DataViewSchema.Column column = row.Schema[rateColumn];
        if (column.Type == NumberDataViewType.Int32)
        {
            ValueGetter<int> whole = row.GetGetter<int>(column);
            int number = 0;
            return () =>
            {
                whole(ref number);
                return number;
            };
        }
        ValueGetter<float> any = row.GetGetter<float>(column);
        float found = 0;
        return () =>
        {
            any(ref found);
            return found >= 0 && found <= AudioClip.HighestRate ? (int)MathF.Round(found) : 0;
        };
    }
}
