# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
"""The other side of the benchmark of training on images: ViT with LoRA as a plain PyTorch loop.

The network is written out as transformers' ViTForImageClassification computes it (eager attention), LoRA as peft computes
it (unmerged). No package but torch is needed. Pixels, labels, weights and initial values come from the files that the
benchmark program wrote; one line of JSON goes to standard output.

    pytorch_vit_loop.py FOLDER --threads N --steps N --warmup N --rate R --batch N [--autocast]
"""
import argparse
import json
import math
import os
import time

import torch
from torch import nn

from pytorch_loop import LoraLinear, autocast, read_safetensors, report


# ---- the network -----------------------------------------------------------------------------------------------------

class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, bias = config["hidden_size"], config["qkv_bias"]
        assert bias
        self.heads = config["num_attention_heads"]
        self.head_width = width // self.heads
        self.query = LoraLinear(width, width, 0.0)
        self.key = nn.Linear(width, width)
        self.value = LoraLinear(width, width, 0.0)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_width).permute(0, 2, 1, 3)

    def forward(self, x):
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.head_width)
        context = torch.matmul(scores.softmax(dim=-1), value)
        return context.permute(0, 2, 1, 3).contiguous().view(x.shape)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner, epsilon = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.attention = nn.ModuleDict({"attention": SelfAttention(config), "output": nn.ModuleDict({"dense": nn.Linear(width, width)})})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width)})
        self.layernorm_before = nn.LayerNorm(width, eps=epsilon)
        self.layernorm_after = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x):
        x = x + self.attention["output"]["dense"](self.attention["attention"](self.layernorm_before(x)))
        return x + self.output["dense"](nn.functional.gelu(self.intermediate["dense"](self.layernorm_after(x))))


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, (config["image_size"] // patch) ** 2 + 1, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(config["num_channels"], width, kernel_size=patch, stride=patch)})

    def forward(self, pixels):
        patches = self.patch_embeddings["projection"](pixels).flatten(2).transpose(1, 2)
        return torch.cat((self.cls_token.expand(pixels.shape[0], -1, -1), patches), dim=1) + self.position_embeddings


class Classifier(nn.Module):
    """ViT, its norm and one linear map from the class token to the classes."""

    def __init__(self, config, classes):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))})
        self.layernorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.classifier = nn.Linear(config["hidden_size"], classes)

    def forward(self, pixels):
        x = self.embeddings(pixels)
        for layer in self.encoder["layer"]:
            x = layer(x)
        return self.classifier(self.layernorm(x)[:, 0])


def load_model(folder):
    backbone = os.path.join(folder, "backbone")
    with open(os.path.join(backbone, "config.json")) as file:
        config = json.load(file)
    init = {name.removeprefix("vit."): tensor for name, tensor in read_safetensors(os.path.join(folder, "init.safetensors")).items()}
    frozen = {name.removeprefix("vit."): tensor for name, tensor in read_safetensors(os.path.join(backbone, "model.safetensors")).items()}
    model = Classifier(config, init["classifier.bias"].shape[0])
    missing, _ = model.load_state_dict({**frozen, **init}, strict=False)
    assert not missing, missing
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in init)
    return model


# ---- what is measured ------------------------------------------------------------------------------------------------

def train(model, pixels, labels, arguments):
    """The usual loop; seconds and tokens, which are images here, count from the end of the warm-up steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.rate, weight_decay=0.0)
    total, ramp = arguments.steps, math.ceil(0.06 * arguments.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / max(1, ramp) if step < ramp else max(0.0, (total - step) / max(1, total - ramp)))
    loss_function = nn.CrossEntropyLoss()
    model.train()
    losses, tokens, began, cpu = [], 0, time.perf_counter(), time.process_time()
    for step in range(total):
        if step == arguments.warmup:
            tokens, began, cpu = 0, time.perf_counter(), time.process_time()
        start = step * arguments.batch % len(labels)
        with autocast(arguments):
            loss = loss_function(model(pixels[start:start + arguments.batch]), labels[start:start + arguments.batch])
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        tokens += arguments.batch
    return {"losses": losses, "tokens": tokens, "seconds": time.perf_counter() - began, "cpuSeconds": time.process_time() - cpu}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    for name, kind in (("threads", int), ("steps", int), ("warmup", int), ("rate", float), ("batch", int)):
        parser.add_argument("--" + name, type=kind, required=True)
    parser.add_argument("--autocast", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.folder)
    pixels = read_safetensors(os.path.join(arguments.folder, "pixels.safetensors"))["pixels"]
    with open(os.path.join(arguments.folder, "labels")) as file:
        labels = torch.tensor([int(word) for word in file.read().split()])
    report(train(model, pixels, labels, arguments))


if __name__ == "__main__":
    main()
