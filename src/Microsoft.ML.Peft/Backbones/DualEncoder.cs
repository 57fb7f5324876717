// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// A pair of networks that bring images and texts into one space: CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP
/// (Zhai et al. 2023, arXiv 2303.15343). Either tower wears adaptations of its own, or none.
/// </summary>
public sealed class DualEncoder : IDisposable
{
    private readonly bool _sigmoid;

    private DualEncoder(Backbone images, Backbone texts, Tensor scale, Tensor? bias)
    {
        (Images, Texts, _sigmoid) = (images, texts, bias is not null);
        LogitScale = new NamedParameter("logit_scale", scale, trainable: false);
        LogitBias = bias is null ? null : new NamedParameter("logit_bias", bias, trainable: false);
    }

    /// <summary>The image tower.</summary>
    public Backbone Images { get; }

    /// <summary>The text tower.</summary>
    public Backbone Texts { get; }

    /// <summary>Logarithm of the factor on similarities; frozen unless <see cref="NamedParameter.SetTrainable"/> says otherwise.</summary>
    public NamedParameter LogitScale { get; }

    /// <summary>Added to similarities (SigLIP); null for nothing.</summary>
    public NamedParameter? LogitBias { get; }

    /// <summary>Tensors of the file that neither tower uses.</summary>
    public IReadOnlyList<string> UnusedTensors { get; private init; } = [];

    /// <summary>Number of frozen numbers in both towers, scale and bias included.</summary>
    public long ParameterCount => Images.ParameterCount + Texts.ParameterCount + LogitScale.Value.numel() + (LogitBias?.Value.numel() ?? 0);

    /// <summary>Loads a pair; the folder may be disposed afterwards.</summary>
    /// <param name="folder">An opened checkpoint of <c>model_type</c> clip or siglip.</param>
    /// <param name="device">Where the weights go; null for the CPU.</param>
    /// <param name="dtype">Type of the weights in memory; scale and bias stay float32.</param>
    /// <exception cref="CheckpointFormatException">The folder holds no pair, or tensors are missing or of another shape; all of a tower's are named.</exception>
    public static DualEncoder Load(CheckpointFolder folder, Device? device = null, ScalarType dtype = ScalarType.Float32)
    {
        (BackboneConfig images, BackboneConfig texts) = Read(BackboneLoader.ReadConfig(folder.Files), folder.Description);
        bool sigmoid = images.JointWidth is null;
        Tensor Single(string name) => folder.Load(name, sigmoid ? [1] : [], ScalarType.Float32, device ?? CPU);
        return Made(
            () => BackboneLoader.Load(folder, images, device, dtype), () => BackboneLoader.Load(folder, texts, device, dtype),
            () => Single("logit_scale"), sigmoid ? () => Single("logit_bias") : null);
    }

    /// <summary>Builds a pair over tensors in memory.</summary>
    /// <param name="config">The fields of config.json.</param>
    /// <param name="weights">Where the tensors come from, by their names in a pair's file.</param>
    /// <exception cref="CheckpointFormatException">The configuration is of no pair.</exception>
    public static DualEncoder Build(JsonObject config, IWeightSource weights)
    {
        (BackboneConfig images, BackboneConfig texts) = Read(config, "the given configuration");
        bool sigmoid = images.JointWidth is null;
        Tensor Single(string name) => weights.Load(name, sigmoid ? [1] : []);
        return Made(
            () => BackboneLoader.Rebuild(images, new PrefixedWeights(weights, "vision_model.")), () => BackboneLoader.Rebuild(texts, new PrefixedWeights(weights, "text_model.")),
            () => Single("logit_scale"), sigmoid ? () => Single("logit_bias") : null);
    }

    // What was made is freed where the rest fails.
    private static DualEncoder Made(Func<Backbone> makeImages, Func<Backbone> makeTexts, Func<Tensor> scale, Func<Tensor>? bias)
    {
        Backbone images = makeImages();
        Backbone? texts = null;
        try
        {
            texts = makeTexts();
            foreach ((Backbone tower, string name) in ((Backbone, string)[])[(images, "visual_projection"), (texts, "text_projection")])
                if (tower.Config.JointWidth is not null && tower.FindSite(name) is null)
                    throw new CheckpointFormatException($"The weights have no tensor '{name}.weight', by which a pair's towers meet; load a single tower with BackboneLoader.");
            return new DualEncoder(images, texts, scale(), bias?.Invoke())
            {
                UnusedTensors = [.. images.UnusedTensors.Intersect(texts.UnusedTensors).Where(name => name is not ("logit_scale" or "logit_bias"))],
            };
        }
        catch
        {
            images.Dispose();
            texts?.Dispose();
            throw;
        }
    }

    private static (BackboneConfig Images, BackboneConfig Texts) Read(JsonObject raw, string where)
    {
        switch (BackboneLoader.ModelType(raw))
        {
            case "clip":
                int joint = new ConfigReader(raw).Int("projection_dim", 512);
                return (ClipVisionBackbone.ReadConfig(raw) with { JointWidth = joint }, ClipTextBackbone.ReadConfig(raw) with { JointWidth = joint });
            case "siglip":
                (BackboneConfig images, BackboneConfig texts) = (SiglipVisionBackbone.ReadConfig(raw), SiglipTextBackbone.ReadConfig(raw));
                int width = new ConfigReader(texts.Raw).Int("projection_size", texts.HiddenSize);
                if (width != images.HiddenSize)
                    throw new CheckpointFormatException($"{where}: texts end in {width} numbers (projection_size), images in {images.HiddenSize} (hidden_size of vision_config); expected as many.");
                return (images, texts);
            case var other:
                throw new CheckpointFormatException($"{where}: config.json has model_type {(other is null ? "missing" : NearNames.Quote(other))}; pairs of an image and a text tower are clip and siglip.");
        }
    }

    /// <summary>Images in the common space, <c>[images, width]</c>, not divided by their length.</summary>
    /// <param name="batch">Images, by <see cref="TokenBatch.OfImages"/>.</param>
    /// <param name="pass">What the image tower wears.</param>
    /// <param name="worn">The adaptation whose patches these are, where it prepares its passes; null for none.</param>
    public Tensor ImageFeatures(TokenBatch batch, Pass pass, PeftAdaptation? worn = null)
    {
        pass.FirstTokenOnly = Images is ClipVisionBackbone && pass.DropWith is null;
        return Features(Images, batch, pass, worn);
    }

    /// <summary>Texts in the common space, <c>[texts, width]</c>, not divided by their length.</summary>
    /// <param name="batch">Texts.</param>
    /// <param name="pass">What the text tower wears.</param>
    /// <param name="worn">The adaptation whose patches these are, where it prepares its passes; null for none.</param>
    public Tensor TextFeatures(TokenBatch batch, Pass pass, PeftAdaptation? worn = null) => Features(Texts, batch, pass, worn);

    private static Tensor Features(Backbone tower, TokenBatch batch, Pass pass, PeftAdaptation? worn)
    {
        worn?.BeforePass(pass, batch);
        return Projected(tower, tower.Pool(tower.Forward(batch, pass), pass), pass);
    }

    /// <summary>What stands for an image or a text, in the common space.</summary>
    /// <param name="tower">One of the two.</param>
    /// <param name="pooled">What <see cref="Backbone.Pool"/> gave <c>[batch, hidden]</c>.</param>
    /// <param name="pass">The same pass.</param>
    internal static Tensor Projected(Backbone tower, Tensor pooled, Pass pass) =>
        tower.Sites.OfType<Projection>().SingleOrDefault(site => site.Role == SiteRole.JointProjection)?.Forward(pooled, pass) ?? pooled;

    /// <summary>Features divided by their Euclidean length, in float32.</summary>
    /// <param name="features">Features <c>[rows, width]</c>.</param>
    public static Tensor Embeddings(Tensor features)
    {
        Tensor wide = features.to_type(ScalarType.Float32);
        return wide / wide.square().sum([-1], keepdim: true).sqrt();
    }

    /// <summary>Similarity of each text to each image, <c>[texts, images]</c>: <c>exp(scale) · t̂ îᵀ + bias</c>.</summary>
    /// <param name="textFeatures">What <see cref="TextFeatures"/> gave.</param>
    /// <param name="imageFeatures">What <see cref="ImageFeatures"/> gave.</param>
    public Tensor Logits(Tensor textFeatures, Tensor imageFeatures)
    {
        Tensor logits = Embeddings(textFeatures).matmul(Embeddings(imageFeatures).t()) * LogitScale.Value.exp();
        return LogitBias is null ? logits : logits + LogitBias.Value;
    }

    /// <summary>
    /// The pair's own loss for texts and images of which the i-th belong together. CLIP: the mean of the cross-entropies over
    /// the images of each text and over the texts of each image. SigLIP: minus the sum of log σ(±logit), by the number of texts.
    /// </summary>
    /// <param name="logits">What <see cref="Logits"/> gave, <c>[n, n]</c>.</param>
    /// <returns>A scalar.</returns>
    /// <exception cref="ArgumentException">There are not as many texts as images.</exception>
    public Tensor Loss(Tensor logits)
    {
        long count = logits.shape[0];
        if (logits.dim() != 2 || count != logits.shape[1])
            throw new ArgumentException($"Logits have the shape [{string.Join(", ", logits.shape)}]; expected as many texts as images, the i-th of both belonging together.", nameof(logits));
        if (_sigmoid)
        {
            Tensor signs = eye(count, dtype: logits.dtype, device: logits.device) * 2 - 1;
            return -nn.functional.logsigmoid(signs * logits).sum() / count;
        }
        Tensor own = arange(count, ScalarType.Int64, logits.device);
        return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.t(), own)) / 2;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Images.Dispose();
        Texts.Dispose();
        LogitScale.Dispose();
        LogitBias?.Dispose();
    }
}
