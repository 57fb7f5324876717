// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Checkpoints;

/// <content>
/// Frozen word tables and language heads in adapter files: Hugging Face PEFT adds them where a target is called
/// <c>embed_tokens</c> or <c>lm_head</c>, since such tables are sometimes resized before training.
/// </content>
public sealed partial class AdapterFolder
{
    private const string BaseWeight = ".base_layer.weight";

    private static readonly string[] _tableNames = ["embed_tokens", "lm_head"];

    private static IEnumerable<WeightSite> StoredTables(PeftAdaptation adaptation, JsonObject config)
    {
        bool named = config["target_modules"] switch
        {
            JsonArray list => list.Any(item => item is JsonValue value && value.TryGetValue(out string? name) && _tableNames.Contains(name)),
            JsonValue value when value.TryGetValue(out string? pattern) => _tableNames.Any(name => pattern.Contains(name, StringComparison.Ordinal)),
            _ => false,
        };
        return named && adaptation.Method.StoresTables ? adaptation.Patches.Keys.OfType<WeightSite>().Where(IsTable) : [];
    }

    private static bool IsTable(WeightSite site) => site.Role is SiteRole.WordEmbedding or SiteRole.LanguageHead;

    // True for a frozen table in the file; it must be the backbone's own.
    private bool IsStoredTable(string key, string name, Backbone backbone)
    {
        if (!name.EndsWith(BaseWeight, StringComparison.Ordinal) || backbone.FindSite(name[..^BaseWeight.Length]) is not WeightSite site || !IsTable(site)) return false;
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Tensor stored = AdapterTensors.Read(_file, key).to_type(site.Weight.dtype).to(site.Weight.device);
        if (!stored.shape.AsSpan().SequenceEqual(site.Weight.shape) || !stored.eq(site.Weight).all().item<bool>())
            throw new CheckpointFormatException(
                $"{Description}/{WeightsFile}: {NearNames.Quote(key)} [{string.Join(", ", stored.shape)}] is not the backbone's own table [{string.Join(", ", site.Weight.shape)}]: the adapter was made on a backbone whose vocabulary was resized or trained. Save that backbone whole and load it.");
        return true;
    }
}
