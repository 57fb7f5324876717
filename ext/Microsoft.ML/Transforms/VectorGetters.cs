// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>Getters that map each value of a column through a function.</summary>
internal static class VectorGetters
{
    public static ValueGetter<TTo> MapScalar<TFrom, TTo>(DataViewRow row, DataViewSchema.Column column, Func<TFrom, TTo> map)
    {
        ValueGetter<TFrom> get = row.GetGetter<TFrom>(column);
        TFrom value = default;
        return (ref TTo result) =>
        {
            get(ref value);
            result = map(value);
        };
    }

    /// <summary>Maps a vector; it stays sparse where the function maps default to default.</summary>
    public static ValueGetter<VBuffer<TTo>> Map<TFrom, TTo>(DataViewRow row, DataViewSchema.Column column, Func<TFrom, TTo> map)
    {
        ValueGetter<VBuffer<TFrom>> get = row.GetGetter<VBuffer<TFrom>>(column);
        VBuffer<TFrom> source = default;
        TTo unset = map(default);
        bool keepsSparse = EqualityComparer<TTo>.Default.Equals(unset, default);
        return (ref VBuffer<TTo> result) =>
        {
            get(ref source);
            ReadOnlySpan<TFrom> values = source.GetValues();
            ReadOnlySpan<int> slots = source.GetIndices();
            bool sparse = !source.IsDense && keepsSparse;
            VBufferEditor<TTo> editor = VBufferEditor.Create(ref result, source.Length, sparse ? values.Length : source.Length);
            if (!source.IsDense && !sparse)
                editor.Values.Fill(unset);
            for (int i = 0; i < values.Length; i++)
            {
                editor.Values[source.IsDense || sparse ? i : slots[i]] = map(values[i]);
                if (sparse)
                    editor.Indices[i] = slots[i];
            }

            result = editor.Commit();
        };
    }

    /// <summary>Maps a vector to keys; the result is sparse where fewer than half of them are known, or none.</summary>
    public static ValueGetter<VBuffer<uint>> MapToKeys<TFrom>(DataViewRow row, DataViewSchema.Column column, Func<TFrom, uint> map)
    {
        ValueGetter<VBuffer<uint>> get = Map(row, column, map);
        VBuffer<uint> keys = default;
        return (ref VBuffer<uint> result) =>
        {
            get(ref keys);
            (int Slot, uint Key)[] known = keys.Items().Where(item => item.Value != 0).Select(item => (item.Key, item.Value)).ToArray();
            if (known.Length > 0 && known.Length >= keys.Length / 2)
            {
                keys.CopyToDense(ref result);
                return;
            }

            VBufferEditor<uint> editor = VBufferEditor.Create(ref result, keys.Length, known.Length);
            for (int i = 0; i < known.Length; i++)
                (editor.Indices[i], editor.Values[i]) = known[i];
            result = editor.Commit();
        };
    }
}
