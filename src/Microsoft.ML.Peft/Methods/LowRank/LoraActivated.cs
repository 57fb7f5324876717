// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397): the update acts from the start of the last occurrence of some
/// tokens on; what stands before is the base model's, so that a cache of it can be shared. Rows without the tokens run bare.
/// Cannot be merged.
/// </summary>
public sealed class ActivatedVariant : LoraVariant
{
    private const string Key = "activated-lora";

    /// <summary>The token ids, in their order, from whose last occurrence on the update acts.</summary>
    public int[] InvocationTokens { get; set; } = [];

    internal override bool Mergeable => false;

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        if (InvocationTokens.Length == 0 || InvocationTokens.Any(id => id < 0))
            throw invalid(nameof(InvocationTokens), $"[{string.Join(", ", InvocationTokens)}]", "one or more token ids, 0 or more each");
    }

    internal override void Write(JsonObject config) => config["alora_invocation_tokens"] = AdapterConfig.Array(InvocationTokens);

    internal override WeightPatch Patch(LoraFactors factors) => new ActivatedPatch(factors);

    internal override void BeforePass(Pass pass, TokenBatch batch) => pass.Once<Tensor>(Key, () => Active(batch.Ids));

    // 1 from the start of the last occurrence on, float32 [batch, tokens, 1].
    private Tensor Active(Tensor ids)
    {
        using var off = no_grad();
        long length = InvocationTokens.Length, tokens = ids.shape[1];
        Tensor active = zeros([ids.shape[0], tokens], device: ids.device);
        if (length > tokens) return active.unsqueeze(-1);
        Tensor here = ones([ids.shape[0], tokens - length + 1], device: ids.device);
        for (int k = 0; k < length; k++) here = here * ids.narrow(1, k, tokens - length + 1).eq(InvocationTokens[k]).to_type(ScalarType.Float32);
        // The last place plus one, 0 where there is none.
        Tensor last = (here * arange(1, tokens - length + 2, device: ids.device)).amax([1]);
        Tensor places = arange(1, tokens + 1, device: ids.device).unsqueeze(0);
        return (places >= last.unsqueeze(1)).to_type(ScalarType.Float32).mul((last > 0).to_type(ScalarType.Float32).unsqueeze(1)).unsqueeze(-1);
    }

    private sealed class ActivatedPatch(LoraFactors factors) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor y = next(x);
            if (factors is { Bias: { } trained, Site.Bias: { } old }) y = y + (trained.Value - old).to_type(y.dtype);
            Tensor active = pass.Once<Tensor>(Key, () => throw new InvalidOperationException("Activated LoRA needs the token ids: run PeftAdaptation.BeforePass before the backbone."));
            Tensor change = factors.Term.Apply(x, pass);
            long more = x.dim() == 3 ? x.shape[1] - active.shape[1] : 0;
            if (x.dim() == 2) active = active.select(1, 0);                                    // a pooler reads first tokens
            else if (more > 0) active = cat([zeros([active.shape[0], more, 1], device: active.device), active], 1);   // tokens put in front
            return y + change * active.to_type(change.dtype);
        }
    }
}
