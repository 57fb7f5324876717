// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Numerics;

namespace Microsoft.ML.Runtime;

/// <summary>MurmurHash3 (32 bits) as the library uses it: over 32-bit words, and over text.</summary>
internal static class Hashing
{
    internal static uint MurmurRound(uint hash, uint chunk) => BitOperations.RotateLeft(hash ^ Scramble(chunk), 13) * 5 + 0xE6546B64;

    private static uint Scramble(uint chunk) => BitOperations.RotateLeft(chunk * 0xCC9E2D51, 15) * 0x1B873593;

    internal static uint MixHash(uint hash, int length)
    {
        hash ^= (uint)length;
        hash = (hash ^ hash >> 16) * 0x85ebca6b;
        hash = (hash ^ hash >> 13) * 0xc2b2ae35;
        return hash ^ hash >> 16;
    }

    /// <summary>
    /// The hash of text, as the real library computes it: on UTF-8 bytes for ASCII; beyond, its second version packs
    /// a character's bytes together with what is pending in an order of its own, which recorded splits depend on.
    /// </summary>
    internal static uint MurmurHash(uint hash, ReadOnlySpan<char> text)
    {
        ulong pending = 0;
        int bits = 0, length = 0;
        foreach (uint ch in text)
        {
            if (ch <= 0x7F)
            {
                pending |= (ulong)ch << bits;
                bits += 8;
            }
            else if (ch <= 0x7FF)
            {
                pending |= (ulong)((ch & 0x3F) | ((ch << 2) & 0x1F00) | 0xC080) << bits;
                pending = (pending & 0xFF) << 8 | pending >> 8;
                bits += 16;
            }
            else
            {
                pending |= (ulong)((ch & 0x3F) | ((ch << 2) & 0x3F00) | ((ch << 4) & 0x0F0000) | 0xE08080) << bits;
                pending = (pending & 0xFF) << 16 | (pending >> 8 & 0xFF) << 8 | pending >> 16;
                bits += 24;
            }
            if (bits >= 32)
            {
                hash = MurmurRound(hash, (uint)pending);
                pending >>= 32;
                bits -= 32;
                length += 4;
            }
        }

        // The last, incomplete word counts only as many bytes as the length leaves over.
        length += bits / 8;
        uint rest = (uint)pending & (uint)((1UL << (length & 3) * 8) - 1);
        if ((length & 3) != 0)
            hash ^= Scramble(rest);
        return MixHash(hash, length);
    }
}
