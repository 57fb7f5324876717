// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Collections.Immutable;
using System.Reflection;
using System.Reflection.Metadata;
using System.Reflection.Metadata.Ecma335;
using System.Reflection.PortableExecutable;

namespace Microsoft.ML.Peft.Seam;

/// <summary>
/// Changes visibility flags in the metadata tables of an assembly image, in place: no table grows or moves, so that
/// tokens, identity and every other byte stay as they are.
/// </summary>
internal sealed class VisibilityPatch
{
    // Where the flags stand in a row (ECMA-335 II.22.37, II.22.26, II.22.15).
    private const int TypeFlags = 0;
    private const int MethodFlags = 6;
    private const int FieldFlags = 0;

    private readonly byte[] _image;
    private readonly MetadataReader _reader;
    private readonly int _start;

    public VisibilityPatch(byte[] image)
    {
        _image = image;
        var file = new PEReader(ImmutableArray.Create(image));
        _reader = file.GetMetadataReader();
        _start = file.PEHeaders.MetadataStartOffset;
    }

    /// <summary>Makes what is internal in the wanted types public; private, protected and mixed members stay.</summary>
    public int Apply(IReadOnlySet<string> wanted, ISet<string> found)
    {
        int changed = 0;
        foreach (TypeDefinitionHandle handle in _reader.TypeDefinitions)
        {
            TypeDefinition type = _reader.GetTypeDefinition(handle);
            string name = FullName(type);
            if (!wanted.Contains(name))
                continue;
            found.Add(name);
            changed += PatchType(handle, type);
            foreach (MethodDefinitionHandle method in type.GetMethods())
                if ((_reader.GetMethodDefinition(method).Attributes & MethodAttributes.MemberAccessMask) == MethodAttributes.Assembly)
                    changed += SetShort(TableIndex.MethodDef, MetadataTokens.GetRowNumber(method), MethodFlags, (int)MethodAttributes.MemberAccessMask, (int)MethodAttributes.Public);
            foreach (FieldDefinitionHandle field in type.GetFields())
                if ((_reader.GetFieldDefinition(field).Attributes & FieldAttributes.FieldAccessMask) == FieldAttributes.Assembly)
                    changed += SetShort(TableIndex.Field, MetadataTokens.GetRowNumber(field), FieldFlags, (int)FieldAttributes.FieldAccessMask, (int)FieldAttributes.Public);
        }
        return changed;
    }

    private int PatchType(TypeDefinitionHandle handle, TypeDefinition type)
    {
        TypeAttributes? visible = (type.Attributes & TypeAttributes.VisibilityMask) switch
        {
            TypeAttributes.NotPublic => TypeAttributes.Public,
            TypeAttributes.NestedAssembly => TypeAttributes.NestedPublic,
            _ => null,
        };
        // Visibility is in the low three bits, so the first two bytes of the four suffice.
        return visible is null ? 0 : SetShort(TableIndex.TypeDef, MetadataTokens.GetRowNumber(handle), TypeFlags, (int)TypeAttributes.VisibilityMask, (int)visible);
    }

    private int SetShort(TableIndex table, int row, int offset, int mask, int value)
    {
        int at = _start + _reader.GetTableMetadataOffset(table) + (row - 1) * _reader.GetTableRowSize(table) + offset;
        Span<byte> flags = _image.AsSpan(at, sizeof(ushort));
        int old = BinaryPrimitives.ReadUInt16LittleEndian(flags);
        BinaryPrimitives.WriteUInt16LittleEndian(flags, (ushort)((old & ~mask) | value));
        return 1;
    }

    private string FullName(TypeDefinition type)
    {
        string name = _reader.GetString(type.Name);
        if (!type.GetDeclaringType().IsNil)
            return FullName(_reader.GetTypeDefinition(type.GetDeclaringType())) + "+" + name;
        return type.Namespace.IsNil ? name : _reader.GetString(type.Namespace) + "." + name;
    }
}
