// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>What LoRA keeps for one site.</summary>
internal sealed class LoraFactors
{
    public required WeightSite Site { get; init; }

    /// <summary><c>[rank, in]</c>; at a table <c>[rank, rows]</c>.</summary>
    public required NamedParameter A { get; init; }

    /// <summary><c>[out, rank]</c>; at a table <c>[width, rank]</c>.</summary>
    public required NamedParameter B { get; init; }

    public required double Scale { get; set; }

    public required double Dropout { get; init; }

    /// <summary>Bias of the second factor, or null.</summary>
    public NamedParameter? BiasB { get; init; }

    /// <summary>Trained bias in the frozen one's place, or null.</summary>
    public NamedParameter? Bias { get; init; }

    /// <summary>DoRA's lengths <c>[out]</c>; at a table <c>[width]</c>.</summary>
    public NamedParameter? Magnitude { get; set; }

    /// <summary>
    /// The factors at the start, where they hold a part of the weight (PiSSA, OLoRA). The papers take that part out of the
    /// frozen weight; here it is a second term with the opposite sign, so that the frozen weight stays as it is.
    /// </summary>
    public (NamedParameter A, NamedParameter B)? Start { get; init; }

    /// <summary>
    /// True where the site's tensor is changed as it lies, <c>[p, q]</c> or stacked <c>[experts, p, q]</c>: then A is
    /// <c>[experts · rank, q]</c> and B <c>[p, rank · experts]</c>.
    /// </summary>
    public bool Bare { get; init; }

    /// <summary>Blocks on the diagonals of A and B (BD-LoRA).</summary>
    public (int A, int B) Blocks { get; set; } = (1, 1);

    /// <summary>Parameters of a variant, by the ends of their names.</summary>
    public Dictionary<string, NamedParameter> More { get; } = [];

    public LowRankTerm Term => Site is Convolution site
        ? new(A.Value.flatten(1), Matrix(site), Scale, BiasB?.Value, Dropout)
        : new(A.Value, B.Value, Scale, BiasB?.Value, Dropout);

    // The groups' second factors on the diagonal: each reads its own part of the rank.
    private Tensor Matrix(Convolution site)
    {
        Tensor b = B.Value.flatten(1);                                                         // [out, rank / groups]
        if (site.Groups == 1) return b;
        long groups = site.Groups, width = b.shape[1];
        Tensor diagonal = eye(groups, dtype: b.dtype, device: b.device).view(groups, 1, groups, 1);
        return (b.view(groups, -1, 1, width) * diagonal).reshape(-1, groups * width);          // [out, rank]
    }

    public LowRankTerm? StartTerm => Start is { } start ? new LowRankTerm(start.A.Value, start.B.Value, -Scale) : null;

    /// <summary>The change of the logical weight, all terms together.</summary>
    public Tensor Delta()
    {
        if (Bare) return StackedDelta();
        Tensor delta = Term.Delta();
        if (StartTerm is { } start) delta = delta + start.Delta();
        return Site is Embedding ? delta.t() : delta.view(Site.Weight.shape);
    }

    // B keeps the experts in its inner axis, A in its outer one.
    private Tensor StackedDelta()
    {
        long[] shape = Site.Weight.shape;
        long experts = shape.Length == 3 ? shape[0] : 1;
        Tensor b = B.Value.view(shape[^2], -1, experts).permute(2, 0, 1);                      // [experts, p, rank]
        return (b.matmul(A.Value.view(experts, -1, shape[^1])) * Scale).view(shape);
    }

    /// <summary>Lengths of the rows (at a table: columns) of the changed weight, in float32, without a gradient.</summary>
    public Tensor Lengths(Tensor weight)
    {
        using var off = no_grad();
        Tensor changed = weight.to_type(ScalarType.Float32) + Delta().to_type(ScalarType.Float32);
        return (Site is Embedding ? changed.norm(0) : changed.flatten(1).norm(1)).detach();
    }

    /// <summary>Numbers of the outputs <c>[out]</c> in a shape that fits the site's output.</summary>
    public Tensor OnOutput(Tensor numbers) =>
        Site is Convolution site ? numbers.reshape((long[])[1, -1, .. site.Kernel.Select(_ => 1L)]) : numbers;

    /// <summary>DoRA's m/n <c>[out]</c>; at a table <c>[width]</c>.</summary>
    public Tensor Ratio() => Magnitude!.Value.flatten() / Lengths(Site.Weight);
}

/// <summary>An attached LoRA: its factors, and the training hooks of LoRA+ and LoRA-FA.</summary>
internal sealed class LoraAdaptation : PeftAdaptation
{
    private readonly List<LoraFactors> _factors = [];

    public LoraAdaptation(LoraOptions method, Backbone backbone) : base(method, backbone)
    {
    }

    public LoraOptions Options => (LoraOptions)Method;

    public IReadOnlyList<LoraFactors> Factors => _factors;

    public void Attach(LoraFactors factors)
    {
        _factors.Add(factors);
        Attach(factors.Site, Options.Variant?.Patch(factors) ?? factors switch
        {
            { Bare: true } => new DeltaPatch(_ => factors.Delta()),
            { Site: Embedding } => new LoraTablePatch(factors),
            { Magnitude: not null } => new DoraPatch(factors),
            _ => new LoraPatch(factors),
        });
    }

    /// <summary>
    /// LoRA+: A and other matrices learn at the run's rate; B and every vector at a multiple of it; factors at tables at a rate
    /// of their own; nothing that is called a bias decays.
    /// </summary>
    public void SetRates()
    {
        if (Options.LoraPlusRatio is null) return;
        foreach (NamedParameter parameter in Parameters) SetRate(parameter);
    }

    public override void Attached(Head head)
    {
        if (Options.LoraPlusRatio is null) return;
        foreach (NamedParameter parameter in head.Parameters) SetRate(parameter);
    }

    public override int CalibrationBatches => Options.DataStart is { Made: false } start ? start.MostBatches : 0;

    public override bool NeedsInitial => Options.DataStart is { ChangesBase: true, Made: true };

    public override void Calibrate(Calibration calibration)
    {
        LoraOptions made = Options.Copy();
        Options.DataStart!.Make(this, made, calibration);
        Method = made;
        SetRates();
    }

    /// <summary>Takes a site out that got no rank.</summary>
    public void Remove(LoraFactors factors)
    {
        _factors.Remove(factors);
        Detach(factors.Site, ((NamedParameter?[])[factors.A, factors.B, factors.BiasB, factors.Bias, factors.Magnitude]).OfType<NamedParameter>());
    }

    public override void BeforePass(Pass pass, TokenBatch batch) => Options.Variant?.BeforePass(pass, batch);

    public override Tensor? ExtraLoss(Pass pass) => Options.Variant?.ExtraLoss(this, pass);

    private void SetRate(NamedParameter parameter)
    {
        string name = parameter.Name;
        parameter.Decay = !name.Contains("bias", StringComparison.Ordinal);
        if (name.Contains("lora_embedding_", StringComparison.Ordinal)) parameter.OwnRate = Options.LoraPlusEmbeddingRate;
        else if (name.Contains("lora_B", StringComparison.Ordinal) || parameter.Value.dim() == 1) parameter.RateFactor = Options.LoraPlusRatio!.Value;
    }

    public override void BeforeStep(long step)
    {
        if (Options.RiemannianDamping is { } damping) Precondition(damping);
        if (Options.LoraFa != LoraFaMode.Project) return;
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (LoraFactors factors in _factors)
        {
            if (factors.B.Value.grad is not { } gradient) continue;
            Tensor a = factors.Term.A;
            Tensor gram = a.matmul(a.t()) + eye(a.shape[0], dtype: a.dtype, device: a.device) * 1e-8;
            gradient.copy_((gradient.flatten(1).matmul(linalg.pinv(gram)) * (1 / (factors.Scale * factors.Scale))).view(gradient.shape));
        }
    }

    private void Precondition(double damping)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (LoraFactors factors in _factors)
        {
            if (factors.A.Value.grad is not { } gradientA || factors.B.Value.grad is not { } gradientB) continue;
            (Tensor a, Tensor b) = (factors.Term.A, factors.Term.B);
            Tensor ridge = eye(a.shape[0], dtype: a.dtype, device: a.device) * damping;
            if (b.shape[1] != a.shape[0] || gradientB.numel() != b.numel()) continue;           // grouped: no product of the two
            gradientA.copy_(linalg.solve(b.t().matmul(b) + ridge, gradientA.flatten(1)).view(gradientA.shape));
            gradientB.copy_(linalg.solve(a.matmul(a.t()) + ridge, gradientB.flatten(1).t()).t().reshape(gradientB.shape));
        }
    }
}
