// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>The script of each code point (property Script of Unicode 14; Hiragana and Katakana count as Han).</summary>
internal static class UnicodeScripts
{
    /// <summary>No script of its own: unassigned, and the plain space.</summary>
    public const int Any = 0;

    // Ranges of one script in order: the distance from the start of the range before (7 bits a byte, low bits first), then
    // the script's number.
    private const string Packed =
        "AAFBAhoBBgIaAS8CAQEPAgEBBQIXAQECHwEBAsEDAScCBQEFAwIBFARwBQQBAQUDAAIFBAEBBQEABAUBAQEFAQEBBQMAAQUBAAEFFAABBT8GDgUQB4UBBAIHqQEAAQgmAAII" +
        "MgACCAMAAQk3AAgJGwAECQYACwoFAQEKBgEBCg4BAQoDAQEKIAEBCgoECwoaBAEKbAEBCiILDgABCzwAAgsDCjAMMgAODTsAAg0DDi4AAg4PAAEPHAACDwEAAQsLAAUKHwAB" +
        "CgIABgpKAQEKHRBRBAQQDwECEBoRBAABEQgAAhECAAIRFgABEQcAAREBAAMRBAACEQkAAhECAAIRBAAIEQEABBECAAERBQACERkAAhIDAAESBgAEEgIAAhIWAAESBwABEgIA" +
        "ARICAAESAgACEgEAARIFAAQSAgACEgMAAxIBAAcSBAABEgEABxIRAAoTAwABEwkAARMDAAETFgABEwcAARMCAAETBQACEwoAARMDAAETAwACEwEADxMEAAITDAAHEwcAARQD" +
        "AAEUCAACFAIAAhQWAAEUBwABFAIAARQFAAIUCQACFAIAAhQDAAcUAwAEFAIAARQFAAIUEgAKFQIAARUGAAMVAwABFQQAAxUCAAEVAQABFQIAAxUCAAMVAwADFQwABBUFAAMV" +
        "AwABFQQAAhUBAAYVAQAOFRUABRYNAAEWAwABFhcAARYQAAIWCQABFgMAARYEAAcWAgABFgMAAhYBAAIWBAACFgoABxYJFw0AARcDAAEXFwABFwoAARcFAAIXCQABFwMAARcE" +
        "AAcXAgAGFwIAARcEAAIXCgABFwIADRgNAAEYAwABGDMAARgDAAEYBgAEGBAAAhgaAAEZAwABGRIAAxkYAAEZCQABGQEAAhkHAAMZAQAEGQYAARkBAAEZCAAGGQoAAhkDAAwa" +
        "OgAEAQEaHAAlGwIAARsBAAEbBQABGxgAARsBAAEbFwACGwUAARsBAAEbBgACGwoAAhsEACAcSAABHCQABBwnAAEcJAABHA8AARwHAQQcAgAlHaABHiYAAR4BAAUeAQACHisB" +
        "AR4EH4ACIEkAASAEAAIgBwABIAEAASAEAAIgKQABIAQAAiAhAAEgBAACIAcAASABAAEgBAACIA8AASA5AAEgBAACIEMAAiAgAAMgGgAGIVYAAiEGAAIigAUjHQADJEsBAyQL" +
        "AAclFgAJJQEmFQECAAknFAAMKA0AASgDAAEoAgAMKV4AAikKAAYpCgAGKgIBAioBAQEqFAAGKlkAByorAAUiRgAKKx8AASsMAAQrDAAEKwEAAysMLB4AAiwFAAstLAAELRoA" +
        "Bi0LAAMtAikgLhwAAi4CLz8AAS8dAAIvCwAGLwoABi8OAAIEHwAxME0AAzAvAAExQDI0AAgyBDM4AAMzDwADMwM0MAcJAAceKwACHgMxCAAIBAMBAQQNAQEEBwEEBAEBBgQB" +
        "AQMEAgEBAAUCJgUFBwECMQUFAgQFBQINBwECRgUBBEACgAIFFgACBQYAAgUmAAIFBgACBQgAAQUBAAEFAQABBQEAAQUfAAIFNQABBQ8AAQUOAAIFBgABBRMAAgUDAAEFCQAB" +
        "AQwEAgFXAAEBCwIBAAIBCwIBAQ8AAQINAAMBIQAPBCEADwEmBQEBAwICAQYCAQEbAgEBEQIpAQMABAGXBQAZAQsAFQGgBzWAAgH0BAACASAAAQFpNmACIAZ0AAUGBx4mAAEe" +
        "AQAFHgEAAjc4AAc3AgAONwEgFwAJIAcAASAHAAEgBwABIAcAASAHAAEgBwABIAcAASAHAAEHIAFeACI4GgABOFkADDjWAQAaAQwABAEFOAEBATgBARk4CQQEHwIBCDgEAQQA" +
        "AThWAAIEAgECOAMBAThaAQI4AwAFAysAAR9eAAEBEAMgASQADDgQHx8AAQFAHx8BUTgvAQE4WAGoATjAMwFAOICkATmNCQADOTcACTowO6wCABQHYDxYAAgBIgJmAQMCQAAF" +
        "AgIAAQIBAAECBQAYAg49LQADAQoABj44AAg/RgAIPwwABhAgQC4BAUABQSQAC0EBHx0AA0JOAAEBAUIKAARCAh0fAAFDNwAJQw4AAkMKAAJDBB0gREMAGEQFRRcACiAGAAIg" +
        "BgACIAYACSAHAAEgBwABAisBAQIJBQECBAECAAQhUEUuAAJFCgAGH6RXAAwfFwAEHzEAhEI47gIAAjhqACYCBwAMCAUABQkaAAEJBQABCQEAAQkCAAEJAgABCQoKcwAQCusC" +
        "AQIKUAACCjYABwoBACAKEAQQAQoABgQOBwIBIwABARMAAQEEAAQKBQABCocBAAIBAQABASACGgEGAhoBCzgKAQE4LQECHx8AAx8GAAIfBgACHwYAAh8DAAMBBwABAQcACgEF" +
        "AAJGDAABRhoAAUYTAAFGAgABRg8AAkYOACJGewAFAQMABAEtAAMBCQVPAAEBDQADBQEALwEtBAEAggFHHQADSDEADwQBARsABEkkAAlJA0obAAVLKwAFTB4AAUwBTSQABE0O" +
        "ACpOUE8wUB4AAlAKAAZRJAAEUSQABFIoAAhTNAALUwFUCwABVA8AAVQHAAFUAgABVAsAAVQPAAFUBwABVAIAQ1W3AgAJVRYAClUIABgCBgABAioAAQIJAEVWBgACVgEAAVYs" +
        "AAFWAgADVgEAAlYBVxYAAVcJWCBZHwAIWQkAMFoTAAFaAgAFWgVbHAADWwFcGgAFXAEAQF0gXhgABF4UAAJeLl8EAAFfAgAFXwgAAV8DAAFfHQACXwMABF8KAAdfCQAHYCBh" +
        "IAAgYicABGIMAAljNgADYwdkFgACZAhlEwAFZQhmEgAHZgQADGYHAFBnSQA3aDMADWgzAAdoBmkoAAhpCgCmAgofAAFqKgABagMAAmoCAE5rKAAIbCoAFm0aACZuHAAUbxcA" +
        "CXBOAARwJAAJcAFxQwAKcQEAAnIZAAdyCgAGczUAAXMSAAh0JwAJdWAAARkUAAt2EgABdiwAQXcHAAF3AQABdwQAAXcPAAF3CwAGeDsABXgKAAZ5BAABeQgAAnkCAAJ5FgAB" +
        "eQcAAXkCAAF5BQABBAF5CQACeQIAAnkDAAJ5AQAGeQEABXkHAAJ5BwADeQUAiwF6XAABegUAHntIAAh7CgCmAXw2AAJ8JgAifUUAC30KAAYqDQATfjoABn4KADZ/GwACfw8A" +
        "BH8XALkBgDwAZIFTAAyBAYIHAAKCAQACgggAAYICAAGCHgABggIAAoIMAAmCCgBGgwgAAoMuAAKDCwAbhEgACIVTAA0iEIY5AIcChwkAAYctAAGHDgAKhx0AA4ggAAKIFgAB" +
        "iA4ASYkHAAGJAgABiSwAA4kBAAGJAgABiQkACIkKAAaKBgABigIAAYolAAGKAgABigYAB4oKALYCixkAtwE6AQAPFTIADRUBjJoHAGaMbwABjAUAC4zEAQDMFI1jAA2OrwgA" +
        "AY4JAMcfj8cEALlDPLkEAAeQHwABkAoABJACkU8AAZEKAAaSHgACkgYACpNGAAqTCgABkwcAAZMVAAWTEwCwBZRbAGWVSwAElTkAB5URAECWAZcBOAKYAQALOAIADpb4LwAI" +
        "loAGmNYDACqWCQDnRTgEAAE4BwABOAIAATijAgAtOAMAETgEAAiXjAMAhBKZawAFmQ0AA5kJAAeZCgACmQQBBADcJAQuAAIEFwAJAXQAPAH2AQAKAScAAgE+BAMBEQQIAQIE" +
        "BwEeBAQBPQAVBUYAmgEBFAAMAVcACQEZAIcBAVUAAQFHAAEBAgACAQEAAgECAAIBBAABAQwAAQEBAAEBBwABAUEAAQEEAAIBCAABAQcAAQEcAAEBBAABAQUAAQEBAAMBBwAB" +
        "AdQCAAIBpAIAAgEymowFAA+aBQABmg8A0AgCHwDhATYHAAE2EQACNgcAATYCAAE2BQDVAZstAAObDgACmwoABJsCAMACnB8AEZ06AAWdAQDgCSAHAAEgBAABIAIAASAPAAGe" +
        "xQEAAp4QACmfTAAEnwoABJ8CAJEGAUQATAE9AMIBCgQAAQobAAEKAgABCgEAAgoBAAEKCgABCgQAAQoBAAEKAQAGCgEABAoBAAEKAQABCgEAAQoDAAEKAgABCgEAAgoBAAEK" +
        "AQABCgEAAQoBAAEKAQABCgIAAQoBAAIKBAABCgcAAQoEAAEKBAABCgEAAQoKAAEKEQAFCgMAAQoFAAEKEQA0CgIAjgIBLAAEAWQADAEPAAIBDwABAQ8AAQElAAoBrgEAOAEa" +
        "OAEBAgANASwABAEJAAcBAgAOAQYAmgEB2AcABQEQAAMBDQADAXQADAFZAAcBDAAEAQEADwEMAAQBOAAIAQoABgEoAAgBHgACAQIATgHUAgAMAQ4AAgEFAAMBBQADAQcACQEd" +
        "AAMBCwAFAQYACgEKAAYBCAAIAQcACQGTAQABATcAJQEKAIYIOODNAgAgOLkgAAc43gEAAjiCLQAOOLE6AJ8YOJ4EAOILOMsmALbZKwEBAB4BYACAAQTwAQA=";

    private static readonly (int[] Starts, byte[] Scripts) Ranges = Unpack();

    public static int Of(int c)
    {
        if (c == ' ')
            return Any;
        // The prolonged sound mark belongs to Kana.
        if (c == 0x30FC)
            c = 0x4E00;
        int at = Array.BinarySearch(Ranges.Starts, c);
        return Ranges.Scripts[at >= 0 ? at : ~at - 1];
    }

    private static (int[] Starts, byte[] Scripts) Unpack()
    {
        byte[] bytes = Convert.FromBase64String(Packed);
        var starts = new List<int>();
        var scripts = new List<byte>();
        int start = 0;
        for (int at = 0; at < bytes.Length;)
        {
            int distance = 0, shift = 0;
            do
            {
                distance |= (bytes[at] & 0x7F) << shift;
                shift += 7;
            }
            while (bytes[at++] >= 0x80);
            start += distance;
            starts.Add(start);
            scripts.Add(bytes[at++]);
        }
        return (starts.ToArray(), scripts.ToArray());
    }
}

/// <summary>Splits where the script changes; what stands before the first character that has a script goes.</summary>
internal sealed class ScriptPreTokenizer : PreTokenizer
{
    public override void Apply(TextPieces pieces)
    {
        var result = new List<(int From, int To)>();
        var text = pieces.Text.Span;
        foreach (var (from, to) in pieces.Spans)
        {
            int start = -1, last = UnicodeScripts.Any;
            for (int i = from; i < to; i++)
            {
                int script = UnicodeScripts.Of(text[i]);
                if (script == UnicodeScripts.Any)
                    continue;
                if (script != last)
                {
                    if (start >= 0)
                        result.Add((start, i));
                    start = i;
                }
                last = script;
            }
            if (start >= 0)
                result.Add((start, to));
        }
        pieces.Spans = result;
    }
}
