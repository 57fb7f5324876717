// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using System.Globalization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using TorchSharp;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>peft methods</c>: every registered method, found out by attaching it to a backbone.</summary>
internal static class MethodsCommand
{
    private static readonly Option<string?> _backbone = new("--backbone") { Description = "Hugging Face folder to probe on; the embedded all-MiniLM-L6-v2 where none is named." };
    private static readonly Option<string?> _out = new("--out") { Description = "Markdown file to write; standard output where none is named." };

    public static System.CommandLine.Command Make()
    {
        var command = new System.CommandLine.Command("methods", "List the methods: sites, trained numbers, merging, exchange; probed on a backbone.") { _backbone, _out };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult call)
    {
        using CheckpointFolder folder = TextClassificationTask.Instance.OpenBackbone(call.GetValue(_backbone));
        using Backbone backbone = BackboneLoader.Load(folder);
        using var scope = torch.NewDisposeScope();
        TokenBatch probe = MethodProbe.AnyTokens(backbone);
        MethodCard[] cards = [.. PeftMethods.Ids.Select(id => MethodProbe.Run(PeftMethods.Create(id), backbone, probe)).OrderBy(c => c.Method.Family, StringComparer.Ordinal).ThenBy(c => c.Method.Id, StringComparer.Ordinal)];
        string text = MarkdownTable.Make(
            ["method", "family", "sites", "trained numbers", "count", "share", "merges", "exact at step 0", "Hugging Face type"],
            cards.Select(Row));
        if (call.GetValue(_out) is { } path) AtomicFile.Write(path, stream => stream.Write(System.Text.Encoding.UTF8.GetBytes(text)));
        else Console.Write(text);
        return 0;
    }

    private static string[] Row(MethodCard card) => card.Refusal is { } refusal
        ? [card.Method.Id, card.Method.Family, "not on this backbone: " + FirstSentence(refusal), card.Method.Formula, "-", "-", "-", "-", card.Method.HuggingFaceType ?? "-"]
        : [card.Method.Id, card.Method.Family, card.Sites, card.Method.Formula, card.Trainable.ToString("N0", CultureInfo.InvariantCulture),
            card.Share.ToString("0.000 %", CultureInfo.InvariantCulture), card.Mergeable ? "yes" : "no", card.ExactAtStart ? "yes" : "no", card.Method.HuggingFaceType ?? "-"];

    private static string FirstSentence(string text) => text.IndexOf(". ", StringComparison.Ordinal) is var end and > 0 ? text[..end] : text.TrimEnd('.');
}
