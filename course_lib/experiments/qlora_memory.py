"""Memory and speed of training on a GPU: full fine-tuning, LoRA and QLoRA on Llama models from 1 to 70 billion
parameters with random weights (memory and speed do not depend on their values), beside what was predicted.

What does not fit into the device's memory is recorded as not fitting.
"""

import gc
from collections.abc import Iterable
from dataclasses import asdict
from itertools import product
from pathlib import Path

from course_lib import models
from course_lib.errors import unknown
from course_lib.experiments.steps import time_steps
from course_lib.memory.estimate import Estimate, estimate
from course_lib.memory.fitting import WAYS
from course_lib.memory.trace import trace
from course_lib.methods import METHODS
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device

import torch
from torch import nn
from transformers import AutoModelForCausalLM

SHAPES = {"1B": "llama-3.2-1b", "3B": "llama-3.2-3b", "8B": "llama-3-8b", "13B": "llama-2-13b", "70B": "llama-3-70b"}
MEASURED = ("full, fp32", "full, bf16", "LoRA, bf16", "QLoRA, NF4", "QLoRA, NF4 double")
RANK = 16
WARMUP, STEPS = 2, 5


def make_spec(shape: str, way: str, checkpointing: bool, batch_size: int = 1, seq_len: int = 2048) -> dict:
    """What is measured; way: one of MEASURED, else ValueError."""
    if way not in MEASURED:
        raise unknown("way", way, MEASURED)
    return {
        "shape": shape, "way": way, "checkpointing": checkpointing, "batch_size": batch_size, "seq_len": seq_len,
    }  # fmt: skip


def everything() -> list[dict]:
    """The specs of the whole table, the most informative first: each way at 1B and 8B, the larger models as they are
    trained in practice; then lengths and batches at 8B; then all that is left."""
    frugal = MEASURED[2:]
    table = [make_spec(*one) for one in product(("1B", "8B"), MEASURED, (True, False))]
    table += [make_spec(*one) for one in product(("3B", "13B", "70B"), frugal, (True,))]
    table += [make_spec("8B", way, True, 1, length) for way in frugal for length in (256, 512, 1024, 4096)]
    table += [make_spec("8B", way, True, rows, 2048) for way in frugal for rows in (4, 8)]
    table += [make_spec("8B", way, False, 1, 512) for way in frugal]
    table += [make_spec(*one) for one in product(("3B", "13B", "70B"), MEASURED, (True, False))]
    return [spec for index, spec in enumerate(table) if spec not in table[:index]]


def settings(spec: dict) -> tuple[str, dict]:
    """The method of a spec, and its hyper-parameters: those of its way, or its own."""
    if "way" not in spec:
        return spec["method"], spec["hparams"]
    method, own = WAYS[spec["way"]]
    own = own | ({} if method == "full" else {"r": RANK})
    known = METHODS[method].hparams
    return method, {key: value for key, value in own.items() if key in known}


def predicted(spec: dict) -> Estimate:
    """The closed form of a spec."""
    method, hparams = settings(spec)
    options = {key: spec[key] for key in ("batch_size", "seq_len")} | {"gradient_checkpointing": spec["checkpointing"]}
    return estimate(_config(spec), method, dtype=_dtype(spec), **options, **hparams)


def traced(spec: dict) -> Estimate:
    """The step of a spec followed through the model's code, without memory."""
    return trace(_on_meta(spec), _batch(spec, "meta"))


def measure(spec: dict, folder: Path | None = None) -> Run:
    """Train a few steps and return the Run: seconds and tokens a second, losses, peak, predicted bytes by part.

    Its `extra` has estimate and trace (an Estimate's fields) and fits, and where that is so step_seconds and reserved
    (bytes that PyTorch held at its peak). A step that runs out of memory gives a Run without losses. folder: not used.
    """
    device = best_device()
    found = {"estimate": asdict(predicted(spec)), "trace": asdict(traced(spec))}
    shared = {"spec": spec, "precision": _dtype(spec), "predicted_bytes": found["estimate"]["peak"]}
    try:
        return _trained(spec, device, found, shared)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        # cuBLAS says it in words of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        return Run(**shared, extra=found | {"fits": False})


def _trained(spec: dict, device: str, found: dict, shared: dict) -> Run:
    torch.manual_seed(0)
    model = materialize(_on_meta(spec), device).train()
    if device == "cuda":
        # What packing left behind is not what training needs.
        gc.collect()
        torch.cuda.empty_cache()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, fused=True)
    losses, times = time_steps(model, _batch(spec, device), optimizer, warmup=WARMUP, steps=STEPS)
    cuda = device == "cuda"
    return Run(
        **shared,
        losses=losses,
        trainable=sum(p.numel() for p in trainable),
        seconds=sum(times),
        tokens_per_second=_tokens(spec) * STEPS / sum(times),
        peak_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        extra=found
        | {"fits": True, "step_seconds": times, "reserved": torch.cuda.max_memory_reserved() if cuda else None},
    )


def _dtype(spec: dict) -> str:
    return WAYS[spec["way"]][1].get("dtype", "bf16") if "way" in spec else "bf16"


def _config(spec: dict):
    config = models.config(SHAPES[spec["shape"]])
    config.use_cache = False
    return config


def _on_meta(spec: dict) -> nn.Module:
    method, hparams = settings(spec)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[_dtype(spec)]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(spec), dtype=dtype, attn_implementation="sdpa")
        model = METHODS[method].apply(model, **hparams)
    if spec["checkpointing"]:
        model.activation_checkpointing_enable()
    return model


def _batch(spec: dict, device: str) -> dict[str, torch.Tensor]:
    """Random tokens in full rows; or in each row texts of the lengths that spec["texts"] has for it: one and padding,
    or several, with positions that begin anew."""
    ids = torch.randint(10, _config(spec).vocab_size, (spec["batch_size"], spec["seq_len"]), device=device)
    if "texts" not in spec:
        return {"input_ids": ids, "labels": ids}
    lengths = torch.tensor([sum(row) for row in spec["texts"]], device=device)[:, None]
    mask = torch.arange(spec["seq_len"], device=device) < lengths
    batch = {"input_ids": ids, "labels": ids.masked_fill(~mask, -100)}
    if all(len(row) == 1 for row in spec["texts"]):
        return batch | {"attention_mask": mask.long()}
    rows = [[*row, spec["seq_len"] - sum(row)] for row in spec["texts"]]
    positions = [torch.cat([torch.arange(n, device=device) for n in row]) for row in rows]
    return batch | {"position_ids": torch.stack(positions)}


def _tokens(spec: dict) -> int:
    """Tokens of texts in a step, padding left out."""
    return sum(map(sum, spec["texts"])) if "texts" in spec else spec["batch_size"] * spec["seq_len"]


def materialize(model: nn.Module, device: str) -> nn.Module:
    """A model from the meta device with random weights on `device`, layer by layer: a matrix that is kept in 4 bits is
    there in full only while it is packed, so that no more is needed than the model takes in the end."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                made[parameter] = _random(module, parameter, device)
            # Tied parameters stay tied.
            setattr(module, name, made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros_like(buffer, device=device))
    # peft's numbers of virtual tokens are neither parameters nor buffers.
    tokens = getattr(model, "prompt_tokens", {})
    tokens.update({name: torch.arange(len(numbers), device=device) for name, numbers in tokens.items()})
    return model


def _random(module: nn.Module, parameter: nn.Parameter, device: str) -> nn.Parameter:
    data = (
        torch.empty_like(parameter, device=device).normal_(0, 0.02)
        if parameter.ndim > 1
        else (torch.ones_like(parameter, device=device))
    )
    if not hasattr(parameter, "bnb_quantized"):
        return nn.Parameter(data, parameter.requires_grad)
    from bitsandbytes.nn import Params4bit

    format_ = {"compress_statistics": parameter.compress_statistics, "quant_type": parameter.quant_type}
    return Params4bit(data, requires_grad=False, module=module, **format_).to(device)


def study(log: RunLog) -> None:
    """The whole table; what is in the log already is not run again."""
    measure_all(log, everything(), "qlora_memory")


def measure_all(log: RunLog, specs: Iterable[dict], study: str) -> None:
    """Measure each spec and tell the result; what cannot be measured is told, too. `study` is who asks."""
    if best_device() != "cuda":
        print(f"{study}: skipped what needs a CUDA GPU, models of billions of parameters")
        return
    for spec in specs:
        try:
            run = log.run(spec, measure)
            print(f"{title(spec)}: {_outcome(run)}", flush=True)
        except (ImportError, RuntimeError) as error:
            # The others can still be measured.
            print(f"{title(spec)}: skipped, {error}", flush=True)
        finally:
            gc.collect()
            torch.cuda.empty_cache()


def title(spec: dict) -> str:
    """A spec in words."""
    checkpointing = ", checkpointing" if spec["checkpointing"] else ""
    way = spec.get("way") or f"{spec['method']} {spec['hparams']}"
    return f"{spec['shape']} {way}{checkpointing}, {spec['batch_size']} × {spec['seq_len']}"


def _outcome(run: Run) -> str:
    expected = sum(run.predicted_bytes.values()) / 1e9
    if not run.extra["fits"]:
        return f"does not fit ({expected:.1f} GB expected)"
    return f"{run.peak_bytes / 1e9:.2f} GB ({expected:.2f} expected), {run.tokens_per_second:,.0f} tokens/s"


def recorded(runs: Iterable[Run], **wanted) -> list[Run]:
    """The recorded measurements with these values in their specs, those that fitted."""
    return [run for run in select(list(runs), **wanted) if run.extra["fits"]]


def errors(runs: Iterable[Run]) -> dict[str, list[float]]:
    """(predicted − measured) / measured allocated peak of the runs that fitted: by the closed form and by the trace."""
    fitted = [run for run in runs if run.extra["fits"] and run.peak_bytes]
    return {
        answer: [sum(run.extra[answer]["peak"].values()) / run.peak_bytes - 1 for run in fitted]
        for answer in ("estimate", "trace")
    }
