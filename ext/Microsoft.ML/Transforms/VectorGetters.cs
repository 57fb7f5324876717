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
}
