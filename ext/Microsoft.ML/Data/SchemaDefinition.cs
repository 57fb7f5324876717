// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Which columns the members of a class are, changeable where attributes cannot say it.</summary>
public sealed class SchemaDefinition : List<SchemaDefinition.Column>
{
    private SchemaDefinition() { }

    [Flags]
    public enum Direction
    {
        Read = 1,
        Write = 2,
        Both = Read | Write,
    }

    public Column this[string columnName]
    {
        get => Find(column => column.ColumnName == columnName);
        set
        {
            Contracts.CheckValue(value, nameof(value));
            if (value.ColumnName != columnName)
                throw Contracts.ExceptParam(nameof(columnName), $"The column name is specified as '{value.ColumnName}' but must match the selector '{columnName}'.");
            int index = FindIndex(column => column.ColumnName == columnName);
            if (index >= 0)
                this[index] = value;
            else
                Add(value);
        }
    }

    public static SchemaDefinition Create(Type userType, Direction direction = Direction.Both)
    {
        Contracts.CheckValue(userType, nameof(userType));
        var definition = new SchemaDefinition();
        var names = new HashSet<string>();
        foreach (var member in MembersOf(userType, direction))
        {
            foreach (var custom in member.GetCustomAttributes<DataViewTypeAttribute>())
                custom.Register();
            string name = member.GetCustomAttribute<ColumnNameAttribute>()?.Name ?? member.Name;
            if (!names.Add(name))
                throw Contracts.ExceptParam(nameof(userType), $"Duplicate column name '{name}' detected, this is disallowed");
            definition.Add(new Column(member.Name, TypeOf(member), name));
        }
        return definition;
    }

    /// <summary>Public fields, then public properties that can be read or written as asked; channels and what is marked as no column left out.</summary>
    internal static IEnumerable<MemberInfo> MembersOf(Type userType, Direction direction)
    {
        const BindingFlags Members = BindingFlags.Public | BindingFlags.Instance;
        var fields = userType.GetFields(Members).Where(field => !field.IsLiteral);
        var properties = userType.GetProperties(Members).Where(property => property.GetIndexParameters().Length == 0
            && (direction.HasFlag(Direction.Read) && property.GetMethod is { IsPublic: true } || direction.HasFlag(Direction.Write) && property.SetMethod is { IsPublic: true }));
        return fields.Concat<MemberInfo>(properties)
            .Where(member => MemberColumn.ValueType(member) != typeof(IChannel) && member.GetCustomAttribute<NoColumnAttribute>() == null);
    }

    private static DataViewType TypeOf(MemberInfo member)
    {
        var item = MemberColumn.ItemType(member, out bool isVector);
        if (DataViewTypeManager.Find(item, member.GetCustomAttributes()) is { } custom)
            return custom;
        PrimitiveDataViewType itemType = ColumnTypeExtensions.PrimitiveTypeFromType(item);
        if (member.GetCustomAttribute<KeyTypeAttribute>() is { } key)
        {
            if (!KeyDataViewType.IsValidDataType(item))
                throw Contracts.ExceptParam("userType", $"Member {member.Name} marked with KeyType attribute, but does not appear to be a valid kind of data for a key type");
            itemType = new KeyDataViewType(item, key.KeyCount.Count.Value);
        }
        var vector = member.GetCustomAttribute<VectorTypeAttribute>();
        if (vector != null && !isVector)
            throw Contracts.ExceptParam("userType", $"Member {member.Name} marked with {nameof(VectorTypeAttribute)}, but does not appear to be a vector type");
        if (!isVector)
            return itemType;
        return vector?.Dims is { Length: > 0 } dims ? new VectorDataViewType(itemType, dims) : new VectorDataViewType(itemType, 0);
    }

    public sealed class Column
    {
        internal Column(string memberName, DataViewType columnType, string columnName)
        {
            MemberName = Contracts.CheckNonEmpty(memberName, nameof(memberName));
            ColumnName = columnName ?? memberName;
            ColumnType = columnType;
        }

        public string MemberName { get; }

        public string ColumnName { get; set; }

        public DataViewType ColumnType { get; set; }

        internal Dictionary<string, (DataViewType Type, Delegate Getter)> AnnotationInfos { get; } = [];

        public DataViewSchema.Annotations Annotations
        {
            get
            {
                var builder = new DataViewSchema.Annotations.Builder();
                foreach (var (kind, (type, getter)) in AnnotationInfos)
                    builder.Add(kind, type, getter);
                return builder.ToAnnotations();
            }
        }

        public void AddAnnotation<T>(string kind, T value, DataViewType annotationType)
        {
            Contracts.CheckValue(kind, nameof(kind));
            Contracts.CheckValue(annotationType, nameof(annotationType));
            if (AnnotationInfos.ContainsKey(kind))
                throw Contracts.Except("Column already contains an annotation of this kind.");
            AnnotationInfos[kind] = (annotationType, ConstantGetters.Make(value, annotationType));
        }
    }
}

/// <summary>Getters that always hand out the same value, as the column type has it.</summary>
internal static class ConstantGetters
{
    internal static Delegate Make<T>(T value, DataViewType type)
    {
        var item = MemberColumn.Mapped(typeof(T), out bool isVector);
        if (isVector != type is VectorDataViewType)
            throw Contracts.Except($"Value inputted is supposed to be {(isVector ? "vector" : "scalar")}, but the annotation's type is {type}");
        if (item != type.GetItemType().RawType)
            throw Contracts.Except($"Value inputted is supposed to have Type {item}, but the annotation's type is {type}");
        return value switch
        {
            string text => Constant(text.AsMemory()),
            string[] texts => Constant(new VBuffer<ReadOnlyMemory<char>>(texts.Length, Array.ConvertAll(texts, text => text.AsMemory()))),
            Array array => ColumnTypeExtensions.InvokeGeneric<Delegate>(typeof(ConstantGetters), null, nameof(OfArray), item, array),
            _ when isVector => ColumnTypeExtensions.InvokeGeneric<Delegate>(typeof(ConstantGetters), null, nameof(Constant), typeof(VBuffer<>).MakeGenericType(item), value),
            _ => Constant(value),
        };
    }

    private static Delegate OfArray<T>(T[] values) => Constant(new VBuffer<T>(values.Length, values));

    internal static ValueGetter<T> Constant<T>(T value)
    {
        var copy = ValueCopier<T>.Instance;
        return (ref T destination) => copy(in value, ref destination);
    }
}
