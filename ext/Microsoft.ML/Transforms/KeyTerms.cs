// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Distinct values in the order of their keys: the first has key 1.</summary>
internal abstract partial class KeyTerms
{
    // How a list is saved: as strings of the model, or as a block of values.
    private const byte TextCode = 0;
    private const byte ValuesCode = 1;

    private KeyTerms(PrimitiveDataViewType itemType, int count)
    {
        ItemType = itemType;
        Count = count;
        KeyType = new KeyDataViewType(typeof(uint), Math.Max(count, 1));
    }

    public PrimitiveDataViewType ItemType { get; }

    public int Count { get; }

    public KeyDataViewType KeyType { get; }

    public static KeyTerms Load(ModelLoadContext ctx)
    {
        byte code = ctx.Reader.ReadByte();
        if (code == TextCode)
        {
            int count = ctx.Reader.ReadInt32();
            Contracts.CheckDecode(count >= 0);
            var texts = new ReadOnlyMemory<char>[count];
            for (int i = 0; i < count; i++)
                texts[i] = ctx.LoadNonEmptyString().AsMemory();
            return new Of<ReadOnlyMemory<char>>(TextDataViewType.Instance, texts);
        }

        Contracts.CheckDecode(code == ValuesCode);
        var type = ValueCodec.ReadType(ctx.Reader) as PrimitiveDataViewType;
        Contracts.CheckDecode(type != null, "A list of terms that are vectors");
        return RowGetters.Call<KeyTerms>(LoadValues<int>, type.RawType, type, ctx.Reader);
    }

    /// <summary>The getter of the keys of a column's values.</summary>
    public abstract Delegate MakeGetter(DataViewRow row, DataViewSchema.Column column);

    public abstract void AddKeyValues(DataViewSchema.Annotations.Builder annotations, DataViewSchema.Column input, bool asText);

    public abstract void Save(ModelSaveContext ctx);

    public abstract void WriteText(TextWriter writer);

    private static KeyTerms LoadValues<T>(PrimitiveDataViewType type, BinaryReader reader)
    {
        int count = reader.ReadInt32();
        long bits = 8 * (reader.BaseStream.Length - reader.BaseStream.Position);
        Contracts.CheckDecode(count >= 0 && count <= bits, "A list of terms is cut short");
        return new Of<T>(type, ValueCodec.ReadValues<T>(reader, count));
    }

    /// <summary>Terms of one raw type.</summary>
    private sealed class Of<T> : KeyTerms
    {
        private readonly T[] _values;
        private readonly Dictionary<T, uint> _keys;

        public Of(PrimitiveDataViewType itemType, T[] values)
            : base(itemType, values.Length)
        {
            _values = values;
            _keys = new Dictionary<T, uint>(values.Length, Builder.Comparer<T>());
            for (int i = 0; i < values.Length; i++)
                Contracts.CheckDecode(_keys.TryAdd(values[i], (uint)i + 1), "Duplicate items in a list of terms");
        }

        public override Delegate MakeGetter(DataViewRow row, DataViewSchema.Column column)
        {
            uint Look(T value) => value != null && _keys.TryGetValue(value, out uint key) ? key : 0;
            return column.Type is VectorDataViewType
                ? VectorGetters.MapToKeys<T>(row, column, Look)
                : VectorGetters.MapScalar<T, uint>(row, column, Look);
        }

        public override void AddKeyValues(DataViewSchema.Annotations.Builder annotations, DataViewSchema.Column input, bool asText)
        {
            if (Count == 0)
                return;

            // Keys of keys: what the inner keys stand for, where that is known.
            if (ItemType is KeyDataViewType key && input.Annotations.Schema.GetColumnOrNull(AnnotationUtils.Kinds.KeyValues)?.Type is VectorDataViewType inner
                && (ulong)inner.Size == key.Count)
                RowGetters.Call<object>(AddInnerValues<int>, inner.ItemType.RawType, annotations, input, inner.ItemType, asText);
            else
                AddValues(annotations, ItemType, asText, () => _values);
        }

        public override void Save(ModelSaveContext ctx)
        {
            ctx.Writer.Write(ItemType is TextDataViewType ? TextCode : ValuesCode);
            if (_values is ReadOnlyMemory<char>[] texts)
            {
                ctx.Writer.Write(Count);
                foreach (ReadOnlyMemory<char> text in texts)
                    ctx.SaveNonEmptyString(text);
                return;
            }

            ValueCodec.WriteType(ctx.Writer, ItemType);
            ctx.Writer.Write(Count);
            ValueCodec.WriteValues<T>(ctx.Writer, _values);
        }

        public override void WriteText(TextWriter writer)
        {
            writer.WriteLine(ItemType is TextDataViewType ? $"# Number of terms = {Count}" : $"# Number of terms of type '{ItemType}' = {Count}");
            Func<T, string> write = ValueConversions.Writer<T>(ItemType);
            for (int i = 0; i < _values.Length; i++)
                writer.WriteLine($"{i}\t{write(_values[i])}");
        }

        private object AddInnerValues<TInner>(DataViewSchema.Annotations.Builder annotations, DataViewSchema.Column input, PrimitiveDataViewType type, bool asText)
        {
            AddValues(annotations, type, asText, () =>
            {
                VBuffer<TInner> inner = default;
                input.Annotations.GetValue(AnnotationUtils.Kinds.KeyValues, ref inner);
                Func<T, ulong> number = ValueConversions.Get<T, ulong>();
                return _values.Select(value => inner.GetItemOrDefault((int)number(value) - 1)).ToArray();
            });
            return null;
        }

        private void AddValues<TValue>(DataViewSchema.Annotations.Builder annotations, PrimitiveDataViewType type, bool asText, Func<TValue[]> values)
        {
            if (asText && type is not TextDataViewType)
            {
                Func<TValue, string> write = ValueConversions.Writer<TValue>(type);
                Add(annotations, TextDataViewType.Instance, Count, () => values().Select(value => write(value).AsMemory()).ToArray());
            }
            else
            {
                Add(annotations, type, Count, values);
            }
        }

        private static void Add<TValue>(DataViewSchema.Annotations.Builder annotations, PrimitiveDataViewType type, int count, Func<TValue[]> values)
            => annotations.Add(AnnotationUtils.Kinds.KeyValues, new VectorDataViewType(type, count), (ref VBuffer<TValue> destination) =>
            {
                TValue[] all = values();
                VBufferEditor<TValue> editor = VBufferEditor.Create(ref destination, all.Length);
                all.CopyTo(editor.Values);
                destination = editor.Commit();
            });
    }
}
