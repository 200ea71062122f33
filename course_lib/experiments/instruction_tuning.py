"""Instruction tuning of the course's language model: full and LoRA; how many examples, and of how many kinds of task;
what the loss sees; what is remembered, and what can be taught. Each run is judged on places, phrasings and kinds of
task that are new.

Every run sees as many examples, the same ones repeatedly where there are fewer. The learning rate is tuned on
validation with seed 0, by climbing one grid from a declared start; then come all seeds, each with its own draw of the
examples. Nothing is chosen on the test split.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from course_lib import models, tasks, training
from course_lib.claims import Interval
from course_lib.experiments import qlora_memory
from course_lib.experiments.steps import time_steps
from course_lib.experiments.tuning import RATES, SEEDS, climb
from course_lib.experiments.tuning import tuned as of_best_rate
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device
from course_lib.tasks import WritingTask
from course_lib.tasks import instructions as task_of
from course_lib.training.examples import Writing, chats

import numpy as np
import torch

TASK = "instructions"
# Examples that every run sees, and of how many different ones unless it says otherwise.
SEEN, SIZE = 4800, 1200
STEPS = {"batch_size": 8, "weight_decay": 0.0, "max_length": 384}
SIZES = (150, 300, 600, 1200, 2400, 4800)
KINDS = (2, 4, 8, 16, 24)
# Examples where kinds of task are compared, and twice as many.
FEW, MORE = 400, 800
# Made-up places that are taught, and how often each fact is asked for.
TAUGHT, TIMES = 60, 3
# Batches that the speed of packing is measured on, tokens of a packed row, and repetitions.
PACKED_EXAMPLES, PACKED_LENGTH, PACKED_ROUNDS = 96, 1024, 5


@dataclass(frozen=True)
class Setting:
    """A method with its hyper-parameters, the rate at which its tuning starts, and the examples that it learns from.

    kinds: so many kinds of task (None: all); taught: with facts that are new to the model; rate_of: the setting whose
    tuned rate it takes instead of one of its own.
    """

    title: str
    method: str
    start: float
    hparams: dict = field(default_factory=dict)
    size: int = SIZE
    kinds: int | None = None
    train_on_prompt: bool = False
    taught: bool = False
    rate_of: str | None = None


_LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
SETTINGS = {
    "full": Setting("Full fine-tuning", "full", 1e-3),
    "lora": Setting("LoRA, r = 8", "lora", 3e-3, _LORA),
    "full, prompts too": Setting("Full, loss on prompts too", "full", 1e-3, train_on_prompt=True),
    "full, taught": Setting("Full, with new facts", "full", 1e-3, taught=True, rate_of="full"),
}
SETTINGS |= {f"full, {n} examples": Setting(f"{n:,} examples", "full", 1e-3, size=n) for n in SIZES if n != SIZE}
SETTINGS |= {
    f"full, {k} kinds, {n} examples": Setting(
        f"{k} kinds, {n} examples", "full", 1e-3, size=n, kinds=k,
        rate_of=None if (k, n) == (KINDS[-1], FEW) else f"full, {KINDS[-1]} kinds, {FEW} examples",
    )
    for k, n in (*((k, FEW) for k in KINDS), (4, MORE))
}  # fmt: skip


def make_spec(setting: str, learning_rate: float, seed: int = 0) -> dict:
    """What a run is asked for, its hyper-parameters included."""
    chosen = SETTINGS[setting]
    return {
        "task": TASK, "setting": setting, "method": chosen.method, "hparams": chosen.hparams, "size": chosen.size,
        "kinds": chosen.kinds, "train_on_prompt": chosen.train_on_prompt, "taught": chosen.taught,
        "epochs": SEEN // chosen.size, "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip


def examples(spec: dict) -> WritingTask:
    """The task with the training examples of a spec, other ones for each seed."""
    task, seed, size = tasks.load(spec["task"]), spec["seed"], spec["size"]
    if spec["kinds"] is not None:
        kinds = random.Random(seed).sample(task_of.USUAL_KINDS, spec["kinds"])
        task = replace(task, train=task.train.where("kind", kinds), validation=task.validation.where("kind", kinds))
    if not spec["taught"]:
        return task.smaller(train=size, seed=seed)
    taught = task_of.teach(task, TAUGHT, TIMES)
    new = taught.train.where("split", [task_of.TAUGHT])
    return replace(taught, train=task.train.take(size - len(new), seed) + new)


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for; its `extra`: see `judged`. folder: see `training.fit`."""
    task = examples(spec)
    model, tokenizer = models.lm()
    run = training.fit(
        model.to(best_device()), tokenizer, task, spec["method"], folder=folder, hparams=spec["hparams"],
        epochs=spec["epochs"], learning_rate=spec["learning_rate"], train_on_prompt=spec["train_on_prompt"],
        seed=spec["seed"], **STEPS,
    )  # fmt: skip
    return judged(run, spec, task)


def judged(run: Run, spec: dict, task: WritingTask) -> Run:
    """The Run with what its answers are worth instead of the answers.

    Its `extra` gets hits (0 or 1 for each test row, by part of the test), rouge (ROUGE-L, for the new kinds of task)
    and said (about ten wrong answers: what was asked, what was right, what was said).
    """
    split, right = task.test, task_of.hits(run.predictions, task.test)
    rows = {part: [i for i, of in enumerate(split.info["split"]) if of == part] for part in set(split.info["split"])}
    new = split.rows(rows[task_of.NEW_KINDS])
    wrong = [i for i, hit in enumerate(right) if not hit][:: max(1, right.count(False) // 10)]
    run.extra |= {
        "hits": {part: [int(right[i]) for i in of] for part, of in rows.items()},
        "rouge": [round(f, 3) for f in task_of.rouge([run.predictions[i] for i in rows[task_of.NEW_KINDS]], new)],
        "said": [[split.texts[i], split.labels[i], run.predictions[i]] for i in wrong],
    }
    run.spec, run.predictions, run.labels = spec, [], []
    return run


def untuned(log: RunLog) -> None:
    """What the base model says, asked in the chat template or in plain text."""

    def ask(spec: dict, folder: Path | None = None) -> Run:
        task = tasks.load(TASK)
        model, tokenizer = models.lm()
        prompts = (
            chats(tokenizer, task.test.texts) if spec["untuned"] == "chat" else [f"{t}\n" for t in task.test.texts]
        )
        written = models.write(model.to(best_device()), tokenizer, prompts, max_new_tokens=60)
        none = {"losses": [], "trainable": 0, "seconds": 0.0, "tokens_per_second": 0.0, "predicted_bytes": {}}
        run = Run(spec=spec, peak_bytes=None, precision="fp32", predictions=written, **none)
        run.accuracy = task.metric(written, task.test)
        return judged(run, spec, task)

    for template in ("chat", "plain"):
        log.run({"task": TASK, "untuned": template, "seed": 0}, ask)


def best_rate(log: RunLog, setting: str) -> float:
    """The learning rate of the setting: its own, climbing from its start, or that of another one."""
    setting = SETTINGS[setting].rate_of or setting
    return climb(RATES, SETTINGS[setting].start, lambda rate: log.run(make_spec(setting, rate), train).best_validation)


def compare(log: RunLog, settings: Iterable[str] = SETTINGS) -> None:
    """Every setting: its rate tuned, then every seed."""
    for setting in settings:
        rate = best_rate(log, setting)
        for seed in SEEDS:
            log.run(make_spec(setting, rate, seed), train)


WAYS = ("padded", "grouped", "packed")


def batches(rows: Sequence[dict], way: str, collate) -> list[dict[str, torch.Tensor]]:
    """The rows as batches: eight a batch in any order (padded) or with others as long (grouped); or many in one row
    with positions that begin anew (packed)."""
    if way == "packed":
        return [packed(some) for some in _chunks(rows, PACKED_LENGTH)]
    ordered = sorted(rows, key=lambda row: len(row["input_ids"])) if way == "grouped" else rows
    size = STEPS["batch_size"]
    return [collate(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def _chunks(rows: Sequence[dict], length: int) -> list[list[dict]]:
    """The rows in their order, in groups of at most so many tokens."""
    groups, room = [], 0
    for row in rows:
        if len(row["input_ids"]) > room:
            groups.append([])
            room = length
        groups[-1].append(row)
        room -= len(row["input_ids"])
    return groups


def packed(rows: Sequence[dict]) -> dict[str, torch.Tensor]:
    """Rows as a single one, without padding: where positions begin anew, a model without cache takes it that a text
    begins. With `use_cache`, which is on by default, it does not look."""
    columns = {name: [i for row in rows for i in row[name]] for name in ("input_ids", "labels")}
    columns["position_ids"] = [i for row in rows for i in range(len(row["input_ids"]))]
    return {name: torch.tensor([column]) for name, column in columns.items()}


def pack(log: RunLog) -> None:
    """Time training on the same examples in every one of WAYS, on an otherwise idle machine."""

    def measure(spec: dict, folder: Path | None = None) -> Run:
        model, tokenizer = models.lm()
        model.lm.to(best_device()).train().config.use_cache = False
        rows = Writing(tokenizer, tasks.load(TASK).smaller(train=PACKED_EXAMPLES), STEPS["max_length"])
        made = {way: batches(rows.rows("train"), way, rows.collate) for way in WAYS}
        tokens = sum(len(row["input_ids"]) for row in rows.rows("train"))
        optimizer, seconds = torch.optim.AdamW(model.parameters(), lr=1e-6), {way: [] for way in WAYS}
        for _ in range(spec["rounds"]):
            # The ways take turns, so that a machine that becomes slower does so for all of them.
            for way, some in made.items():
                steps = [_on(batch, model.device) for batch in some]
                times = [sum(time_steps(model.lm, batch, optimizer, warmup=0, steps=1)[1]) for batch in steps]
                seconds[way].append(sum(times))
        held = {way: sum(batch["input_ids"].numel() for batch in some) for way, some in made.items()}
        none = {"losses": [], "trainable": 0, "predicted_bytes": {}, "peak_bytes": None}
        return Run(
            spec=spec, seconds=sum(map(sum, seconds.values())), precision="fp32", **none,
            tokens_per_second=tokens * spec["rounds"] / sum(seconds["padded"]),
            extra={"seconds": seconds, "tokens": tokens, "held": held},
        )  # fmt: skip

    log.run({"packing": PACKED_EXAMPLES, "length": PACKED_LENGTH, "rounds": PACKED_ROUNDS}, measure)


def _on(batch: dict, device) -> dict:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def large() -> list[dict]:
    """Specs of a training step at 1 and 8 billion parameters (see `qlora_memory`): the same 32 examples, as long as the
    instructions are times four, padded or packed."""
    tokenizer = models.lm()[1]
    task = tasks.load(TASK).smaller(train=32)
    lengths = [4 * len(row["input_ids"]) for row in Writing(tokenizer, task, STEPS["max_length"]).rows("train")]
    shape = {"method": "lora", "hparams": {"r": qlora_memory.RANK}, "checkpointing": True, "lengths": lengths}
    return [
        {"shape": size, **shape}
        | ({"batch_size": 1, "seq_len": sum(lengths)} if in_one else {"batch_size": 32, "seq_len": max(lengths)})
        for size, in_one in product(("1B", "8B"), (False, True))
    ]


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    untuned(log)
    compare(log)
    pack(log)
    qlora_memory.measure_all(log, large(), "instruction_tuning")


def tuned(runs: list[Run], setting: str) -> list[Run]:
    """The recorded runs of a setting at its tuned rate, one a seed, in order; empty where a seed is missing."""
    if SETTINGS[setting].rate_of is None:
        return of_best_rate(select(runs, setting=setting))
    found = sorted(select(runs, setting=setting), key=lambda run: run.spec["seed"])
    return found if [run.spec["seed"] for run in found] == list(SEEDS) else []


def exact(runs: Iterable[Run], part: str) -> np.ndarray:
    """Exact match of each run on one part of the test."""
    return np.array([np.mean(run.extra["hits"][part]) for run in runs])


def more_right(a: Sequence[Run], b: Sequence[Run], part: str) -> Interval:
    """By how many points of exact match the runs `a` are better than `b` on a part of the test: a 95% interval, paired
    by seed and by example."""
    return Interval.of_hits(*([run.extra["hits"][part] for run in runs] for runs in (a, b)))


def by_kind(
    runs: Iterable[Run], parts: Sequence[str] = (task_of.NEW_PLACES, task_of.NEW_KINDS)
) -> dict[str, np.ndarray]:
    """Kind of task → exact match of each run."""
    test, found = tasks.load(TASK).test, {}
    for part in parts:
        split = test.where("split", [part])
        rows = [task_of.by_kind(run.extra["hits"][part], split) for run in runs]
        found |= {kind: np.array([row[kind] for row in rows]) for kind in rows[0]}
    return found
