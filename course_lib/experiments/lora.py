"""LoRA on one task: rank, targets, scaling and learning rate; its kin at the same number of parameters; what the
change of full fine-tuning looks like that LoRA should stand in for; and what LoRA costs at inference.

Every setting gets the same passes over the same reviews. Those of the grid try all its rates with seed 0; every setting
then climbs from its best or its declared start, and runs with every seed. Nothing is chosen on the test split.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from course_lib import models, tasks, training
from course_lib.experiments.full_vs_feature_based import old_skill
from course_lib.experiments.tuning import RATES, SEEDS, climb, tried
from course_lib.experiments.tuning import tuned as of_best_rate
from course_lib.methods import METHODS, storage
from course_lib.methods.added_linear import set_rank
from course_lib.methods.shapes import linears
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device

import numpy as np
import torch
from torch.utils.benchmark import Timer

TASK = "reviews"
EPOCHS = 3
# The rates that every setting without a start of its own tries.
GRID = (3e-4, 1e-3, 3e-3, 1e-2)
RANKS = (1, 4, 16, 64)
TARGETS = {"query, value": ["query", "value"], "all linear": "all-linear"}
# At one rank: α = r/2, r, 2r and 4r.
ALPHA_RANK, ALPHAS = 16, (8, 16, 32, 64)
# Ranks to which the change of full fine-tuning is cut, and to which DyLoRA is.
CUTS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
BUDGET_RANK = 8
# One short text at a time, as a service answers it; this many rounds over all forms of the model.
SERVED_TOKENS, SERVED_ROUNDS = 16, 30


@dataclass(frozen=True)
class Setting:
    """A method with its hyper-parameters, and the rate at which its tuning starts (None: the best of the grid)."""

    title: str
    method: str
    hparams: dict
    start: float | None = None


def _lora(r: int, targets: str = "query, value", lora_alpha: int = 8, **more) -> dict:
    return {"r": r, "lora_alpha": lora_alpha, "target_modules": TARGETS[targets]} | more


# α stays 8 while the rank changes, as in peft's default: α/r then falls with the rank, α/√r more slowly.
GRID_SETTINGS = {
    f"{targets}, r={r}": Setting(f"{targets}, r = {r}", "lora", _lora(r, targets)) for targets in TARGETS for r in RANKS
}
ALPHA_SETTINGS = {
    f"alpha={alpha}": Setting(f"α = {alpha}, r = {ALPHA_RANK}", "lora", _lora(ALPHA_RANK, lora_alpha=alpha), 1e-3)
    for alpha in ALPHAS
    if alpha != 8
}
RSLORA_SETTINGS = {"rslora, r=64": Setting("α/√r, r = 64", "lora", _lora(64, use_rslora=True), 1e-3)}
# Rank → the setting that divides α = 8 by √r. Two of them are run anyway: 8/√1 is 8/1, and 8/√16 is 32/16.
RSLORA = {1: "query, value, r=1", 16: "alpha=32", 64: "rslora, r=64"}
# As many parameters as LoRA of rank 8 on queries and values, or the next setting below; AdaLoRA at the end.
KIN = {
    "lora": Setting("LoRA", "lora", _lora(BUDGET_RANK), 1e-3),
    "dora": Setting("DoRA", "dora", _lora(BUDGET_RANK - 1), 1e-3),
    "adalora": Setting(
        "AdaLoRA",
        "adalora",
        {"init_r": 12, "target_r": 8, "lora_alpha": 8, "target_modules": TARGETS["query, value"]}
        # Ranks go in the middle of the training: after a tenth of its steps, until a third of them is left.
        | {"tinit": 28, "tfinal": 94},
        3e-3,
    ),
    "dylora": Setting("DyLoRA", "dylora", _lora(BUDGET_RANK), 1e-3),
    "krona": Setting("KronA", "krona", {"decompose_factor": 6, "target_modules": TARGETS["query, value"]}, 3e-3),
}
# The same adapters on a base in 16 or 32 bits, and on one in 4.
_WIDE = {"r": BUDGET_RANK, "lora_alpha": 8, "target_modules": "all-linear"}
BIT_SETTINGS = {
    "all linear, r=8": Setting("LoRA", "lora", _WIDE, 1e-3),
    "nf4": Setting("QLoRA, NF4 double", "qlora", _WIDE, 1e-3),
    "fp4": Setting("QLoRA, FP4 double", "qlora", _WIDE | {"bnb_4bit_quant_type": "fp4"}, 1e-3),
}
FULL = {"full": Setting("Full fine-tuning", "full", {}, 1e-4)}
SETTINGS = FULL | KIN | GRID_SETTINGS | ALPHA_SETTINGS | RSLORA_SETTINGS | BIT_SETTINGS


def make_spec(setting: str, learning_rate: float, seed: int = 0) -> dict:
    """What a run is asked for, its hyper-parameters included."""
    chosen = SETTINGS[setting]
    return {
        "task": TASK,
        "setting": setting,
        "method": chosen.method,
        "hparams": chosen.hparams,
        "epochs": EPOCHS,
        "learning_rate": learning_rate,
        "seed": seed,
    }


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for. folder: see `training.fit`.

    The Run's `extra` has: old_skill of full fine-tuning and of LoRA at the budget (what a new linear probe on the tuned
    encoder answers on another task's test split); energy and cut of full fine-tuning (see there); ranks of AdaLoRA
    (those left to each matrix); cut of DyLoRA (its predictions at each rank).
    """
    task = tasks.load(spec["task"])
    model, tokenizer = models.classifier(len(task.labels), seed=spec["seed"])
    model.to(best_device())
    matrices = [f"{name}.weight" for name in linears(model.config)]
    before = {name: model.encoder.get_parameter(name).detach().clone() for name in matrices}
    run = training.fit(
        model, tokenizer, task, spec["method"], folder=folder,
        hparams=spec["hparams"], epochs=spec["epochs"], learning_rate=spec["learning_rate"], seed=spec["seed"],
    )  # fmt: skip
    if spec["setting"] in ("full", "lora"):
        run.extra["old_skill"] = old_skill(model, tokenizer)
    if spec["method"] == "full":
        run.extra["energy"] = {name: energy(_change(model, before, name)) for name in matrices}
        run.extra["cut"] = cut(model, tokenizer, task, before)
    if spec["method"] == "adalora":
        run.extra["ranks"] = ranks_left(model.encoder)
    if spec["method"] == "dylora":
        run.extra["cut"] = {}
        for rank in (rank for rank in CUTS if 0 < rank <= spec["hparams"]["r"]):
            set_rank(model.encoder, rank)
            run.extra["cut"][str(rank)] = models.predict(model, tokenizer, task.test.texts)
    run.spec = spec
    return run


def _change(model, before: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return model.encoder.get_parameter(name).detach() - before[name]


def energy(change: torch.Tensor) -> list[float]:
    """The share of the squared singular values that the first r hold, for each r of CUTS; 0 for a matrix of zeros."""
    squares = torch.linalg.svdvals(change.double()).square()
    total = squares.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return [(squares[:rank].sum() / total).item() for rank in CUTS]


def cut(model, tokenizer, task: tasks.Task, before: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """Rank → predictions on the test split, with the change of every matrix in `before` cut to that rank, as near to
    the whole as a matrix of that rank can be (Eckart and Young, Psychometrika 1, 1936). The model is left as it was.

    All else (embeddings, biases, norms, the head) stays as trained: rank 0 shows what that alone can do.
    """
    parts = {name: torch.linalg.svd(_change(model, before, name), full_matrices=False) for name in before}
    whole = {name: model.encoder.get_parameter(name).detach().clone() for name in before}
    found = {}
    with torch.no_grad():
        for rank in CUTS:
            for name, (u, s, v) in parts.items():
                model.encoder.get_parameter(name).copy_(before[name] + u[:, :rank] * s[:rank] @ v[:rank])
            found[str(rank)] = models.predict(model, tokenizer, task.test.texts)
        for name, weight in whole.items():
            model.encoder.get_parameter(name).copy_(weight)
    return found


def ranks_left(encoder) -> dict[str, int]:
    """Module → number of AdaLoRA's ranks that were not taken away."""
    return {
        name.removeprefix("base_model.model."): int(module.lora_E["default"].count_nonzero())
        for name, module in encoder.named_modules()
        if "default" in getattr(module, "lora_E", ())
    }


def best_rate(log: RunLog, setting: str) -> float:
    """The learning rate of the setting, climbing from its start or from the best of the grid."""

    def score(rate: float) -> float:
        return log.run(make_spec(setting, rate), train).best_validation

    start = SETTINGS[setting].start or max(GRID, key=lambda rate: (score(rate), -rate))
    return climb(RATES, start, score)


def compare(log: RunLog, settings: Iterable[str] = SETTINGS) -> None:
    """Every setting: its rate tuned, then every seed."""
    for setting in settings:
        rate = best_rate(log, setting)
        for seed in SEEDS:
            log.run(make_spec(setting, rate, seed), train)


def served(**settings) -> dict[str, torch.nn.Module]:
    """The encoder in the forms in which LoRA can be served; settings are for `models.encoder`."""

    def adapted(**hparams):
        return METHODS["lora"].apply(models.encoder(**settings)[0], **hparams)

    forms = {
        "base model": models.encoder(**settings)[0],
        "LoRA, query and value": adapted(),
        "LoRA, all linear": adapted(target_modules="all-linear"),
        "LoRA, merged": storage.merge(adapted()),
    }
    return {what: model.to(best_device()).eval() for what, model in forms.items()}


def forward_seconds(forms: dict[str, torch.nn.Module], rounds: int) -> dict[str, list[float]]:
    """Form → seconds of a forward pass of one text of SERVED_TOKENS tokens, one entry a round.

    The forms take turns, so that a machine that becomes slower does so for all of them.
    """
    ids = torch.randint(1000, 2000, (1, SERVED_TOKENS), generator=torch.Generator().manual_seed(0)).to(best_device())
    threads = torch.get_num_threads()
    timers = {
        what: Timer("model(ids)", globals={"model": m, "ids": ids}, num_threads=threads) for what, m in forms.items()
    }
    with torch.inference_mode():
        turns = [{what: timer.timeit(5).mean for what, timer in timers.items()} for _ in range(rounds)]
    return {what: [turn[what] for turn in turns] for what in forms}


def serve(log: RunLog) -> None:
    """Time every form of the model on an otherwise idle machine."""

    def measure(spec: dict, folder: Path | None = None) -> Run:
        seconds = forward_seconds(served(), spec["rounds"])
        total = sum(map(sum, seconds.values()))
        return Run(
            spec=spec, losses=[], trainable=0, seconds=total, predicted_bytes={}, peak_bytes=None, precision="fp32",
            tokens_per_second=SERVED_TOKENS * sum(map(len, seconds.values())) / total, extra={"seconds": seconds},
        )  # fmt: skip

    log.run({"serving": SERVED_TOKENS, "rounds": SERVED_ROUNDS}, measure)


def slowdown(runs: list[Run], form: str) -> np.ndarray:
    """How many times the base model's time the form takes, one entry a round; empty where it was not recorded."""
    found = [run.extra["seconds"] for run in select(runs, serving=SERVED_TOKENS)]
    return np.divide(found[0][form], found[0]["base model"]) if found else np.array([])


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    compare(log)
    serve(log)


def at_rates(runs: list[Run], setting: str) -> dict[float, Run]:
    """Learning rate → the recorded run with seed 0, for every rate that the setting tried."""
    return tried(select(runs, setting=setting))


def tuned(runs: list[Run], setting: str) -> list[Run]:
    """The recorded runs of a setting at its tuned rate, one a seed, in order; empty where a seed is missing."""
    return of_best_rate(select(runs, setting=setting))


def trained(setting: str) -> int:
    """Parameters that the setting trains on the encoder, the head left out; of AdaLoRA, those that are left at the
    end."""
    chosen = SETTINGS[setting]
    config = models.config("minilm-l6")
    if chosen.method == "adalora":
        return METHODS["adalora"].file_bytes(config, **chosen.hparams) // 4
    return METHODS[chosen.method].count(config, **chosen.hparams)
