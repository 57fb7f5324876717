// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>
/// Small files of every kind, 24 x 16 pixels, written by Pillow 9.4. Colours are <see cref="Smooth"/>; with alpha, the right
/// half is half transparent above and fully below; with a palette, 4 x 4 fields of <see cref="Field"/>.
/// </summary>
internal static class ImageSamples
{
    public const int Width = 24, Height = 16;

    public static IReadOnlyDictionary<string, byte[]> Files { get; } = Texts().ToDictionary(pair => pair.Key, pair => Convert.FromBase64String(pair.Value));

    public static int[] Smooth(int x, int y) => [x * 10, y * 15, (x + y) * 6];

    public static int[] Field(int x, int y)
    {
        int index = (x / 6) + (y / 4 * 4);
        return [index * 16, 255 - (index * 16), index * 8];
    }

    public static int Alpha(int x, int y) => x < 12 ? 255 : y < 8 ? 128 : 0;

    /// <summary>A bitmap of <see cref="Field"/> colours, or of <see cref="Smooth"/> ones without a palette.</summary>
    /// <param name="bits">Bits a pixel.</param>
    /// <param name="topDown">Rows from the top.</param>
    /// <param name="runs">Run-length coded, of 8 bits.</param>
    public static byte[] Bitmap(int bits, bool topDown = false, bool runs = false)
    {
        int colours = bits <= 8 ? 1 << bits : 0, start = 54 + (colours * 4);
        var rows = new List<byte>();
        for (int row = 0; row < Height; row++)
            rows.AddRange(runs ? Runs(row) : Row(bits, topDown ? row : Height - 1 - row));
        byte[] file = new byte[start + rows.Count];
        file[0] = (byte)'B';
        file[1] = (byte)'M';
        void Put(int at, int value) => BinaryPrimitives.WriteInt32LittleEndian(file.AsSpan(at), value);
        Put(2, file.Length);
        Put(10, start);
        Put(14, 40);
        Put(18, Width);
        Put(22, topDown ? -Height : Height);
        Put(26, 1 | (bits << 16));
        Put(30, runs ? 1 : 0);
        for (int i = 0; i < Math.Min(colours, 16); i++)
            Put(54 + (i * 4), (i * 16 << 16) | ((255 - (i * 16)) << 8) | (i * 8));
        rows.CopyTo(file, start);
        return file;
    }

    private static byte[] Row(int bits, int y)
    {
        byte[] row = new byte[((Width * bits) + 31) / 32 * 4];
        for (int x = 0; x < Width; x++)
        {
            int[] colour = Smooth(x, y);
            int index = (x / 6) + (y / 4 * 4);
            switch (bits)
            {
                case <= 8:
                    row[x * bits / 8] |= (byte)((index & ((1 << bits) - 1)) << (8 - bits - (x * bits % 8)));
                    break;
                case 16:
                    BinaryPrimitives.WriteUInt16LittleEndian(row.AsSpan(x * 2), (ushort)((colour[0] >> 3 << 10) | (colour[1] >> 3 << 5) | (colour[2] >> 3)));
                    break;
                default:
                    for (int c = 0; c < 3; c++)
                        row[(x * bits / 8) + c] = (byte)colour[2 - c];
                    break;
            }
        }

        return row;
    }

    // Rows from the bottom: a run of each field, then the end of the line; in every second row, plain indices and a jump.
    private static byte[] Runs(int row)
    {
        int first = (Height - 1 - row) / 4 * 4;
        byte a = (byte)first, b = (byte)(first + 1), c = (byte)(first + 2), d = (byte)(first + 3);
        return row % 2 == 0
            ? [6, a, 6, b, 6, c, 6, d, 0, 0]
            : [0, 6, a, a, a, a, a, a, 6, b, 0, 3, c, c, c, 0, 3, c, 6, d, 0, 0];
    }

    private static Dictionary<string, string> Texts() => new()
    {
        ["jpeg"] =
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsOCwkJDRENDg8QEBEQCgwSExIQEw8QEBD/2wBDAQMDAwQDBAgE" +
            "BAgQCwkLEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBD/wAARCAAQABgDASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQF" +
            "BgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNk" +
            "ZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEB" +
            "AQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZH" +
            "SElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oA" +
            "DAMBAAIRAxEAPwD4k8O/Cn7v+jfpXp/h34Ufd/0b07V754d+FP3f9G9O1eneHvhT93/Rv0riy/ONtT5LgjxS+H3/AMTwPw98KPu/6N+lFfZfh74U/d/0b9KK+woZx7m5/UuTeKX+" +
            "yx9/8T//2Q==",
        ["jpeg progressive"] =
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsOCwkJDRENDg8QEBEQCgwSExIQEw8QEBD/2wBDAQMDAwQDBAgE" +
            "BAgQCwkLEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBD/wgARCAAQABgDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAABgAH/8QA" +
            "FgEBAQEAAAAAAAAAAAAAAAAABQMH/9oADAMBAAIQAxAAAAHEVD5PAgDbLMan/8QAFhAAAwAAAAAAAAAAAAAAAAAAAAQF/9oACAEBAAEFAl5QvKF5QvKF5QvKP//EABsRAAEEAwAA" +
            "AAAAAAAAAAAAAAABBAYhBSMx/9oACAEDAQE/AcJKeWM5TqSz/8QAFxEAAwEAAAAAAAAAAAAAAAAAAAIEIf/aAAgBAgEBPwGewSzD/8QAFRABAQAAAAAAAAAAAAAAAAAAADL/2gAI" +
            "AQEABj8ClKUpS//EABUQAQEAAAAAAAAAAAAAAAAAAAAx/9oACAEBAAE/IZkyJMiRP//aAAwDAQACAAMAAAAQjO//xAAWEQEBAQAAAAAAAAAAAAAAAAAA4fH/2gAIAQMBAT8Q2Vi/" +
            "/8QAFxEBAAMAAAAAAAAAAAAAAAAAACExUf/aAAgBAgEBPxCiW1//xAAXEAEBAQEAAAAAAAAAAAAAAAAA8UGh/9oACAEBAAE/EILi4muDiSkv/9k=",
        ["jpeg grey"] =
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsOCwkJDRENDg8QEBEQCgwSExIQEw8QEBD/wAALCAAQABgBAREA" +
            "/8QAFgABAQEAAAAAAAAAAAAAAAAABwYI/8QAGxAAAQUBAQAAAAAAAAAAAAAAAAYHJDKhQVH/2gAIAQEAAD8AxInWprGwT061FY3nBOTzUVjYVydamsbzgnJ5qaxsE9PNTWNh/9k=",
        ["jpeg cmyk"] =
            "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwADAgICAgIDAgICAwMDAwQGBAQEBAQIBgYFBgkICgoJCAkJCgwPDAoLDgsJCQ0RDQ4PEBAREAoMEhMSEBMPEBAQ/8AAFAgAEAAYBEMRAE0R" +
            "AFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAgACf/EAB8QAAEBCQEAAAAAAAAAAAAAAAAGBxgjM0FDUWSBov/aAA4EQwBNAFkASwAAPwADsks8Bs7to+QNIhES4OKGqY1WSWeE" +
            "7to+RAIhES4OKENZklnhO7aPkQCIREuDihGKjJLPDUB3bR8h/RCIlwcUIarJLPCd20fIgEQiJcHFCGsySzwndtHyIBEIiXBxQj//2Q==",
        ["jpeg 4:4:4"] =
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggLDAsKDAkKCgr/2wBDAQICAgICAgUD" +
            "AwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/wAARCAAQABgDAREAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAABwn/xAAc" +
            "EAABBAMBAAAAAAAAAAAAAAAABwglM0JRojL/xAAXAQEBAQEAAAAAAAAAAAAAAAAGCAQJ/8QAHBEAAgICAwAAAAAAAAAAAAAAAAYEBSIyITFh/9oADAMBAAIRAxEAPwCW6eNSrjdY" +
            "GaHZeh9Wftcx2TxqVcbrAVQ7L0pFWftcx1TxqVcbwKodl6UgrP2uYip41KuN1gTZDsuuTgMrP2uY6p41KuN4FUOy65KQVn7XMdk8al4jeBVDsuuSkVZ+1zP/2Q==",
        ["webp"] =
            "UklGRogAAABXRUJQVlA4IHwAAACQBACdASoYABAAPjEWiUKiISEYBAAgAwS2AE6ZQjgbyD8SX2AAM5xBVQAerpAA/v+MoBcjXf1bY/9VmzeSQP9WEFILm6W6PqQJjd/Xf/Q5v/5x" +
            "fg95i1sQhtDN8Afj/j7gaivi5o0bSiMrFKlCqY3PI9EZU+2rnj/w/gAA",
        ["webp lossless alpha"] =
            "UklGRkIAAABXRUJQVlA4TDUAAAAvF8ADEAmASNofe4mI/qcWAEH43zYR0f+UgUzapg7m33DP3mMUaiAgKDLd8wk4WU52JGPJAAA=",
        ["webp animated"] =
            "UklGRk4BAABXRUJQVlA4WAoAAAACAAAAFwAADwAAQU5JTQYAAAAAAAAAAABBTk1GfgAAAAAAAAAAABcAAA8AADIAAAJWUDhMZgAAAC8XwAMADXUhov8BBm0bSTKD4w93/xwDsWDS" +
            "PX/RDIQEiYn/b62hwG0bZXgM2S8UAAAAAAAAAAD4vsto1DAHY2fblIb3I8uS8873tguQ50FXVA9u/Q3PV/fvXPiXWzuxvV6R/Y+iAEFOTUZKAAAAAAAAAAAAFwAADwAAMgAAAFZQ" +
            "OEwxAAAALxfAAwANdSGi/wGxYDKD/K071bZtw/z/qHencBaTJv0tLOyKkAAAAAAAAAAAQP0yAABBTk1GSgAAAAAAAAAAABcAAA8AADIAAABWUDhMMgAAAC8XwAMADXUhov8Bwmyj" +
            "+lsO4UzuaaZt29zvdhuEiUmTb2Bk20f0AwAAAAAAAACAXS8D",
        ["gif"] =
            "R0lGODdhGAAQAIMAAAD/ABDvCCDfEDDPGEC/IFCvKGCfMHCPOIB/QJBvSKBfULBPWMA/YNAvaOAfcPAPeCwAAAAAGAAQAEAIoAABCBwYoKBBAQgTDljIEIHDhwkiSlRAseKCixgJ" +
            "aNxYoKNHAyBDHhhJkoHJkw1SqnTAsuWDlzAHEjRYMKFChgs3cvTYMaRIkiMfQpQYsaJFjBdPolSZsqVLmC9lCqRZ06YAnAulAqAawOpVrDo18uzp0wDQkWEJjC1Q1uxZoQ6JFjWq" +
            "AOlFuAjkJqBb165Sk0ybOnUA9eVfBoEbDCZcOCAAOw==",
        ["gif interlaced transparent"] =
            "R0lGODlhGAAQAIMAAAD/ABDvCCDfEDDPGEC/IFCvKGCfMHCPOIB/QJBvSKBfULBPWMA/YNAvaOAfcPAPeCH5BAEAAAUALAAAAAAYABAAQAigAAEIHBigoEEBCBMOWMgQgcOHCSJK" +
            "VECx4oKLGAlo3Figo0cDIEMeGEmSgcmTDVKqdMCy5YOXMAcSNFgwoUKGCzdy9NgxpEiSIx9ClBixokWMF0+iVJmypUuYL2UKpFnTpgCcC6UCoBrA6lWsOjXy7OnTANCRYQmMLVDW" +
            "7FmhDokWNaoA6UW4COQmoFvXrlKTTJs6dQD15V8GgRsMJlw4IAA7",
        ["gif animated"] =
            "R0lGODlhGAAQAIMAAAD/ABDvCCDfEDDPGEC/IFCvKGCfMHCPOIB/QJBvSKBfULBPWMA/YNAvaOAfcPAPeCH5BAAEAAAALAAAAAAYABAAAAicAAEIHBigoEEBCBMOWMhwIEGDBRMq" +
            "ZLjQoUCIESUKoFjRIsYAGjdyJECyZIGTKA2oXHmgpcuSJlGeXMnSZUuYJGXOpGnA5k2cOgvw7OkTgdGjCZIqVcC06YKnUI8iVZq0qVOoT6UapVrVqgKsWbVyTeD1K1gGaNM2WMvW" +
            "gdu3D+LKTauW7dq3cOXGpYvW7l28DvTu5eu3AeDAggMCACH5BAAEAAAALAAAAAAYABAAgwD/ABDvCCDfEDDPGEC/IFCvKGCfMHCPOIB/QJBvSKBfULBPWMA/YNAvaOAfcPAPeAic" +
            "AAcIHCigoMEACBMCWMhwIEGDBRMqZLjQoUCIESUGoFjRIkYBGjdyPECypIGTKAuoXEmgpcuSJlGeXMnSZUuYJGXOpFnA5k2cOg3w7OlzgdGjCpIqTcC0KYKnUI8iVZq0qVOoT6Ua" +
            "pVrVagKsWbVyVeD1K9gHaNM6WMu2gdu3DOLKTauW7dq3cOXGpYvW7l28DfTu5evXAeDAggMCADs=",
        ["png"] =
            "iVBORw0KGgoAAAANSUhEUgAAABgAAAAQCAIAAACDRijCAAAAIklEQVR42mNkYGDgYmCjHLEw8LMxMFABjRo0atCoQSPVIADu4Ar/gzfPvgAAAABJRU5ErkJggg==",
        ["png alpha"] =
            "iVBORw0KGgoAAAANSUhEUgAAABgAAAAQCAYAAAAMJL+VAAAAL0lEQVR42mNkYGD4z8XAxkACbiRFPQsDPxsDAwPt8KgFoxYMjAUNo0E0asEwswAANlQM/+Nrsx8AAAAASUVORK5C" +
            "YII=",
        ["png palette"] =
            "iVBORw0KGgoAAAANSUhEUgAAABgAAAAQBAMAAAD+CqKmAAAAMFBMVEUA/wAQ7wgg3xAwzxhAvyBQryhgnzBwjziAf0CQb0igX1CwT1jAP2DQL2jgH3DwD3j0iKcxAAAARUlEQVR4" +
            "2mNgYGAQFBRUUlIyNjZmIJLj4uISGhqalpZWXl5OLKejo2PmzJmrVq3avXs3sZwzZ87cvXv33bt3////J5IDALh3X6Fg4YRIAAAAAElFTkSuQmCC",
        ["png 16"] =
            "iVBORw0KGgoAAAANSUhEUgAAABgAAAAQEAAAAAB53zwKAAAAJUlEQVR42mNkYOA8wnWE6wjXEVw0qggTAyNpcFTDqAZGxqHiBwD4GRQF0aeSlgAAAABJRU5ErkJggg==",
        ["bmp"] =
            "Qk32AQAAAAAAAHYAAAAoAAAAGAAAABAAAAABAAgAAAAAAIABAADEDgAAxA4AABAAAAAQAAAAAP8AAAjvEAAQ3yAAGM8wACC/QAAor1AAMJ9gADiPcABAf4AASG+QAFBfoABYT7AA" +
            "YD/AAGgv0ABwH+AAeA/wAAwMDAwMDA0NDQ0NDQ4ODg4ODg8PDw8PDwwMDAwMDA0NDQ0NDQ4ODg4ODg8PDw8PDwwMDAwMDA0NDQ0NDQ4ODg4ODg8PDw8PDwwMDAwMDA0NDQ0NDQ4O" +
            "Dg4ODg8PDw8PDwgICAgICAkJCQkJCQoKCgoKCgsLCwsLCwgICAgICAkJCQkJCQoKCgoKCgsLCwsLCwgICAgICAkJCQkJCQoKCgoKCgsLCwsLCwgICAgICAkJCQkJCQoKCgoKCgsL" +
            "CwsLCwQEBAQEBAUFBQUFBQYGBgYGBgcHBwcHBwQEBAQEBAUFBQUFBQYGBgYGBgcHBwcHBwQEBAQEBAUFBQUFBQYGBgYGBgcHBwcHBwQEBAQEBAUFBQUFBQYGBgYGBgcHBwcHBwAA" +
            "AAAAAAEBAQEBAQICAgICAgMDAwMDAwAAAAAAAAEBAQEBAQICAgICAgMDAwMDAwAAAAAAAAEBAQEBAQICAgICAgMDAwMDAwAAAAAAAAEBAQEBAQICAgICAgMDAwMDAw==",
    };
}
