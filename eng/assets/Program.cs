// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.AssetTool;

switch (args)
{
    case ["minilm", string source, string target]:
        MiniLmAsset.Make(source, target);
        return 0;
    default:
        Console.Error.WriteLine("""
            Makes what the library embeds.
              minilm SOURCE TARGET   SOURCE: the published folder of all-MiniLM-L6-v2 (float32)
                                     TARGET: src/Microsoft.ML.Peft/Assets/minilm
            """);
        return 2;
}
