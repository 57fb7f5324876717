// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Writes the columns of a row into the members of an object.</summary>
internal sealed class ObjectFiller<TRow> where TRow : class
{
    private readonly List<(MemberColumn Member, DataViewSchema.Column Column)> _bound = [];

    internal ObjectFiller(IHostEnvironment env, DataViewSchema schema, bool ignoreMissingColumns, SchemaDefinition definition)
    {
        var host = env.Register("TypedCursorable");
        foreach (var member in MemberColumn.Of(typeof(TRow), definition, SchemaDefinition.Direction.Write))
        {
            if (schema.GetColumnOrNull(member.Name) is not { } column)
            {
                if (ignoreMissingColumns)
                    continue;
                throw host.ExceptSchemaMismatch("Schema", "", member.Name);
            }
            var item = MemberColumn.ItemType(member.Member, out bool isVector);
            if (isVector != column.Type is VectorDataViewType || column.Type.GetItemType().RawType != item)
                throw host.Except($"Can't bind the IDataView column '{member.Name}' of type '{column.Type}' to field or property '{member.Member.Name}' of type '{MemberColumn.ValueType(member.Member).FullName}'.");
            _bound.Add((member, column));
        }
    }

    internal IEnumerable<DataViewSchema.Column> Columns => _bound.Select(pair => pair.Column);

    /// <summary>Fills an object from where the row then is.</summary>
    internal Action<TRow> Bind(DataViewRow row)
    {
        var setters = _bound.Select(pair => MakeSetter(pair.Member, pair.Column, row)).ToArray();
        return target =>
        {
            foreach (var setter in setters)
                setter(target);
        };
    }

    private Action<TRow> MakeSetter(MemberColumn member, DataViewSchema.Column column, DataViewRow row)
    {
        var type = MemberColumn.ValueType(member.Member);
        if (type == typeof(string))
            return Text(member.Writer<TRow, string>(), row.GetGetter<ReadOnlyMemory<char>>(column));
        if (type == typeof(string[]))
            return Array<ReadOnlyMemory<char>, string>(member, column, row, text => text.ToString());
        string method = type.IsArray ? nameof(Items) : column.Type is VectorDataViewType ? nameof(Buffer) : nameof(Direct);
        return ColumnTypeExtensions.InvokeGeneric<Action<TRow>>(typeof(ObjectFiller<TRow>), null, method, column.Type.GetItemType().RawType, member, column, row);
    }

    private static Action<TRow> Text(Action<TRow, string> write, ValueGetter<ReadOnlyMemory<char>> getter)
    {
        ReadOnlyMemory<char> value = default;
        return target =>
        {
            getter(ref value);
            write(target, value.ToString());
        };
    }

    private static Action<TRow> Direct<T>(MemberColumn member, DataViewSchema.Column column, DataViewRow row)
    {
        var getter = row.GetGetter<T>(column);
        var write = member.Writer<TRow, T>();
        T value = default;
        return target =>
        {
            getter(ref value);
            write(target, value);
        };
    }

    private static Action<TRow> Buffer<T>(MemberColumn member, DataViewSchema.Column column, DataViewRow row)
    {
        var getter = row.GetGetter<VBuffer<T>>(column);
        var read = ReaderOrNull<VBuffer<T>>(member);
        var write = member.Writer<TRow, VBuffer<T>>();
        return target =>
        {
            // The object's own buffer is reused: another object's must not be.
            var value = read == null ? default : read(target);
            getter(ref value);
            write(target, value);
        };
    }

    private static Action<TRow> Items<T>(MemberColumn member, DataViewSchema.Column column, DataViewRow row) => Array<T, T>(member, column, row, item => item);

    private static Action<TRow> Array<TSource, T>(MemberColumn member, DataViewSchema.Column column, DataViewRow row, Func<TSource, T> convert)
    {
        var getter = row.GetGetter<VBuffer<TSource>>(column);
        var read = ReaderOrNull<T[]>(member);
        var write = member.Writer<TRow, T[]>();
        VBuffer<TSource> value = default;
        return target =>
        {
            getter(ref value);
            var array = read?.Invoke(target);
            if (array == null || array.Length != value.Length)
                array = new T[value.Length];
            foreach (var (slot, item) in value.Items(all: true))
                array[slot] = convert(item);
            write(target, array);
        };
    }

    private static Func<TRow, T> ReaderOrNull<T>(MemberColumn member)
        => member.Member is PropertyInfo { GetMethod: not { IsPublic: true } } ? null : member.Reader<TRow, T>();
}
