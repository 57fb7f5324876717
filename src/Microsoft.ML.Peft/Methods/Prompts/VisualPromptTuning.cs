// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119): P learned tokens behind [CLS], <c>[CLS; p; patches]</c>. Shallow:
/// they enter the first layer and live on. Deep: before every further layer the prompts' outputs are dropped and fresh ones
/// put in their place. Trained numbers: P d shallow, L P d deep (with a projection, e in place of d, and e d + d). On Swin
/// prompts stand in front of the places of every window, what the windows made of them is averaged, merging repeats them
/// four times, and each layer's are as wide as its stage; the classifier does not read them.
/// </summary>
public sealed class VisualPromptTuningOptions : PromptMethod
{
    /// <summary>Makes the options with P = 10.</summary>
    public VisualPromptTuningOptions() => Length = 10;

    /// <summary>True for prompts of their own in every layer.</summary>
    public bool Deep { get; set; } = true;

    /// <summary>e: width of the prompts before a learned projection to the hidden width; 0 for prompts as wide as the hidden states.</summary>
    public int ProjectFrom { get; set; }

    /// <summary>Share of the prompts' entries, in [0, 1), that is dropped while training.</summary>
    public double Dropout { get; set; } = 0.1;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "vpt";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => Deep ? "L P d" : "P d";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (ProjectFrom < 0) throw Invalid(nameof(ProjectFrom), ProjectFrom, "0 for none, or the width of the prompts");
        CheckShare(nameof(Dropout), Dropout);
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        if (ProjectFrom > 0)
        {
            long d = backbone.Config.HiddenSize;
            return (Deep ? backbone.Config.LayerCount : 1) * (long)Length * ProjectFrom + ProjectFrom * d + d;
        }
        return (Deep ? Enumerable.Range(1, backbone.Config.LayerCount - 1) : []).Append(-1).Sum(layer => (long)Length * backbone.WidthAt(layer));
    }

    /// <inheritdoc/>
    protected override void Build(PeftAdaptation adaptation, long seed)
    {
        Backbone backbone = adaptation.Backbone;
        if (backbone.LeadingTokens == 0 && backbone.Config.Input != BackboneInput.Images)
            throw new ArgumentException($"Visual prompts stand behind the token that stands for the row, and a {backbone.Config.ModelType} backbone has none.");
        if (ProjectFrom > 0) NeedsOneWidth(backbone);
        Sequence place = PromptPlaces.Sequences(backbone, words: false)[0];
        Sequence[] inputs = [.. backbone.Sites.OfType<Sequence>().Where(s => s.Role == SiteRole.LayerSequence && s.Layer > 0)];
        if (Deep && inputs.Length != backbone.Config.LayerCount - 1)
            throw new ArgumentException($"Deep prompts need layers of their own, and a {backbone.Config.ModelType} backbone shares them; set Deep to false.", nameof(Deep));
        NamedParameter first = Prompt(adaptation, "prompt_embeddings", seed, Bound(backbone, -1), 1, Length, Own(backbone, -1));
        Func<Tensor, Tensor> project = ProjectFrom == 0 ? x => x : AddLinear(adaptation, "prompt_proj", backbone.Config.HiddenSize, ProjectFrom, seed);
        int at = backbone.LeadingTokens;
        adaptation.Attach(place, new PromptPatch(this, _ => project(first.Value.select(0, 0)), at, replaces: false));
        if (!Deep || inputs.Length == 0) return;
        // One table for all layers of one width.
        List<Sequence[]> stages = [.. inputs.GroupBy(s => backbone.WidthAt(s.Layer)).Select(g => g.ToArray())];
        for (int stage = 0; stage < stages.Count; stage++)
        {
            int layer = stages[stage][0].Layer;
            string name = backbone.HasOneWidth ? "deep_prompt_embeddings" : $"deep_prompt_embeddings_{stage}";
            NamedParameter deep = Prompt(adaptation, name, seed, Bound(backbone, layer), stages[stage].Length, Length, Own(backbone, layer));
            for (int i = 0; i < stages[stage].Length; i++)
            {
                int row = i;
                adaptation.Attach(stages[stage][i], new PromptPatch(this, _ => project(deep.Value.select(0, row)), at, replaces: true));
            }
        }
    }

    private long Own(Backbone backbone, int layer) => ProjectFrom == 0 ? backbone.WidthAt(layer) : ProjectFrom;

    // The spread of a patch embedding's start; words have their width in the place of a patch's numbers.
    private double Bound(Backbone backbone, int layer)
    {
        long patch = (int?)backbone.Config.Raw["patch_size"] is { } side ? 3L * side * side : backbone.WidthAt(layer);
        return Math.Sqrt(6.0 / (patch + Own(backbone, layer)));
    }

    // These prompts are decayed, as in the paper.
    private static NamedParameter Prompt(PeftAdaptation adaptation, string name, long seed, double bound, params long[] shape)
    {
        NamedParameter made = Add(adaptation, name, new Draws(seed, name).Uniform(bound, shape));
        made.Decay = true;
        return made;
    }

    private sealed class PromptPatch(VisualPromptTuningOptions options, PromptRows rows, int at, bool replaces) : SequencePatch
    {
        public override Tensor Change(Tensor hidden, Pass pass)
        {
            int length = options.Length;
            Tensor prompt = pass.Dropout(rows(pass).unsqueeze(0).expand(hidden.shape[0], -1, -1), options.Dropout).to_type(hidden.dtype);
            int behind = replaces ? at + length : at;
            if (!replaces) pass.Layout = pass.Layout.Insert(length, at);
            return cat([hidden.narrow(1, 0, at), prompt, hidden.narrow(1, behind, hidden.shape[1] - behind)], 1);
        }
    }
}
