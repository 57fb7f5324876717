// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// The element types of the safetensors format, under the format's own names and in the order by which its library
/// sorts tensors in a file (the last one first).
/// </summary>
public enum SafetensorsDtype
{
    /// <summary>Truth values, one byte each.</summary>
    BOOL,

    /// <summary>4-bit floating point; read as bytes only.</summary>
    F4,

    /// <summary>6-bit floating point, 2 exponent bits; read as bytes only.</summary>
    F6_E2M3,

    /// <summary>6-bit floating point, 3 exponent bits; read as bytes only.</summary>
    F6_E3M2,

    /// <summary>Unsigned bytes.</summary>
    U8,

    /// <summary>Signed bytes.</summary>
    I8,

    /// <summary>8-bit floating point, 5 exponent bits; read as bytes only.</summary>
    F8_E5M2,

    /// <summary>8-bit floating point, 4 exponent bits; read as bytes only.</summary>
    F8_E4M3,

    /// <summary>8-bit powers of two; read as bytes only.</summary>
    F8_E8M0,

    /// <summary>Signed 16-bit integers.</summary>
    I16,

    /// <summary>Unsigned 16-bit integers; read as bytes only.</summary>
    U16,

    /// <summary>IEEE half precision.</summary>
    F16,

    /// <summary>The upper half of a float32.</summary>
    BF16,

    /// <summary>Signed 32-bit integers.</summary>
    I32,

    /// <summary>Unsigned 32-bit integers; read as bytes only.</summary>
    U32,

    /// <summary>IEEE single precision.</summary>
    F32,

    /// <summary>Pairs of float32, real and imaginary part; read as bytes only.</summary>
    C64,

    /// <summary>IEEE double precision.</summary>
    F64,

    /// <summary>Signed 64-bit integers.</summary>
    I64,

    /// <summary>Unsigned 64-bit integers; read as bytes only.</summary>
    U64,
}

/// <summary>Widths and names of the element types.</summary>
internal static class SafetensorsDtypes
{
    private static readonly Dictionary<string, SafetensorsDtype> ByName =
        Enum.GetValues<SafetensorsDtype>().ToDictionary(d => d.ToString(), StringComparer.Ordinal);

    /// <summary>All names that the format knows.</summary>
    public static IEnumerable<string> Names => ByName.Keys;

    /// <summary>Finds an element type by the format's name.</summary>
    public static bool TryParse(string name, out SafetensorsDtype dtype) => ByName.TryGetValue(name, out dtype);

    /// <summary>Bits of one element.</summary>
    public static int Bits(this SafetensorsDtype dtype) => dtype switch
    {
        SafetensorsDtype.F4 => 4,
        SafetensorsDtype.F6_E2M3 or SafetensorsDtype.F6_E3M2 => 6,
        SafetensorsDtype.BOOL or SafetensorsDtype.U8 or SafetensorsDtype.I8 => 8,
        SafetensorsDtype.F8_E5M2 or SafetensorsDtype.F8_E4M3 or SafetensorsDtype.F8_E8M0 => 8,
        SafetensorsDtype.I16 or SafetensorsDtype.U16 or SafetensorsDtype.F16 or SafetensorsDtype.BF16 => 16,
        SafetensorsDtype.I32 or SafetensorsDtype.U32 or SafetensorsDtype.F32 => 32,
        _ => 64,
    };
}
