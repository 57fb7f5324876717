// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.Bench;

switch (args)
{
    case ["prepare", string folder, string name, string train, string test, .. string[] rest]:
        Preparation.Run(folder, name, train, test, rest.FirstOrDefault());
        return 0;
    case ["train" or "score" or "latency" or "first" or "latency-zip" or "first-zip", string folder, .. string[] rest]:
        Console.WriteLine(OurSide.Run(args[0], folder, new Arguments(rest)));
        return 0;
    case ["growth-rows" or "growth-lengths" or "growth-layers", string folder, .. string[] rest]:
        Console.WriteLine(GrowthRuns.Run(args[0]["growth-".Length..], folder, new Arguments(rest)));
        return 0;
    case ["peak", _, .. string[] rest]:
        Console.WriteLine(RooflineRuns.Peak(new Arguments(rest)));
        return 0;
    case ["kernels-train" or "kernels-score", string folder, .. string[] rest]:
        Console.WriteLine(RooflineRuns.Kernels(folder, args[0]["kernels-".Length..], new Arguments(rest)));
        return 0;
    case ["rows", string folder, string cli, string output, .. string[] rest]:
        return new Million(folder, cli, new Arguments(rest)).Run(output);
    case ["profile", string folder, .. string[] rest]:
        Profile.Run(Preparation.Small(folder), new Arguments(rest), Console.Out);
        return 0;
    case ["sites"]:
        Sites.Run();
        return 0;
    case ["images-run", string folder, string kind, string work, string workers, string seconds, string results]:
        Console.WriteLine(Images.Run(folder, kind, work, int.Parse(workers, CultureInfo.InvariantCulture), double.Parse(seconds, CultureInfo.InvariantCulture), results));
        return 0;
    case ["images", string folder, string python, string script, .. string[] rest]:
        return Images.Compare(folder, python, script, new Arguments(rest));
    case [ImageTraining.Mode, string folder, .. string[] rest]:
        Console.WriteLine(ImageTraining.Run(folder, new Arguments(rest)));
        return 0;
    case ["image-training", string folder, string python, string libraries, string scripts, .. string[] rest]:
        return ImageTraining.Compare(folder, new Sides(python, libraries, scripts, 1), new Arguments(rest));
    case ["compare", string folder, string python, string libraries, string scripts, .. string[] rest]:
        var arguments = new Arguments(rest);
        var sides = new Sides(python, libraries, scripts, arguments.Int("threads", Machine.Cores()));
        return new Comparison(folder, sides, arguments).Run(arguments.Text("out", Path.Combine(scripts, "RESULTS.md")));
    default:
        Console.Error.WriteLine("Run eng/bench/run.sh.");
        return 2;
}
