"""Every method of the registry on one task: what does each choice of "what may move" cost, and what does it bring?

All get the same passes over the same reviews, but for LT-SFT, which gets them in each of its two phases; full
fine-tuning with twice the passes is there to compare it with. Each tunes its learning rate on validation with seed 0,
by climbing one common grid from a declared start, then runs with every seed. Nothing is chosen on the test split.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from course_lib import models, tasks, training
from course_lib.experiments.tuning import RATES, SEEDS, climb, tried
from course_lib.experiments.tuning import tuned as of_best_rate
from course_lib.methods import sparse, storage
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device

import numpy as np

TASK = "reviews"
EPOCHS = 3
# BitFit's authors speak of small data: so many examples, with more passes over them.
FEW, FEW_EPOCHS = 128, 24
# Steps cost the same each time: this many examples tell the speed.
TIMED = 160
# Passes of each phase, of the methods that have two.
PHASES = {"lt_sft": (EPOCHS, EPOCHS), "diff_pruning": (EPOCHS - 1, 1)}
REPEATS = 3


@dataclass(frozen=True)
class Entry:
    """A method with its hyper-parameters, the learning rate at which its tuning starts, passes over the data."""

    title: str
    method: str
    start: float
    hparams: dict = field(default_factory=dict)
    epochs: int = EPOCHS


# Hyper-parameters are the registry's defaults, which are peft's where peft has the method.
ENTRIES = {
    "full": Entry("Full fine-tuning", "full", 1e-4),
    "full_twice": Entry("Full, twice the passes", "full", 1e-4, epochs=2 * EPOCHS),
    "feature_based": Entry("Feature-based", "feature_based", 1e-2),
    "last_layers": Entry("Last 2 layers", "last_layers", 3e-4),
    "bitfit": Entry("BitFit", "bitfit", 3e-3),
    "lt_sft": Entry("LT-SFT", "lt_sft", 3e-4),
    # The authors' alpha_init=5 is for trainings a hundred times as long: here the gates would stay open.
    "diff_pruning": Entry("Diff pruning", "diff_pruning", 3e-4, {"alpha_init": 2.0}),
    "threshold_mask": Entry("Threshold mask", "threshold_mask", 1e-3),
    "adapter": Entry("Adapter (Houlsby)", "adapter", 1e-3),
    "adapter_pfeiffer": Entry("Adapter (Pfeiffer)", "adapter", 1e-3, {"placement": "pfeiffer"}),
    "prompt_tuning": Entry("Prompt tuning", "prompt_tuning", 3e-2),
    "p_tuning": Entry("P-tuning", "p_tuning", 3e-3),
    "prefix_tuning": Entry("Prefix tuning", "prefix_tuning", 1e-2),
    "prefix_projection": Entry("Prefix, projected", "prefix_tuning", 1e-3, {"prefix_projection": True}),
    "multitask_prompt_tuning": Entry("Multitask prompt", "multitask_prompt_tuning", 3e-2),
    "ladder_side_tuning": Entry("Ladder side-tuning", "ladder_side_tuning", 1e-3),
    "pasta": Entry("PASTA", "pasta", 1e-2),
    "ia3": Entry("(IA)³", "ia3", 1e-2),
    "lora": Entry("LoRA", "lora", 1e-3),
    "qlora": Entry("QLoRA", "qlora", 1e-3),
    "krona": Entry("KronA", "krona", 3e-3),
    "dylora": Entry("DyLoRA", "dylora", 1e-3),
    # Ranks go in the middle of the training: after a tenth of its steps, until a third of them is left.
    "adalora": Entry("AdaLoRA", "adalora", 3e-3, {"tinit": 28, "tfinal": 94}),
    "dora": Entry("DoRA", "dora", 1e-3),
    "lokr": Entry("LoKr", "lokr", 3e-3),
    "loha": Entry("LoHa", "loha", 3e-3),
    "vera": Entry("VeRA", "vera", 1e-2),
    "oft": Entry("OFT", "oft", 1e-3),
}


def make_spec(entry: str, learning_rate: float, seed: int = 0, **part) -> dict:
    """What a run is asked for, its hyper-parameters included.

    part: timing (the number of a timing run), n_train (a smaller training set).
    """
    chosen = ENTRIES[entry]
    return {
        "task": TASK,
        "entry": entry,
        "hparams": chosen.hparams,
        "epochs": FEW_EPOCHS if "n_train" in part else chosen.epochs,
        "learning_rate": learning_rate,
        "seed": seed,
        **part,
    }


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for. folder: see `training.fit`.

    The Run's `extra` has file_bytes, the size of what has to be kept for this task beside the frozen model (the head
    left out), and for methods of two phases phase_seconds of both.
    """
    task = tasks.load(spec["task"])
    if "timing" in spec:
        task = task.smaller(train=TIMED, validation=32, test=32)
    if "n_train" in spec:
        task = task.smaller(train=spec["n_train"], validation=100, seed=spec["seed"])
    entry = ENTRIES[spec["entry"]]
    phases = {"lt_sft": _lottery_ticket, "diff_pruning": _diff_pruning}.get(entry.method, _one_phase)
    run, model = phases(task, entry, spec, folder)
    with tempfile.TemporaryDirectory() as temporary:
        run.extra["file_bytes"] = storage.save(model.encoder, Path(temporary))
    run.spec = spec
    return run


def _model(task: tasks.Task, seed: int):
    model, tokenizer = models.classifier(len(task.labels), seed=seed)
    return model.to(best_device()), tokenizer


def _fit(model, tokenizer, task, method: str, spec: dict, folder: Path | None, **more) -> Run:
    settings = {"learning_rate": spec["learning_rate"], "epochs": spec["epochs"], "seed": spec["seed"]} | more
    if "timing" in spec:
        settings["epochs"] = 1
    return training.fit(model, tokenizer, task, method, folder=folder, **settings)


def _one_phase(task, entry: Entry, spec: dict, folder):
    model, tokenizer = _model(task, spec["seed"])
    hparams = entry.hparams
    if "timing" in spec:
        # A timing run has other steps than the schedule of ranks was made for.
        hparams = {name: value for name, value in hparams.items() if name not in ("tinit", "tfinal")}
    return _fit(model, tokenizer, task, entry.method, spec, folder, hparams=hparams), model


@lru_cache(maxsize=1)
def _dense(seed: int, epochs: int, learning_rate: float, texts: int):
    """LT-SFT's first phase: full fine-tuning; its weights and its run. Kept for the next rate of the same seed."""
    task = tasks.load(TASK)
    if texts != len(task.train):
        task = task.smaller(train=texts, validation=32, test=32)
    model, tokenizer = _model(task, seed)
    run = training.fit(model, tokenizer, task, "full", learning_rate=learning_rate, epochs=epochs, seed=seed)
    return {name: tensor.detach().cpu().clone() for name, tensor in model.encoder.state_dict().items()}, run


def _lottery_ticket(task, entry: Entry, spec: dict, folder):
    """Both phases of LT-SFT: everything is trained, the weights that moved most are chosen, and they alone are trained
    again from where they were. Each phase has the whole budget."""
    epochs = 1 if "timing" in spec else spec["epochs"]
    dense, first = _dense(spec["seed"], epochs, ENTRIES["full"].start, len(task.train))
    model, tokenizer = _model(task, spec["seed"])
    run = _fit(model, tokenizer, task, "lt_sft", spec, folder, hparams=entry.hparams | {"dense": dense})
    return _two_phases(first, run, run.trainable), model


def _diff_pruning(task, entry: Entry, spec: dict, folder):
    """Both phases of diff pruning within the common budget: two thirds with gates, one third on what was kept."""
    model, tokenizer = _model(task, spec["seed"])
    before, after = PHASES["diff_pruning"]
    parts = (None, None) if folder is None else (folder / "gates", folder / "kept")
    first = _fit(model, tokenizer, task, "diff_pruning", spec, parts[0], hparams=entry.hparams, epochs=before)
    model.encoder = sparse.prune(model.encoder)
    run = _fit(model, tokenizer, task, "lt_sft", spec, parts[1], epochs=after)
    return _two_phases(first, run, first.trainable), model


def _two_phases(first: Run, second: Run, trainable: int) -> Run:
    """The second phase's results, at the cost of both: their seconds added, the larger memory."""
    counted = max(first.counted_bytes, second.counted_bytes, key=lambda parts: sum(parts.values()))
    predicted = max(first.predicted_bytes, second.predicted_bytes, key=lambda parts: sum(parts.values()))
    return replace(
        second,
        trainable=trainable,
        seconds=first.seconds + second.seconds,
        counted_bytes=counted,
        predicted_bytes=predicted,
        losses=first.losses + second.losses,
        extra={"phase_seconds": [first.seconds, second.seconds]},
    )


def best_rate(log: RunLog, entry: str) -> float:
    """The learning rate of the entry, climbing from its start."""
    return climb(RATES, ENTRIES[entry].start, lambda rate: log.run(make_spec(entry, rate), train).best_validation)


def _possible(entry: str) -> bool:
    if ENTRIES[entry].method == "qlora" and find_spec("bitsandbytes") is None:
        print(f"{entry}: skipped, bitsandbytes is not installed here")
        return False
    return True


def compare(log: RunLog, entries: Iterable[str] = ENTRIES) -> None:
    """Every entry: its rate tuned, then every seed; says what it skips."""
    for entry in filter(_possible, entries):
        rate = best_rate(log, entry)
        for seed in SEEDS:
            log.run(make_spec(entry, rate, seed), train)


def small(log: RunLog) -> None:
    """BitFit and full fine-tuning on a few examples, others for each seed."""
    for entry in ("full", "bitfit"):
        rate = best_rate(log, entry)
        for seed in SEEDS:
            log.run(make_spec(entry, rate, seed, n_train=FEW), train)


def timing(log: RunLog, entries: Iterable[str] = ENTRIES) -> None:
    """The speed of every entry, on an otherwise idle machine."""
    for repeat in range(REPEATS):
        _dense.cache_clear()
        for entry in filter(_possible, entries):
            log.run(make_spec(entry, ENTRIES[entry].start, timing=repeat), train)


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    compare(log)
    small(log)
    timing(log)


def _plain(runs: list[Run], entry: str) -> list[Run]:
    return [run for run in select(runs, entry=entry) if not {"timing", "n_train"} & set(run.spec)]


def tuning(runs: list[Run], entry: str) -> dict[float, Run]:
    """Learning rate → the recorded run with seed 0, for every rate that the entry tried."""
    return tried(_plain(runs, entry))


def tuned(runs: list[Run], entry: str) -> list[Run]:
    """The recorded runs of an entry at its tuned rate, one a seed, in order; empty where a seed is missing."""
    return of_best_rate(_plain(runs, entry))


def on_few(runs: list[Run], entry: str) -> list[Run]:
    """The recorded runs of an entry on the few examples, in the order of seeds."""
    return sorted(select(runs, entry=entry, n_train=FEW), key=lambda run: run.spec["seed"])


def recorded(runs: list[Run]) -> dict[str, list[Run]]:
    """Entry → its tuned runs, for the entries that were recorded with every seed."""
    found = {entry: tuned(runs, entry) for entry in ENTRIES}
    return {entry: chosen for entry, chosen in found.items() if chosen}


def at_edge(run: Run) -> bool:
    """Whether a run's rate is the smallest or largest of the grid: a wider one might have held a better rate."""
    return run.spec["learning_rate"] in (RATES[0], RATES[-1])


def seconds(runs: list[Run], entry: str) -> np.ndarray:
    """Training seconds of the whole budget, one value a timing run, from the time that TIMED examples took; evaluation
    is left out. Empty where the entry was not timed."""
    timed = [run for run in select(runs, entry=entry) if "timing" in run.spec]
    passes = PHASES.get(ENTRIES[entry].method, (ENTRIES[entry].epochs,))
    once = [run.extra.get("phase_seconds", [run.seconds]) for run in sorted(timed, key=lambda run: run.spec["timing"])]
    return np.array([np.dot(phases, passes) for phases in once]) * len(tasks.load(TASK).train) / TIMED


def front(costs: dict[str, float], scores: dict[str, float]) -> list[str]:
    """The Pareto front: the names that no other beats in one of cost and score without losing in the other, cheapest
    first."""
    chosen: list[str] = []
    for name in sorted(costs, key=lambda name: (costs[name], -scores[name])):
        if not chosen or scores[name] > scores[chosen[-1]]:
            chosen.append(name)
    return chosen
