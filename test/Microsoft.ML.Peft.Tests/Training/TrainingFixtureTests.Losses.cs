// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Training;

public partial class TrainingFixtureTests
{
    private static void CrossEntropies(TrainingCase item)
    {
        foreach (JsonProperty loss in item.Config.GetProperty("losses").EnumerateObject())
        {
            string call = loss.Value.GetProperty("call").GetString()!;
            bool tokens = call.Contains("token_logits", StringComparison.Ordinal);
            if (call.Contains("soft", StringComparison.Ordinal) || !call.StartsWith("F.cross_entropy(", StringComparison.Ordinal))
            {
                item.Later.Add($"{loss.Name} ({call})");
                continue;
            }
            string input = tokens ? "token_logits" : "logits";
            Tensor leaf = item["in." + input].clone().requires_grad_(), scores = leaf;
            Tensor labels = item[tokens ? "in.token_labels" : "in.labels"];
            if (call.Contains("[:, :-1]", StringComparison.Ordinal))
            {
                scores = leaf.narrow(1, 0, leaf.shape[1] - 1);
                labels = labels.narrow(1, 1, labels.shape[1] - 1);
            }
            if (TrainingCase.Argument(call, "ignore_index") is { } ignored)
            {
                labels = labels.clamp(0);
                labels = labels.masked_fill(labels.eq((long)ignored), Example.Ignored);
            }
            float[]? weights = Regex.IsMatch(call, @"\bweight\b") ? item["in.weight"].data<float>().ToArray() : null;
            var objective = new CrossEntropyObjective((int)leaf.shape[^1], TrainingCase.Argument(call, "label_smoothing") ?? 0, weights);
            Tensor sum = objective.Sum(scores, labels);
            bool mean = !call.Contains("reduction=", StringComparison.Ordinal);
            Tensor value = mean ? sum / objective.Count(labels) : sum;
            if (loss.Value.TryGetProperty("loss", out JsonElement expected)) item.Near(loss.Name, expected.GetDouble(), value.item<float>());
            else ByRow(item, loss.Name, scores, labels, objective);
            value.backward();
            item.Near($"{loss.Name} gradient", item[$"{loss.Name}/grad.{input}"], leaf.grad!);
        }
    }

    private static void ByRow(TrainingCase item, string name, Tensor scores, Tensor labels, CrossEntropyObjective objective)
    {
        Tensor expected = item[$"{name}/out"];
        for (long r = 0; r < expected.shape[0]; r++)
            item.Near($"{name} row {r}", expected[r].item<float>(), objective.Sum(scores.narrow(0, r, 1), labels.narrow(0, r, 1)).item<float>());
    }

    private static void BinaryLosses(TrainingCase item)
    {
        foreach (JsonProperty loss in item.Config.GetProperty("losses").EnumerateObject())
        {
            string call = loss.Value.GetProperty("call").GetString()!;
            if (!call.StartsWith("F.binary_cross_entropy_with_logits(", StringComparison.Ordinal) && !call.StartsWith("...", StringComparison.Ordinal))
            {
                item.Later.Add($"{loss.Name} ({call})");
                continue;
            }
            Tensor logits = item["in.logits"].clone().requires_grad_();
            bool soft = Regex.IsMatch(call, @"\bsoft\b");
            Tensor targets = item[soft ? "in.soft" : "in.targets"].clone();
            Tensor? weight = Regex.IsMatch(call, @"\bweight\b") ? item["in.weight"] : null;
            Tensor? positive = call.Contains("pos_weight", StringComparison.Ordinal) ? item["in.pos_weight"] : null;
            Tensor sum = BinaryObjective.Sum(logits, targets, weight, positive);
            Tensor value = call.Contains("reduction=", StringComparison.Ordinal) ? sum : sum / (double)logits.numel();
            if (loss.Value.TryGetProperty("loss", out JsonElement expected)) item.Near(loss.Name, expected.GetDouble(), value.item<float>());
            else item.Near(loss.Name, item[$"{loss.Name}/out"].sum().item<float>(), value.item<float>());
            value.backward();
            item.Near($"{loss.Name} gradient", item[$"{loss.Name}/grad.logits"], logits.grad!);
        }
    }

    private static void Regressions(TrainingCase item)
    {
        foreach (JsonProperty loss in item.Config.GetProperty("losses").EnumerateObject())
        {
            string call = loss.Value.GetProperty("call").GetString()!;
            if (!call.StartsWith("F.mse_loss", StringComparison.Ordinal))
            {
                item.Later.Add($"{loss.Name} ({call})");
                continue;
            }
            Tensor predictions = item["in.pred"].clone().requires_grad_();
            Tensor sum = RegressionObjective.Sum(predictions, item["in.target"]);
            Tensor value = call.Contains("sum", StringComparison.Ordinal) ? sum : sum / (double)predictions.numel();
            item.Near(loss.Name, loss.Value.GetProperty("loss").GetDouble(), value.item<float>());
            value.backward();
            item.Near($"{loss.Name} gradient", item[$"{loss.Name}/grad.pred"], predictions.grad!);
        }
    }
}
