// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>What stands for a missing value: NaN, empty text, key 0; other types have none.</summary>
internal static class Missing
{
    /// <summary>The missing value, or the default value of a type that has none.</summary>
    public static T Of<T>(DataViewType type)
    {
        if (type.Equals(NumberDataViewType.Single))
            return (T)(object)float.NaN;
        return type.Equals(NumberDataViewType.Double) ? (T)(object)double.NaN : default;
    }

    /// <summary>Tells missing values from others.</summary>
    public static Func<T, bool> Test<T>(DataViewType type)
    {
        if (type.Equals(NumberDataViewType.Single))
            return (Func<T, bool>)(object)(Func<float, bool>)float.IsNaN;
        if (type.Equals(NumberDataViewType.Double))
            return (Func<T, bool>)(object)(Func<double, bool>)double.IsNaN;
        if (type is TextDataViewType)
            return (Func<T, bool>)(object)(Func<ReadOnlyMemory<char>, bool>)(text => text.IsEmpty);
        return type is KeyDataViewType ? key => EqualityComparer<T>.Default.Equals(key, default) : _ => false;
    }
}
