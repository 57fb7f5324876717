// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.AssetTool;
using Microsoft.ML.Peft.AssetTool.Formula;

switch (args)
{
    case ["minilm", string source, string target]:
        MiniLmAsset.Make(source, target);
        return 0;
    case ["measure", string original, string made, .. string[] files]:
        foreach (string file in files)
            Measure.Run(original, made, file);
        return 0;
    case ["formula", string folder, string seconds, .. string[] settings]:
        new Pretraining(PretrainingPlan.Parse(settings), folder).Run(double.Parse(seconds, CultureInfo.InvariantCulture));
        return 0;
    case ["probe", string folder, .. string[] sets]:
        foreach (string set in sets)
            ProbeCommand.Run(folder, set);
        return 0;
    default:
        Console.Error.WriteLine("""
            Makes what the library embeds.
              minilm SOURCE TARGET   SOURCE: the published folder of all-MiniLM-L6-v2 (float32)
                                     TARGET: src/Microsoft.ML.Peft/Assets/minilm
              formula FOLDER SECONDS [NAME=VALUE...]   pretrains the default vision backbone on generated images, or goes
                                     on where FOLDER's last checkpoint is; settings are those of PretrainingPlan
              probe FOLDER|fresh SET...   accuracy of a linear classifier on frozen features; SET: a folder with
                                     MNIST's four files
              measure ORIGINAL MADE FILE...   compares the sentence embeddings of two folders on the sentences of
                                     each file (TSV, or JSON with a list "sentences"), for the model card
            """);
        return 2;
}
