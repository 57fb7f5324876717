// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Seam;

// Publicize LIST OUTPUT-FOLDER ASSEMBLY...
// Writes a copy of each assembly in which the internal parts of the listed types are public.
if (args.Length < 3)
{
    Console.Error.WriteLine("Usage: Publicize LIST OUTPUT-FOLDER ASSEMBLY...");
    return 2;
}

HashSet<string> wanted = File.ReadLines(args[0])
    .Select(line => line.Split('#')[0].Trim())
    .Where(line => line.Length > 0)
    .ToHashSet(StringComparer.Ordinal);
var found = new HashSet<string>(StringComparer.Ordinal);

Directory.CreateDirectory(args[1]);
foreach (string path in args.Skip(2))
{
    byte[] image = File.ReadAllBytes(path);
    int changed = new VisibilityPatch(image).Apply(wanted, found);
    string output = Path.Combine(args[1], Path.GetFileName(path));
    string part = output + ".part";
    File.WriteAllBytes(part, image);
    File.Move(part, output, overwrite: true);
    Console.WriteLine($"{Path.GetFileName(path)}: {changed} flags made public");
}

string[] missing = wanted.Except(found).Order(StringComparer.Ordinal).ToArray();
foreach (string name in missing)
    Console.Error.WriteLine($"{args[0]} : error PEFT001: no type {name} in {string.Join(", ", args.Skip(2).Select(Path.GetFileName))}. Remove the line, or use the package version that has the type.");
return missing.Length == 0 ? 0 : 1;
