# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
"""The other side of the benchmark: BERT with LoRA as a plain PyTorch loop.

The network is written out as transformers' BertForSequenceClassification computes it (eager attention, the padding mask
always added), LoRA as peft computes it (unmerged, dropout on its input). No package but torch is needed. Rows, batches
and initial values come from the files that the benchmark program wrote; one line of JSON goes to standard output.

    pytorch_loop.py train|score|latency|first|profile FOLDER --threads N [--autocast] [--dropout on|off] [--steps N] [--warmup N] [--rate R] [--warm SECONDS] [--seconds SECONDS]
"""
import argparse
import contextlib
import ctypes
import itertools
import json
import math
import mmap
import os
import struct
import sys
import time

import torch
from torch import nn

RANK, ALPHA, LORA_DROPOUT = 8, 16, 0.05
CALLS = 300


# ---- files -----------------------------------------------------------------------------------------------------------

def read_safetensors(path):
    """All float32 tensors of a safetensors file, mapped into memory and not copied."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__" or info["dtype"] != "F32":
            continue
        start, end = info["data_offsets"]
        flat = torch.frombuffer(data, dtype=torch.float32, count=(end - start) // 4, offset=8 + length + start)
        tensors[name] = flat.view(info["shape"])
    return tensors


def read_rows(path):
    """One row a line: the label, then the token ids."""
    with open(path) as file:
        rows = [[int(word) for word in line.split()] for line in file]
    return [(row[0], row[1:]) for row in rows]


def read_batches(path):
    """One batch a line: the numbers of its rows."""
    with open(path) as file:
        return [[int(word) for word in line.split()] for line in file]


def collate(rows, pad):
    longest = max(len(ids) for _, ids in rows)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for _, ids in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for _, ids in rows])
    return ids, mask, torch.tensor([label for label, _ in rows])


# ---- the network -----------------------------------------------------------------------------------------------------

class LoraLinear(nn.Linear):
    """A frozen linear map with a trained low-rank term beside it."""

    def __init__(self, width_in, width_out, dropout):
        super().__init__(width_in, width_out)
        self.lora_A = nn.Linear(width_in, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, width_out, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x):
        return super().forward(x) + self.lora_B(self.lora_A(self.dropout(x))) * (ALPHA / RANK)


class SelfAttention(nn.Module):
    def __init__(self, config, lora_dropout):
        super().__init__()
        width = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.head_width = width // self.heads
        self.query = LoraLinear(width, width, lora_dropout)
        self.key = nn.Linear(width, width)
        self.value = LoraLinear(width, width, lora_dropout)
        self.dropout = nn.Dropout(config["attention_probs_dropout_prob"])

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_width).permute(0, 2, 1, 3)

    def forward(self, x, mask):
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.head_width) + mask
        context = torch.matmul(self.dropout(scores.softmax(dim=-1)), value)
        return context.permute(0, 2, 1, 3).contiguous().view(x.shape)


class Output(nn.Module):
    """A dense map, dropout, the residual connection and its norm."""

    def __init__(self, config, width_in):
        super().__init__()
        self.dense = nn.Linear(width_in, config["hidden_size"])
        self.LayerNorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])

    def forward(self, x, stream):
        return self.LayerNorm(self.dropout(self.dense(x)) + stream)


class Layer(nn.Module):
    def __init__(self, config, lora_dropout):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config, lora_dropout), "output": Output(config, config["hidden_size"])})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config["hidden_size"], config["intermediate_size"])})
        self.output = Output(config, config["intermediate_size"])

    def forward(self, x, mask):
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], width, padding_idx=config["pad_token_id"])
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])

    def forward(self, ids):
        positions = torch.arange(ids.shape[1]).unsqueeze(0)
        x = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids)) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(x))


class Classifier(nn.Module):
    """BERT, its pooler, dropout and one linear map to the classes."""

    def __init__(self, config, classes):
        super().__init__()
        lora_dropout = LORA_DROPOUT if config["hidden_dropout_prob"] > 0 else 0.0
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config, lora_dropout) for _ in range(config["num_hidden_layers"]))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config["hidden_size"], config["hidden_size"])})
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.classifier = nn.Linear(config["hidden_size"], classes)

    def forward(self, ids, mask):
        added = ((1.0 - mask.float()) * torch.finfo(torch.float32).min)[:, None, None, :]
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            x = layer(x, added)
        return self.classifier(self.dropout(torch.tanh(self.pooler["dense"](x[:, 0]))))


def load_model(folder, backbone, values):
    with open(os.path.join(backbone, "config.json")) as file:
        config = json.load(file)
    # Fresh values would be drawn only to be written over.
    nn.init.kaiming_uniform_ = nn.init.uniform_ = nn.init.normal_ = lambda tensor, *_, **__: tensor
    init = {name.removeprefix("bert."): tensor for name, tensor in read_safetensors(os.path.join(folder, values)).items()}
    model = Classifier(config, init["classifier.bias"].shape[0])
    frozen = {name.removeprefix("bert."): tensor for name, tensor in read_safetensors(os.path.join(backbone, "model.safetensors")).items()}
    missing, _ = model.load_state_dict({**frozen, **init}, strict=False)
    assert not missing, missing
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in init)
    return model, config["pad_token_id"]


# ---- what is measured ------------------------------------------------------------------------------------------------

def autocast(arguments):
    return torch.autocast("cpu", torch.bfloat16) if arguments.autocast else contextlib.nullcontext()


def train(model, pad, rows, batches, arguments, after_step=lambda step: None):
    """The usual loop; seconds and tokens count from the end of the warm-up steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.rate, weight_decay=0.0)
    total, ramp = len(batches), math.ceil(0.06 * len(batches))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / max(1, ramp) if step < ramp else max(0.0, (total - step) / max(1, total - ramp)))
    loss_function = nn.CrossEntropyLoss()
    model.train()
    losses, tokens, began, cpu = [], 0, time.perf_counter(), time.process_time()
    for step, batch in enumerate(batches):
        if step == arguments.warmup:
            tokens, began, cpu = 0, time.perf_counter(), time.process_time()
        ids, mask, labels = collate([rows[r] for r in batch], pad)
        with autocast(arguments):
            loss = loss_function(model(ids, mask), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        tokens += sum(len(rows[r][1]) for r in batch)
        after_step(step)
    return {"losses": losses, "tokens": tokens, "seconds": time.perf_counter() - began, "cpuSeconds": time.process_time() - cpu}


def score(model, pad, rows, batches, arguments):
    """Scores of all batches, pass after pass: passes until the warm-up is over, then as many as fill the time that is measured."""
    def passes(seconds):
        began, number = time.perf_counter(), 0
        while number == 0 or time.perf_counter() - began < seconds:
            scores, number = [], number + 1
            for batch in batches:
                ids, mask, _ = collate([rows[r] for r in batch], pad)
                scores.extend(model(ids, mask).flatten().tolist())
        return scores, number

    model.eval()
    with torch.inference_mode(), autocast(arguments):
        passes(arguments.warm)
        began, cpu = time.perf_counter(), time.process_time()
        scores, number = passes(arguments.seconds)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tokens = number * sum(len(rows[r][1]) for batch in batches for r in batch)
    return {"scores": scores, "tokens": tokens, "seconds": seconds, "cpuSeconds": cpu}


def first(model, pad, rows):
    """Scores of the first row alone, at once."""
    model.eval()
    with torch.inference_mode():
        ids, mask, _ = collate(rows[:1], pad)
        return {"scores": model(ids, mask)[0].softmax(-1).tolist()}


def latency(model, pad, rows, arguments):
    """One row at a time: milliseconds and probabilities."""
    model.eval()
    scores, milliseconds = [], []
    with torch.inference_mode(), autocast(arguments):
        def shares(row):
            ids, mask, _ = collate([row], pad)
            return model(ids, mask).float().softmax(-1)[0].tolist()

        began = time.perf_counter()
        for row in itertools.cycle(rows[:CALLS]):
            if time.perf_counter() - began >= arguments.warm:
                break
            shares(row)
        for row in rows[:CALLS]:
            began = time.perf_counter()
            made = shares(row)
            milliseconds.append(1000 * (time.perf_counter() - began))
            scores.extend(made)
    return {"scores": scores, "milliseconds": milliseconds}


def peak_memory_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def loaded(*names):
    """The file of the first of the libraries that is loaded."""
    with open("/proc/self/maps") as file:
        paths = [line.split()[-1] for line in file]
    return next((path for name in names for path in paths if os.path.basename(path).startswith(name)), "")


def blas():
    """The BLAS that is loaded: the name of its folder, which says the variant on Debian, its file, and what it takes the processor for."""
    path = loaded("libopenblas", "libblas", "libmkl")
    if not path:
        return "libtorch's own"
    name = os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path))
    with contextlib.suppress(OSError, AttributeError):
        core = ctypes.CDLL(path).openblas_get_corename
        core.restype = ctypes.c_char_p
        return f"{name} ({core().decode()})"
    return name


def report(result):
    """The one line of JSON that a measurement ends with: its result, memory and libraries."""
    libraries = {"blas": blas(), "library": loaded("libtorch_cpu"), "torch": torch.__version__}
    print(json.dumps({**result, "peakMemoryMiB": peak_memory_mib(), **libraries}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["train", "score", "latency", "first", "profile"])
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--dropout", default="on")
    parser.add_argument("--steps", type=int, default=1 << 30)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--warm", type=float, default=1)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rate", type=float, default=5e-4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    kind = "train" if arguments.mode in ("train", "profile") else "score"
    backbone = os.path.join(arguments.folder, "backbone" + ("" if arguments.dropout == "on" else "-without-dropout"))
    model, pad = load_model(arguments.folder, backbone, "init.safetensors" if kind == "train" else "trained.safetensors")
    rows = read_rows(os.path.join(arguments.folder, kind + ".rows"))
    batches = read_batches(os.path.join(arguments.folder, kind + ".batches"))[:arguments.steps]
    if arguments.mode == "train":
        result = train(model, pad, rows, batches, arguments)
    elif arguments.mode == "score":
        result = score(model, pad, rows, batches, arguments)
    elif arguments.mode == "latency":
        result = latency(model, pad, rows, arguments)
    elif arguments.mode == "first":
        result = first(model, pad, rows)
    else:
        train(model, pad, rows, batches[:3], arguments)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            train(model, pad, rows, batches, arguments)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30), file=sys.stderr)
        result = {}
    report(result)


if __name__ == "__main__":
    main()
