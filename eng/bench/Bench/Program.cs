// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.Bench;

switch (args)
{
    case ["prepare", string folder, string name, string train, string test, .. string[] rest]:
        Material.Prepare(folder, name, train, test, rest.FirstOrDefault());
        return 0;
    case ["train" or "score" or "first", string folder, .. string[] rest]:
        Console.WriteLine(OurSide.Run(args[0], folder, new Arguments(rest)));
        return 0;
    case ["profile", string folder, .. string[] rest]:
        Profile.Run(folder, new Arguments(rest));
        return 0;
    case ["sites"]:
        Sites.Run();
        return 0;
    case ["images-run", string folder, string kind, string work, string workers, string seconds, string results]:
        Console.WriteLine(Images.Run(folder, kind, work, int.Parse(workers, CultureInfo.InvariantCulture), double.Parse(seconds, CultureInfo.InvariantCulture), results));
        return 0;
    case ["images", string folder, string python, string script, .. string[] rest]:
        return Images.Compare(folder, python, script, new Arguments(rest));
    case ["compare", string folder, string python, string loop, string libraries, .. string[] rest]:
        return new Comparison(folder, python, loop, libraries, new Arguments(rest)).Run();
    default:
        Console.Error.WriteLine("Run eng/bench/run.sh.");
        return 2;
}
