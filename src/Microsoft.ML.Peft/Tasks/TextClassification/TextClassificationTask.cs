// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Classification of one text or a pair of texts.</summary>
internal sealed class TextClassificationTask : ClassificationTask<TextRow>
{
    public const string UserName = "PEFT text classification", Loader = "PeftTextClassification";

    public static TextClassificationTask Instance { get; } = new();

    public override string Name => "text-classification";

    public override string LoaderSignature => Loader;

    public override string Signature => "PEFTTXCL";

    public override string Transformer => nameof(TextClassificationTransformer);

    public override BackboneInput Reads => BackboneInput.Text;

    public override string TaskType => "SEQ_CLS";

    public override CheckpointFolder OpenDefault() => DefaultBackbone.Open();

    public override IEnumerable<string> InputFiles(IFileSet files) => TextTokenizer.FileNames(files);

    public override RowEncoder<TextRow> Encoder(IFileSet files, BackboneConfig config, JsonObject description)
    {
        JsonObject columns = description["columns"]!.AsObject();
        return new TextEncoder(
            TextTokenizer.Load(files), (int)description["maxTokens"]!, new TextColumns((string)columns["sentence1"]!, (string?)columns["sentence2"]));
    }
}
