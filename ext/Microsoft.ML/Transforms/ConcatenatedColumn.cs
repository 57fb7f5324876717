// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A vector to be joined of columns, each of which may have an alias that its slots are named by.</summary>
internal sealed record ConcatenatedColumn(string Name, (string Name, string Alias)[] Inputs)
{
    public static ConcatenatedColumn Load(ModelLoadContext ctx)
    {
        string name = ctx.LoadNonEmptyString();
        int count = ctx.Reader.ReadInt32();
        Contracts.CheckDecode(count > 0);
        var inputs = new (string, string)[count];
        for (int i = 0; i < count; i++)
            inputs[i] = (ctx.LoadNonEmptyString(), ctx.LoadStringOrNull());
        return new ConcatenatedColumn(name, inputs);
    }

    public void Save(ModelSaveContext ctx)
    {
        ctx.SaveNonEmptyString(Name);
        ctx.Writer.Write(Inputs.Length);
        foreach (var (name, alias) in Inputs)
        {
            ctx.SaveNonEmptyString(name);
            ctx.SaveStringOrNull(alias);
        }
    }

    public Bound Bind(IHost host, DataViewSchema inputSchema)
    {
        var sources = new DataViewSchema.Column[Inputs.Length];
        PrimitiveDataViewType item = null;
        int size = 0;
        for (int i = 0; i < sources.Length; i++)
        {
            string name = Inputs[i].Name;
            sources[i] = inputSchema.GetColumnOrNull(name) ?? throw host.ExceptSchemaMismatch(nameof(inputSchema), "input", name);
            DataViewType type = sources[i].Type;
            DataViewType own = type.GetItemType();
            item ??= own as PrimitiveDataViewType;
            if (!own.Equals(item))
                throw host.ExceptSchemaMismatch(nameof(inputSchema), "input", name, item?.ToString(), type.ToString());

            // One part of variable length (0) makes the whole of variable length.
            int length = type.GetValueCount();
            size = i == 0 ? length : size == 0 || length == 0 ? 0 : size + length;
        }

        return new Bound(this, sources, new VectorDataViewType(item, size));
    }


    /// <summary>The column bound to the columns that it is made of.</summary>
    internal sealed class Bound(ConcatenatedColumn column, DataViewSchema.Column[] sources, VectorDataViewType type)
    {
        public DataViewSchema.Column[] Sources => sources;

        // A single vector is handed through, annotations included.
        private bool IsIdentity => sources.Length == 1 && sources[0].Type is VectorDataViewType;

        public DataViewSchema.DetachedColumn Describe()
        {
            if (IsIdentity)
                return new DataViewSchema.DetachedColumn(column.Name, sources[0].Type, sources[0].Annotations);
            var annotations = new DataViewSchema.Annotations.Builder();
            if (type.ItemType is NumberDataViewType && sources.All(IsNormalized))
                annotations.AddPrimitiveValue(AnnotationUtils.Kinds.IsNormalized, BooleanDataViewType.Instance, true);
            if (type.Size > 0 && sources.Any(source => source.Type is not VectorDataViewType vector || source.HasSlotNames(vector.Size)))
                annotations.Add(AnnotationUtils.Kinds.SlotNames, AnnotationUtils.GetNamesType(type.Size), (ValueGetter<VBuffer<ReadOnlyMemory<char>>>)GetSlotNames);
            if (type.Size > 0 && Ranges() is { Length: > 0 } ranges)
            {
                annotations.Add(AnnotationUtils.Kinds.CategoricalSlotRanges, AnnotationUtils.GetCategoricalType(ranges.Length / 2),
                    (ValueGetter<VBuffer<int>>)((ref VBuffer<int> value) => value = new VBuffer<int>(ranges.Length, ranges)));
            }

            return new DataViewSchema.DetachedColumn(column.Name, type, annotations.ToAnnotations());
        }

        public Delegate MakeGetter(DataViewRow row)
            => IsIdentity
                ? RowGetters.Get(row, row.Schema[sources[0].Index])
                : RowGetters.Call<Delegate>(Join<int>, type.ItemType.RawType, row);

        private static bool IsNormalized(DataViewSchema.Column source)
        {
            if (source.Annotations.Schema.GetColumnOrNull(AnnotationUtils.Kinds.IsNormalized)?.Type is not BooleanDataViewType)
                return false;
            bool value = false;
            source.Annotations.GetValue(AnnotationUtils.Kinds.IsNormalized, ref value);
            return value;
        }

        private void GetSlotNames(ref VBuffer<ReadOnlyMemory<char>> destination)
        {
            var names = new ReadOnlyMemory<char>[type.Size];
            int slot = 0;
            for (int i = 0; i < sources.Length; i++)
            {
                string alias = column.Inputs[i].Alias;
                if (sources[i].Type is not VectorDataViewType vector)
                {
                    names[slot++] = (alias ?? sources[i].Name).AsMemory();
                    continue;
                }

                if (sources[i].HasSlotNames(vector.Size))
                {
                    VBuffer<ReadOnlyMemory<char>> own = default;
                    sources[i].Annotations.GetValue(AnnotationUtils.Kinds.SlotNames, ref own);
                    string prefix = alias == sources[i].Name ? "" : (alias ?? sources[i].Name) + ".";
                    foreach (var (index, name) in own.Items())
                        names[slot + index] = name.IsEmpty ? default : (prefix + name).AsMemory();
                }

                slot += vector.Size;
            }

            destination = new VBuffer<ReadOnlyMemory<char>>(names.Length, names);
        }

        // First and last slot of each category, moved to where its column stands in the joined vector.
        private int[] Ranges()
        {
            var ranges = new List<int>();
            int offset = 0;
            foreach (DataViewSchema.Column source in sources)
            {
                if (source.Type is VectorDataViewType && source.Annotations.Schema.GetColumnOrNull(AnnotationUtils.Kinds.CategoricalSlotRanges)?.Type.RawType == typeof(VBuffer<int>))
                {
                    VBuffer<int> own = default;
                    source.Annotations.GetValue(AnnotationUtils.Kinds.CategoricalSlotRanges, ref own);
                    ranges.AddRange(own.DenseValues().Select(slot => slot + offset));
                }

                offset += source.Type.GetValueCount();
            }

            return ranges.ToArray();
        }

        private ValueGetter<VBuffer<T>> Join<T>(DataViewRow row)
        {
            // A scalar is read as a vector of one.
            ValueGetter<VBuffer<T>>[] parts = sources.Select(source => source.Type is VectorDataViewType vector
                ? Checked<T>(row, row.Schema[source.Index], vector.Size)
                : AsVector<T>(row, row.Schema[source.Index])).ToArray();
            var buffers = new VBuffer<T>[parts.Length];
            return (ref VBuffer<T> destination) =>
            {
                int length = 0;
                int count = 0;
                for (int i = 0; i < parts.Length; i++)
                {
                    parts[i](ref buffers[i]);
                    length = checked(length + buffers[i].Length);
                    count += buffers[i].GetValues().Length;
                }

                if (count <= length / 2)
                    JoinSparse(buffers, length, count, ref destination);
                else
                    JoinDense(buffers, length, ref destination);
            };
        }

        private static ValueGetter<VBuffer<T>> AsVector<T>(DataViewRow row, DataViewSchema.Column source)
        {
            ValueGetter<T> get = row.GetGetter<T>(source);
            return (ref VBuffer<T> destination) =>
            {
                VBufferEditor<T> editor = VBufferEditor.Create(ref destination, 1);
                get(ref editor.Values[0]);
                destination = editor.Commit();
            };
        }

        private static ValueGetter<VBuffer<T>> Checked<T>(DataViewRow row, DataViewSchema.Column source, int size)
        {
            ValueGetter<VBuffer<T>> get = row.GetGetter<VBuffer<T>>(source);
            return (ref VBuffer<T> destination) =>
            {
                get(ref destination);
                if (size != 0 && destination.Length != size)
                    throw Contracts.Except($"Column '{source.Name}': expected {size} slots, but got {destination.Length}");
            };
        }

        private static void JoinDense<T>(VBuffer<T>[] parts, int length, ref VBuffer<T> destination)
        {
            VBufferEditor<T> editor = VBufferEditor.Create(ref destination, length);
            int offset = 0;
            foreach (VBuffer<T> part in parts)
            {
                part.CopyTo(editor.Values, offset);
                offset += part.Length;
            }

            destination = editor.Commit();
        }

        private static void JoinSparse<T>(VBuffer<T>[] parts, int length, int count, ref VBuffer<T> destination)
        {
            VBufferEditor<T> editor = VBufferEditor.Create(ref destination, length, count);
            int offset = 0;
            int at = 0;
            foreach (VBuffer<T> part in parts)
            {
                ReadOnlySpan<T> values = part.GetValues();
                ReadOnlySpan<int> slots = part.GetIndices();
                for (int i = 0; i < values.Length; i++)
                {
                    editor.Values[at] = values[i];
                    if (count < length)
                        editor.Indices[at] = offset + (part.IsDense ? i : slots[i]);
                    at++;
                }

                offset += part.Length;
            }

            destination = editor.Commit();
        }
    }
}
