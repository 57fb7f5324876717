// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Linq.Expressions;
using System.Reflection;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A member of a class that is a column.</summary>
internal sealed class MemberColumn
{
    // Compiled once: every cursor uses the same.
    private Delegate _reader;
    private Delegate _writer;

    private MemberColumn(string name, DataViewType type, MemberInfo member, DataViewSchema.Annotations annotations)
    {
        Name = name;
        Type = type;
        Member = member;
        Annotations = annotations;
    }

    internal string Name { get; }

    internal DataViewType Type { get; }

    internal MemberInfo Member { get; }

    internal DataViewSchema.Annotations Annotations { get; }

    internal static Type ValueType(MemberInfo member) => member is FieldInfo field ? field.FieldType : ((PropertyInfo)member).PropertyType;

    /// <summary>The type of a value, or of a vector's values; text for strings.</summary>
    internal static Type Mapped(Type type, out bool isVector)
    {
        isVector = type.IsArray || type.IsGenericType && type.GetGenericTypeDefinition() == typeof(VBuffer<>);
        var item = type.IsArray ? type.GetElementType() : isVector ? type.GetGenericArguments()[0] : type;
        return item == typeof(string) ? typeof(ReadOnlyMemory<char>) : item;
    }

    internal static Type ItemType(MemberInfo member, out bool isVector)
    {
        var item = Mapped(ValueType(member), out isVector);
        if (!ColumnTypeExtensions.TryPrimitiveTypeFromType(item, out _) && DataViewTypeManager.Find(item, member.GetCustomAttributes()) == null)
            throw Contracts.ExceptParam("rawType", $"Could not determine an IDataView type and registered custom types for member {member.Name}");
        return item;
    }

    /// <summary>The columns of a class by its definition, or by its attributes where there is none.</summary>
    internal static MemberColumn[] Of(Type userType, SchemaDefinition definition, SchemaDefinition.Direction direction)
    {
        definition ??= SchemaDefinition.Create(userType, direction);
        return [.. definition.Select(column => Bind(userType, column))];
    }

    private static MemberColumn Bind(Type userType, SchemaDefinition.Column column)
    {
        MemberInfo member = (MemberInfo)userType.GetField(column.MemberName) ?? userType.GetProperty(column.MemberName)
            ?? throw Contracts.ExceptParam("userSchemaDefinition", $"No field or property with name '{column.MemberName}' found in type '{userType.FullName}'");
        var item = ItemType(member, out bool isVector);
        string name = string.IsNullOrEmpty(column.ColumnName) ? column.MemberName : column.ColumnName;
        var type = column.ColumnType;
        if (type == null)
        {
            var itemType = ColumnTypeExtensions.PrimitiveTypeFromType(item);
            type = isVector ? new VectorDataViewType(itemType) : itemType;
        }
        if (isVector != type is VectorDataViewType)
            throw Contracts.ExceptParam("userSchemaDefinition", $"Column '{name}' is supposed to be {(isVector ? "scalar" : "vector")}, but type of associated field '{column.MemberName}' is {(isVector ? "vector" : "scalar")}");
        if (type.GetItemType().RawType != item)
            throw Contracts.ExceptParam("userSchemaDefinition", $"Column '{name}' is supposed to have item type {type.GetItemType().RawType}, but associated field has type {item}");
        return new MemberColumn(name, type, member, column.Annotations);
    }

    internal static DataViewSchema SchemaOf(MemberColumn[] columns)
    {
        var builder = new DataViewSchema.Builder();
        foreach (var column in columns)
            builder.AddColumn(column.Name, column.Type, column.Annotations);
        return builder.ToSchema();
    }

    /// <summary>Reads the member of an object.</summary>
    internal Func<TRow, TValue> Reader<TRow, TValue>() => (Func<TRow, TValue>)(_reader ??= MakeReader<TRow, TValue>());

    private Func<TRow, TValue> MakeReader<TRow, TValue>()
    {
        var row = Expression.Parameter(typeof(TRow));
        return Expression.Lambda<Func<TRow, TValue>>(Expression.MakeMemberAccess(row, Member), row).Compile();
    }

    /// <summary>Writes the member of an object.</summary>
    internal Action<TRow, TValue> Writer<TRow, TValue>() => (Action<TRow, TValue>)(_writer ??= MakeWriter<TRow, TValue>());

    private Action<TRow, TValue> MakeWriter<TRow, TValue>()
    {
        var row = Expression.Parameter(typeof(TRow));
        var value = Expression.Parameter(typeof(TValue));
        return Expression.Lambda<Action<TRow, TValue>>(Expression.Assign(Expression.MakeMemberAccess(row, Member), value), row, value).Compile();
    }

    /// <summary>A getter of the column's type that reads the current object's member.</summary>
    internal Delegate MakeGetter<TRow>(Func<TRow> current)
    {
        var memberType = ValueType(Member);
        if (memberType == typeof(string))
            return Text(Reader<TRow, string>(), current);
        if (memberType == typeof(string[]))
            return Texts(Reader<TRow, string[]>(), current);
        // The real library lacks this one type of keys, and says so from within a reflected call.
        if (Type is KeyDataViewType && memberType == typeof(ushort))
            throw new TargetInvocationException(new InvalidOperationException());
        string method = memberType.IsArray ? nameof(FromArray) : Type is VectorDataViewType ? nameof(FromBuffer) : Type is KeyDataViewType ? nameof(FromKey) : nameof(Direct);
        return ColumnTypeExtensions.InvokeGeneric<Delegate>(typeof(MemberColumn), this, method, [typeof(TRow), Type.GetItemType().RawType], current);
    }

    private static ValueGetter<ReadOnlyMemory<char>> Text<TRow>(Func<TRow, string> read, Func<TRow> current)
        => (ref ReadOnlyMemory<char> value) => value = read(current()).AsMemory();

    private static ValueGetter<VBuffer<ReadOnlyMemory<char>>> Texts<TRow>(Func<TRow, string[]> read, Func<TRow> current)
        => (ref VBuffer<ReadOnlyMemory<char>> value) =>
        {
            var texts = read(current()) ?? [];
            var editor = VBufferEditor.Create(ref value, texts.Length);
            for (int i = 0; i < texts.Length; i++)
                editor.Values[i] = texts[i].AsMemory();
            value = editor.Commit();
        };

    private Delegate FromArray<TRow, TItem>(Func<TRow> current)
    {
        var read = Reader<TRow, TItem[]>();
        return (ValueGetter<VBuffer<TItem>>)((ref VBuffer<TItem> value) =>
        {
            var items = read(current()) ?? [];
            var editor = VBufferEditor.Create(ref value, items.Length);
            items.CopyTo(editor.Values);
            value = editor.Commit();
        });
    }

    private Delegate FromBuffer<TRow, TItem>(Func<TRow> current)
    {
        var read = Reader<TRow, VBuffer<TItem>>();
        return (ValueGetter<VBuffer<TItem>>)((ref VBuffer<TItem> value) => read(current()).CopyTo(ref value));
    }

    private Delegate Direct<TRow, TItem>(Func<TRow> current)
    {
        var read = Reader<TRow, TItem>();
        return (ValueGetter<TItem>)((ref TItem value) => value = read(current()));
    }

    // Objects count categories from 0, columns from 1: 0 is the missing key. What lies outside is missing.
    private Delegate FromKey<TRow, TItem>(Func<TRow> current)
    {
        var read = Reader<TRow, TItem>();
        ulong count = Type.GetKeyCount();
        return (ValueGetter<TItem>)((ref TItem value) =>
        {
            ulong raw = Convert.ToUInt64(read(current()));
            value = (TItem)Convert.ChangeType(raw < count ? raw + 1 : 0, typeof(TItem));
        });
    }
}
