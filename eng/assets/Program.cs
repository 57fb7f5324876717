// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.AssetTool;

switch (args)
{
    case ["minilm", string source, string target]:
        MiniLmAsset.Make(source, target);
        return 0;
    case ["measure", string original, string made, .. string[] files]:
        foreach (string file in files)
            Measure.Run(original, made, file);
        return 0;
    default:
        Console.Error.WriteLine("""
            Makes what the library embeds.
              minilm SOURCE TARGET   SOURCE: the published folder of all-MiniLM-L6-v2 (float32)
                                     TARGET: src/Microsoft.ML.Peft/Assets/minilm
              measure ORIGINAL MADE FILE...   compares the sentence embeddings of two folders on the sentences of
                                     each file (TSV, or JSON with a list "sentences"), for the model card
            """);
        return 2;
}
