// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;

namespace Microsoft.ML.Data;

/// <summary>Calls generic methods by the types that columns hold, which are known at run time only.</summary>
internal static class RowGetters
{
    /// <summary>The getter of a column's own type.</summary>
    public static Delegate Get(DataViewRow row, DataViewSchema.Column column)
        => Call<Delegate>(Typed<int>, column.Type.RawType, row, column);

    /// <summary>Calls a generic method, given as any instance of it, with another type argument.</summary>
    public static TResult Call<TResult>(Delegate method, Type type, params object[] arguments)
        => Call<TResult>(method, [type], arguments);

    public static TResult Call<TResult>(Delegate method, Type[] types, params object[] arguments)
        => (TResult)method.Method.GetGenericMethodDefinition().MakeGenericMethod(types)
            .Invoke(method.Target, BindingFlags.DoNotWrapExceptions, null, arguments, null);

    private static Delegate Typed<T>(DataViewRow row, DataViewSchema.Column column) => row.GetGetter<T>(column);
}
