// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A column of a text file: the runs of fields that it is read from.</summary>
internal sealed class TextColumn
{
    private TextColumn(IExceptionContext context, string name, PrimitiveDataViewType itemType, Segment[] segments)
    {
        var sorted = segments.OrderBy(segment => segment.Min).ToArray();
        for (int i = 1; i < sorted.Length; i++)
            if (sorted[i - 1].Lim > sorted[i].Min)
                throw context.ExceptUserArg("Source", $"Intervals specified for column '{name}' overlap");
        Name = name;
        ItemType = itemType;
        Segments = segments;
        VariableSegment = Array.FindIndex(segments, segment => segment.IsVariable);
        FixedSize = segments.Where(segment => !segment.IsVariable).Sum(segment => segment.Lim - segment.Min);
        Type = VariableSegment >= 0 ? new VectorDataViewType(itemType)
            : FixedSize > 1 || segments[0].ForceVector ? new VectorDataViewType(itemType, FixedSize)
            : itemType;
    }

    internal readonly record struct Segment(int Min, int Lim, bool ForceVector)
    {
        internal bool IsVariable => Lim == TextFormat.MaxFields;
    }

    internal string Name { get; }

    internal PrimitiveDataViewType ItemType { get; }

    internal DataViewType Type { get; }

    internal Segment[] Segments { get; }

    /// <summary>The segment that reaches to the end of each line, -1 for none.</summary>
    internal int VariableSegment { get; }

    internal int FixedSize { get; }

    /// <summary>Whether a column reaches to the end of lines that are all of one size, which a sample has to tell.</summary>
    internal static bool NeedInputSize(IExceptionContext context, TextLoader.Column[] columns)
    {
        foreach (var column in columns)
            context.CheckUserArg(column.Source is { Length: > 0 }, "Source", "Must specify some source column indices");
        return columns.Any(column => column.Source.Any(range => range.AutoEnd && range.Max == null));
    }

    internal static TextColumn[] Bind(IExceptionContext context, TextLoader.Column[] columns, int inputSize)
    {
        var segments = new Segment[columns.Length][];
        var bound = new TextColumn[columns.Length];
        (int Column, int Range) other = (-1, -1);
        for (int i = 0; i < columns.Length; i++)
        {
            string name = context.CheckNonWhiteSpace(columns[i].Name, nameof(TextLoader.Column.Name)).Trim();
            var itemType = ItemTypeOf(columns[i]);
            segments[i] = new Segment[columns[i].Source.Length];
            for (int j = 0; j < segments[i].Length; j++)
            {
                if (columns[i].Source[j].AllOther)
                {
                    context.CheckUserArg(other.Column < 0, "AllOther", "At most one all other range can be specified");
                    other = (i, j);
                }
                segments[i][j] = SegmentOf(context, columns[i].Source[j], inputSize);
            }
            if (other.Column != i)
                bound[i] = new TextColumn(context, name, itemType, segments[i]);
        }
        if (other.Column >= 0)
        {
            var column = columns[other.Column];
            bound[other.Column] = new TextColumn(context, column.Name.Trim(), ItemTypeOf(column), WithoutTaken(context, segments, other.Column, other.Range));
        }
        return bound;
    }

    private static PrimitiveDataViewType ItemTypeOf(TextLoader.Column column)
    {
        var type = ColumnTypeExtensions.PrimitiveTypeFromKind(column.DataKind);
        if (column.KeyCount == null)
            return type;
        Contracts.CheckUserArg(KeyDataViewType.IsValidDataType(type.RawType), "Type", "Bad item type for Key");
        return new KeyDataViewType(type.RawType, column.KeyCount.Count ?? ValueConversions.LargestKey(type.RawType));
    }

    private static Segment SegmentOf(IExceptionContext context, TextLoader.Range range, int inputSize)
    {
        context.CheckUserArg(0 <= range.Min && range.Min < TextFormat.MaxFields - 1, nameof(range.Min));
        if (range.Max is { } max)
        {
            context.CheckUserArg(range.Min <= max && max < TextFormat.MaxFields - 1, nameof(range.Max));
            return new Segment(range.Min, max + 1, range.ForceVector);
        }
        if (range.AutoEnd)
        {
            if (range.Min >= inputSize)
                throw context.ExceptUserArg(nameof(range.Min), $"Column #{range.Min} not found in the dataset (it only has {inputSize} columns)");
            return new Segment(range.Min, inputSize, true);
        }
        return range.VariableEnd ? new Segment(range.Min, TextFormat.MaxFields, true) : new Segment(range.Min, range.Min + 1, range.ForceVector);
    }

    internal static int FindInputSize(IHost host, TextFormat format, string[] lines)
    {
        int[] sizes;
        using (var stats = new FormatErrors(host))
        {
            var scanner = new FieldScanner(format, MaxNeeded, stats.Count);
            sizes = [.. lines.Select(line => format.TrimWhitespace ? line.TrimEnd() : line).Where(line => line.Length > 0)
                .Select(line => scanner.Scan(line.AsMemory())).Where(size => size > 0).Distinct()];
        }
        host.CheckUserArg(sizes.Length > 0, "Source", "Can't determine the number of source columns without valid data");
        host.CheckUserArg(sizes.Length == 1, "Source", "The size of input lines is not consistent");
        return sizes[0];
    }

    // While the loader learns from lines, their errors are counted, not shown.
    private sealed class FormatErrors(IHost host) : IDisposable
    {
        private readonly IChannel _channel = host.Start("ParseStats");
        private int _count;

        internal void Count(int from, int to, string what) => _count++;

        public void Dispose()
        {
            if (_count > 0)
                _channel.Info(MessageSensitivity.Unknown, $"Processed 0 rows with 0 bad values and {_count} format errors");
            _channel.Dispose();
        }
    }

    private const int MaxNeeded = int.MaxValue;

    // "All other" fields: what the range holds less what every other range takes.
    private static Segment[] WithoutTaken(IExceptionContext context, Segment[][] segments, int column, int range)
    {
        var taken = segments.SelectMany((own, i) => own.Where((_, j) => (i, j) != (column, range))).OrderBy(segment => segment.Min);
        var (min, lim, _) = segments[column][range];
        var left = new List<Segment>(segments[column].Where((_, j) => j < range));
        foreach (var segment in taken)
        {
            if (min >= lim)
                break;
            if (min < segment.Min)
                left.Add(new Segment(min, Math.Min(segment.Min, lim), true));
            min = Math.Max(min, segment.Lim);
        }
        if (min < lim)
            left.Add(new Segment(min, lim, true));
        left.AddRange(segments[column].Where((_, j) => j > range));
        context.CheckUserArg(left.Count > 0, "AllOther", "No index is selected as all other indexes.");
        return [.. left];
    }

    /// <summary>The schema, with the header's names as slot names of vectors of known size.</summary>
    internal static DataViewSchema SchemaOf(IHost host, TextFormat format, TextColumn[] columns, string header)
    {
        FieldScanner scanner = new(format, MaxNeeded, null);
        if (!string.IsNullOrEmpty(header))
        {
            using var stats = new FormatErrors(host);
            scanner = new FieldScanner(format, MaxNeeded, stats.Count);
            scanner.Scan(header.AsMemory());
        }
        var builder = new DataViewSchema.Builder();
        foreach (var column in columns)
        {
            DataViewSchema.Annotations.Builder annotations = new();
            if (column.Type is VectorDataViewType { IsKnownSize: true } vector && column.SlotNames(scanner, vector.Size) is { } names)
                annotations.Add(AnnotationUtils.Kinds.SlotNames, AnnotationUtils.GetNamesType(vector.Size), ConstantGetters.Constant(names));
            builder.AddColumn(column.Name, column.Type, annotations.ToAnnotations());
        }
        return builder.ToSchema();
    }

    private VBuffer<ReadOnlyMemory<char>>? SlotNames(FieldScanner header, int size)
    {
        var names = new ReadOnlyMemory<char>[size];
        int found = 0, start = 0;
        foreach (var (min, lim, _) in Segments)
        {
            for (int i = header.FirstAtOrAfter(min); i < header.Count && header.Index(i) < lim; i++)
            {
                string name = header.Text(i).ToString().Trim();
                names[start + header.Index(i) - min] = name.AsMemory();
                found += name.Length > 0 ? 1 : 0;
            }
            start += lim - min;
        }
        return found == 0 ? null : new VBuffer<ReadOnlyMemory<char>>(size, names);
    }

    internal static TextColumn Load(IExceptionContext context, ModelLoadContext ctx, bool hasKeyCounts, bool hasForcedVectors)
    {
        string name = ctx.LoadNonEmptyString();
        var kind = (DataKind)ctx.Reader.ReadByte();
        context.CheckDecode(Enum.IsDefined(kind), "Corrupt text loader");
        var type = ColumnTypeExtensions.PrimitiveTypeFromKind(kind);
        if (ctx.Reader.ReadByte() != 0)
        {
            context.CheckDecode(hasKeyCounts, "The text loader's key columns were written by a version no longer supported");
            type = new KeyDataViewType(type.RawType, ctx.Reader.ReadUInt64());
        }
        int count = ctx.Reader.ReadInt32();
        context.CheckDecode(count is > 0 and < 1 << 24, "Corrupt text loader");
        var segments = new Segment[count];
        for (int i = 0; i < count; i++)
        {
            segments[i] = new Segment(ctx.Reader.ReadInt32(), ctx.Reader.ReadInt32(), hasForcedVectors && ctx.Reader.ReadByte() != 0);
            context.CheckDecode(0 <= segments[i].Min && segments[i].Min < segments[i].Lim, "Corrupt text loader");
        }
        return new TextColumn(context, name, type, segments);
    }

    internal void Save(ModelSaveContext ctx)
    {
        // string: name; byte: kind; byte: whether a key, then ulong: count; int: segments; per segment int: first, int: limit, byte: vector
        ctx.SaveNonEmptyString(Name);
        ctx.Writer.Write((byte)ColumnTypeExtensions.KindOf(ItemType.RawType)!.Value);
        ctx.Writer.Write(ItemType is KeyDataViewType);
        if (ItemType is KeyDataViewType key)
            ctx.Writer.Write(key.Count);
        ctx.Writer.Write(Segments.Length);
        foreach (var (min, lim, forceVector) in Segments)
        {
            ctx.Writer.Write(min);
            ctx.Writer.Write(lim);
            ctx.Writer.Write(forceVector);
        }
    }
}
