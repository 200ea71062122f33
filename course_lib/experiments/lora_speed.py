"""Speed and memory of training on a GPU: full fine-tuning against LoRA, on Llama models of 1, 3 and 8 billion
parameters with random weights (speed and memory do not depend on their values).

Every step trains on the same number of tokens, in rows of one length without padding. Speed is also given as a share of
what the device reaches on a plain matrix product: a token costs 6N floating-point operations in full fine-tuning, and
4N with LoRA, which needs no gradients of the frozen weights. N: the weights of all matrix products of the base model,
the output head among them. Attention scores and LoRA's own products are left out of the count, not out of the time.
"""

import gc
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

from course_lib import models
from course_lib.experiments.steps import time_steps, wait
from course_lib.methods import METHODS
from course_lib.methods.shapes import linears
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device

import torch
from transformers import AutoModelForCausalLM

SHAPES = {"1B": "llama-3.2-1b", "3B": "llama-3.2-3b", "8B": "llama-3-8b"}
RANKS = (1, 8, 64, 256)
TARGETS = {"query, value": ["q_proj", "v_proj"], "all linear": "all-linear"}
LENGTH, ROWS = 2048, 2
WARMUP, STEPS = 3, 10
# The side of the square matrices that tell the device's rate.
SIDE = 8192


@dataclass(frozen=True)
class Build:
    """How a step is computed, not what: the same losses, at another speed.

    attention: transformers' name; adapters_fp32: peft's default, adapters in fp32 on a bf16 model; compiled: each block
    by torch.compile; padded: rows of many lengths, filled up to the longest (only real tokens count).
    """

    attention: str = "sdpa"
    adapters_fp32: bool = False
    compiled: bool = True
    padded: bool = False


# What each step towards the fast build brings, on the largest shape.
LADDER = {
    "plain": Build("eager", adapters_fp32=True, compiled=False, padded=True),
    "fused attention": Build("sdpa", adapters_fp32=True, compiled=False, padded=True),
    "packed rows": Build("sdpa", adapters_fp32=True, compiled=False),
    "adapters in bf16": Build("sdpa", compiled=False),
    "compiled blocks": Build(),
}
LADDER_RANK = 8


def make_spec(shape: str, method: str, build: str = "compiled blocks", **hparams) -> dict:
    """What is measured; hparams are the method's."""
    return {"shape": shape, "method": method, "build": build, "hparams": hparams}


def everything() -> list[dict]:
    """The specs of the whole table: full, then LoRA by rank and targets, for each shape; then the ladder of builds."""
    table = []
    for shape in SHAPES:
        table.append(make_spec(shape, "full"))
        table += [
            make_spec(shape, "lora", r=r, target_modules=target) for target, r in product(TARGETS.values(), RANKS)
        ]
    largest = list(SHAPES)[-1]
    ladder = [make_spec(largest, "lora", build, r=LADDER_RANK, target_modules="all-linear") for build in LADDER]
    return table + [spec for spec in ladder if spec not in table]


def measure(spec: dict, folder: Path | None = None) -> Run:
    """Train a few steps and return the Run: seconds and tokens a second, losses, peak and predicted memory.

    Its `extra` has step_seconds (each of the timed steps), matmul_rate (of the device, floating-point operations a
    second), utilization (the model's own operations a second, as a share of that rate). folder is not used.
    """
    device, build = best_device(), LADDER[spec["build"]]
    model = _model(spec, build, device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, fused=True)
    ids, mask = _rows(model.config.vocab_size, build, device)
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids, "labels": labels} | ({} if mask is None else {"attention_mask": mask})
    losses, times = time_steps(model, batch, optimizer, warmup=WARMUP, steps=STEPS)
    tokens = int(mask.sum()) if mask is not None else ids.numel()
    seconds = sum(times)
    speed, rate = tokens * STEPS / seconds, matmul_rate(device)
    return Run(
        spec=spec,
        losses=losses,
        trainable=sum(p.numel() for p in trainable),
        seconds=seconds,
        tokens_per_second=speed,
        predicted_bytes={
            "weights": sum(p.nbytes for p in model.parameters()),
            "gradients": sum(p.nbytes for p in trainable),
            # AdamW keeps two states in the parameter's own type.
            "optimizer states": 2 * sum(p.nbytes for p in trainable),
        },
        peak_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else None,
        precision="bf16",
        extra={
            "step_seconds": times,
            "matmul_rate": rate,
            "utilization": speed * operations(spec["shape"], spec["method"]) / rate,
        },
    )


def operations(shape: str, method: str) -> int:
    """Floating-point operations a token by the convention above: 6N for full fine-tuning, 4N for LoRA."""
    weights = sum(layer.weights for layer in linears(models.config(SHAPES[shape])).values())
    return (6 if method == "full" else 4) * weights


def _model(spec: dict, build: Build, device: str):
    torch.manual_seed(0)
    settings = models.config(SHAPES[spec["shape"]])
    settings.use_cache = False
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16, attn_implementation=build.attention)
    model = METHODS[spec["method"]].apply(model, **spec["hparams"])
    for parameter in model.parameters():
        if parameter.requires_grad and not build.adapters_fp32:
            parameter.data = parameter.data.to(torch.bfloat16)
    if build.compiled:
        for block in _blocks(model):
            block.compile()
    return model.train()


def _blocks(model) -> Iterable[torch.nn.Module]:
    """The transformer blocks, wherever peft has put them."""
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


def _rows(vocabulary: int, build: Build, device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Random tokens, (ROWS, LENGTH), and their mask; padded rows hold between an eighth and all of LENGTH, the last is
    full."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(10, vocabulary, (ROWS, LENGTH), generator=draw)
    if not build.padded:
        return ids.to(device), None
    lengths = torch.linspace(LENGTH // 8, LENGTH, ROWS).long()
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    return ids.to(device), mask.to(device)


@lru_cache
def matmul_rate(device: str) -> float:
    """Floating-point operations a second of a product of two square bf16 matrices of random numbers, the median of ten
    after a warm-up."""
    side = SIDE if device == "cuda" else SIDE // 8
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(13):
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - began)
    return 2 * side**3 / sorted(times[3:])[5]


def study(log: RunLog) -> None:
    """The whole table, as far as it fits into the device's memory; what is in the log already is not run again."""
    if best_device() != "cuda":
        print("lora_speed: skipped, it needs a CUDA GPU")
        return
    for spec in everything():
        try:
            run = log.run(spec, measure)
            print(f"{_title(spec)}: {run.tokens_per_second:,.0f} tokens/s, {run.peak_bytes / 1e9:.1f} GB", flush=True)
        except torch.OutOfMemoryError:
            print(f"{_title(spec)}: skipped, does not fit into this device's memory", flush=True)
        finally:
            gc.collect()
            torch.cuda.empty_cache()
            torch.compiler.reset()


def _title(spec: dict) -> str:
    return f"{spec['shape']} {spec['method']} {spec['hparams'] or ''} ({spec['build']})"


def recorded(runs: list[Run], **wanted) -> list[Run]:
    """The recorded measurements with these values in their specs, of the fast build unless another is asked for."""
    return select(runs, **{"build": "compiled blocks"} | wanted)
