// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>What a LoFiT run does.</summary>
public enum LofitStage
{
    /// <summary>Scales of all heads are learned under a penalty, to find the heads that matter.</summary>
    Select,
    /// <summary>Offsets of chosen heads are learned.</summary>
    Tune,
}

/// <summary>A head and how much it matters.</summary>
/// <param name="Attention">Number of the attention in the order of the network, from 0: the layer where each has one.</param>
/// <param name="Head">Number of the head, from 0.</param>
/// <param name="Score">Length of its learned scaling vector.</param>
public sealed record LofitHead(int Attention, int Head, double Score)
{
    /// <summary>The head as <see cref="LofitOptions.Heads"/> names it, e.g. <c>3:11</c>.</summary>
    public string Name => string.Create(CultureInfo.InvariantCulture, $"{Attention}:{Head}");
}

/// <summary>
/// LoFiT (Yin, Ye and Durrett 2024, arXiv 2406.01563): of each head's output z, before the output projection, first
/// <c>z ⊙ (1 + a)</c> with a penalty λ Σ|a| on all heads, then <c>z + v</c> on the few heads whose a grew longest. Trained numbers: layers ·
/// width, then heads · head width. Merging: <c>W diag(1 + a)</c> and <c>b + W v</c>. No weight decay; rates near 1e-2.
/// </summary>
public sealed class LofitOptions : PeftMethod
{
    /// <summary>Which of the two stages.</summary>
    public LofitStage Stage { get; set; } = LofitStage.Select;

    /// <summary>Heads whose offsets are trained in the second stage, <c>attention:head</c>, both from 0; see <see cref="Best"/>.</summary>
    public string[] Heads { get; set; } = [];

    /// <summary>λ of the first stage's penalty, 0 or more.</summary>
    public double Penalty { get; set; } = 1e-4;

    /// <summary>Standard deviation of the initial values, 0 or more; with 0 a fresh adaptation is the base model.</summary>
    public double InitDeviation { get; set; } = 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "lofit";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "sparse";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitDeviation == 0;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => Stage == LofitStage.Select ? 5e-3 : 1e-2;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "layers · heads · head width, then chosen heads · head width";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (!Enum.IsDefined(Stage)) throw Invalid(nameof(Stage), Stage, string.Join(", ", Enum.GetNames<LofitStage>()));
        if (!(Penalty >= 0) || !double.IsFinite(Penalty)) throw Invalid(nameof(Penalty), Penalty, "0 or more");
        if (!(InitDeviation >= 0) || !double.IsFinite(InitDeviation)) throw Invalid(nameof(InitDeviation), InitDeviation, "0 or more");
        if (Stage == LofitStage.Tune && Heads.Length == 0)
            throw Invalid(nameof(Heads), "empty", "at least one head, 'attention:head', in the second stage; LofitOptions.Best takes them from the first");
        if (Stage == LofitStage.Select && Heads.Length > 0) throw Invalid(nameof(Heads), string.Join(", ", Heads), "empty in the first stage, which looks at all heads");
    }

    /// <summary>The heads of a first stage by how much they matter, the best first.</summary>
    /// <param name="selection">An adaptation of the first stage, trained.</param>
    /// <exception cref="ArgumentException">It is none of the first stage.</exception>
    public static IReadOnlyList<LofitHead> Ranking(PeftAdaptation selection)
    {
        if (selection is not LofitAdaptation { Options.Stage: LofitStage.Select } lofit)
            throw new ArgumentException($"Heads are ranked by the first stage of lofit; given is an adaptation of {selection.Method.Id}.", nameof(selection));
        return lofit.Ranking();
    }

    /// <summary>Options of the second stage over the best heads of the first.</summary>
    /// <param name="selection">An adaptation of the first stage, trained.</param>
    /// <param name="count">Number of heads, from 1 to all; 3 to 10 % are usual.</param>
    /// <exception cref="ArgumentException">The count is out of range, or the adaptation is none of the first stage.</exception>
    public static LofitOptions Best(PeftAdaptation selection, int count)
    {
        IReadOnlyList<LofitHead> ranking = Ranking(selection);
        if (count < 1 || count > ranking.Count) throw new ArgumentException($"The number of heads is {count}; allowed is 1 to {ranking.Count}.", nameof(count));
        return new LofitOptions { Stage = LofitStage.Tune, Heads = [.. ranking.Take(count).Select(h => h.Name)], InitDeviation = ((LofitOptions)selection.Method).InitDeviation };
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        IReadOnlyList<(AttentionCore Core, Projection Output)> places = Places(backbone);
        return Stage == LofitStage.Select ? places.Sum(p => (long)p.Core.Heads * p.Core.HeadWidth)
            : Chosen(places).Sum(head => (long)places[head.Attention].Core.HeadWidth);
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        IReadOnlyList<(AttentionCore Core, Projection Output)> places = Places(backbone);
        ILookup<int, int> chosen = (Stage == LofitStage.Select ? [] : Chosen(places)).ToLookup(h => h.Attention, h => h.Head);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new LofitAdaptation(this, backbone);
        for (int i = 0; i < places.Count; i++)
        {
            (AttentionCore core, Projection output) = places[i];
            if (Stage == LofitStage.Select) adaptation.AddScale(core, output, Start(seed, backbone.PathOf(core) + ".lofit_scale", core.Heads, core.HeadWidth));
            else if (chosen.Contains(i))
                adaptation.AddOffsets(core, output, [.. chosen[i].Order().Select(head => (head, Start(seed, $"{backbone.PathOf(core)}.lofit_offset.{head}", core.HeadWidth)))]);
        }
        return adaptation;
    }

    private NamedParameter Start(long seed, string name, params long[] shape) => new(name, new Draws(seed, name).Normal(InitDeviation, shape)) { Decay = false };

    // Each attention's heads lie side by side where its output projection reads them.
    private static IReadOnlyList<(AttentionCore Core, Projection Output)> Places(Backbone backbone)
    {
        AttentionCore[] cores = [.. backbone.Sites.OfType<AttentionCore>()];
        Projection[] outputs = [.. backbone.Sites.OfType<Projection>().Where(site => site.Role == SiteRole.AttentionOutput)];
        if (cores.Length == 0 || cores.Length != outputs.Length || cores.Zip(outputs).Any(p => p.First.Heads * p.First.HeadWidth != p.Second.In))
            throw new ArgumentException($"LoFiT edits the outputs of attention heads, and this {backbone.Config.ModelType} backbone does not show them one by one.");
        return [.. cores.Zip(outputs)];
    }

    private List<(int Attention, int Head)> Chosen(IReadOnlyList<(AttentionCore Core, Projection Output)> places)
    {
        var chosen = new List<(int Attention, int Head)>();
        foreach (string name in Heads)
        {
            string[] parts = name.Split(':');
            if (parts.Length != 2 || !int.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out int attention) || !int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out int head))
                throw Invalid(nameof(Heads), $"'{name}'", "attention:head, such as 3:11");
            if (attention >= places.Count || head >= places[attention].Core.Heads)
                throw Invalid(nameof(Heads), $"'{name}'", $"attention 0 to {places.Count - 1}, head 0 to {places[Math.Min(attention, places.Count - 1)].Core.Heads - 1}");
            if (chosen.Contains((attention, head))) throw Invalid(nameof(Heads), $"'{name}', twice", "each head once");
            chosen.Add((attention, head));
        }
        return chosen;
    }
}
