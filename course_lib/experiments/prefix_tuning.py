"""Steering a frozen language model: prefixes, soft prompts and P-tuning of several lengths, LoRA with as many
parameters, on tables to text; how they start; how much data and time they want; what prompting alone does.

Every setting gets the same passes over the same tables unless it says otherwise. Each tunes its learning rate on
validation with seed 0, by climbing one common grid from a declared start (those that train longer take the rate of the
usual length), then runs with every seed. Nothing is chosen on the test split.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from course_lib import models, tasks, training
from course_lib.claims import Interval
from course_lib.experiments import qlora_memory
from course_lib.experiments.tuning import RATES, SEEDS, every_seed, tried
from course_lib.experiments.tuning import tuned as of_best_rate
from course_lib.methods import METHODS
from course_lib.methods.prompts import start_from_text
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device
from course_lib.tasks import table_to_text

import numpy as np
import torch
from torch.utils.benchmark import Timer

TASK = "table_to_text"
# 150 steps on half of the tables; twice as many are all of them.
TRAIN, ALL, EPOCHS = table_to_text.TRAIN // 2, table_to_text.TRAIN, 1
# Enough to choose a rate and an epoch by; writing takes longer than training.
VALIDATION = 100
# Nearly as many optimizer steps (156, and 150) from a twelfth of the tables.
FEW, FEW_EPOCHS = 100, 12
# Weight decay pulls towards zero, which means "as before" for LoRA alone.
STEPS = {"batch_size": 8, "weight_decay": 0.0, "max_length": 192}
GRID = (*RATES, 3e-1, 1.0, 3.0)
LENGTHS = (1, 7, 14, 28, 56)
LENGTH = 14
# The length at which a soft prompt has exactly as many parameters as a prefix of LENGTH; and those of P-tuning.
EQUAL_PROMPT = 84
PROMPT_LENGTHS, P_TUNING_LENGTHS = (1, LENGTH, EQUAL_PROMPT), (LENGTH, 56)
# The rank whose LoRA on queries and values has exactly as many parameters as a prefix of that length.
LORA_RANKS = {7: 2, 14: 4, 28: 8}
# More would not stand within the length of text that the model was pre-trained on.
SHOTS = (0, 1, 3)
# What vectors start from: the task in words, or words that have nothing to do with it.
WORDS = (
    "This is what the table says about the place, told in whole sentences, with every name and every number as it "
    "stands there. Nothing is left out and nothing is added. First comes what the place is and what it is called, then "
    "all the rest of the table in its order."
)
OTHER_WORDS = (
    "On rainy days the children of the harbour watch the gulls from the window and count the boats that come home, "
    "until somebody calls them to supper and the lamps are lit."
)
# Generated tokens, and repetitions, when speed is measured.
SERVED_TOKENS, SERVED_ROUNDS = 16, 30


@dataclass(frozen=True)
class Setting:
    """A method with its hyper-parameters, the rate at which its tuning starts, and what may be unusual: the text that
    its vectors start from (None: as the library draws them), whether random numbers as large as that text's take their
    place, how many tables it gets, how often, and the setting whose tuned rate it takes instead of one of its own."""

    title: str
    method: str
    start: float
    hparams: dict = field(default_factory=dict)
    words: str | None = None
    random: bool = False
    tables: int = TRAIN
    epochs: int = EPOCHS
    rate_of: str | None = None


def _virtual(length: int, **more) -> dict:
    return {"num_virtual_tokens": length} | more


def _rank(r: int, targets: Sequence[str] | str = ("q_proj", "v_proj")) -> dict:
    return {"r": r, "lora_alpha": 2 * r, "target_modules": targets if isinstance(targets, str) else list(targets)}


FULL = {"full": Setting("Full fine-tuning", "full", 1e-3)}
# Prefix and prompt start from the same words: before the first step they are the same model.
BY_LENGTH = (
    {f"prefix, m={m}": Setting(f"Prefix, m = {m}", "prefix_tuning", 1e-1, _virtual(m), WORDS) for m in LENGTHS}
    | {f"prompt, m={m}": Setting(f"Prompt, m = {m}", "prompt_tuning", 1e-1, _virtual(m), WORDS) for m in PROMPT_LENGTHS}
    | {f"p-tuning, m={m}": Setting(f"P-tuning, m = {m}", "p_tuning", 3e-3, _virtual(m)) for m in P_TUNING_LENGTHS}
    | {f"lora, as m={m}": Setting(f"LoRA, r = {r}", "lora", 1e-2, _rank(r)) for m, r in LORA_RANKS.items()}
    | {"lora, all linear": Setting("LoRA, all linear, r = 16", "lora", 3e-3, _rank(16, "all-linear"))}
)
_PROJECTED = _virtual(LENGTH, prefix_projection=True, encoder_hidden_size=512)
STARTS = {
    "prefix, other words": Setting("Prefix, other words", "prefix_tuning", 1e-1, _virtual(LENGTH), OTHER_WORDS),
    "prefix, random": Setting("Prefix, random", "prefix_tuning", 1e-1, _virtual(LENGTH), WORDS, random=True),
    "prefix, projected": Setting("Prefix, projected", "prefix_tuning", 3e-3, _PROJECTED),
}
# Entries of the tables above, with other data or more time.
FEW_OF = ("full", f"prefix, m={LENGTH}", "prefix, random")
LONG_OF = ("full", f"lora, as m={LENGTH}", f"prefix, m={LENGTH}")
_USUAL = FULL | BY_LENGTH | STARTS
FEW_TABLES = {f"{name}, few": replace(_USUAL[name], tables=FEW, epochs=FEW_EPOCHS) for name in FEW_OF}
LONG = {f"{name}, long": replace(_USUAL[name], tables=ALL, rate_of=name) for name in LONG_OF}
SETTINGS = _USUAL | FEW_TABLES | LONG


def make_spec(setting: str, learning_rate: float, seed: int = 0) -> dict:
    """What a run is asked for, its hyper-parameters included."""
    chosen = SETTINGS[setting]
    return {
        "task": TASK, "setting": setting, "method": chosen.method, "hparams": chosen.hparams, "words": chosen.words,
        "random": chosen.random, "tables": chosen.tables, "epochs": chosen.epochs, "learning_rate": learning_rate,
        "seed": seed,
    }  # fmt: skip


def fresh(setting: str, seed: int = 0) -> tuple[models.LanguageModel, object]:
    """The language model, which carries the setting's vectors already if these start in an unusual way; tokenizer."""
    chosen = SETTINGS[setting]
    model, tokenizer = models.lm()
    if chosen.words is not None:
        model.lm = METHODS[chosen.method].apply(model.lm, **chosen.hparams)
        start_from_text(model.lm, tokenizer, chosen.words)
    if chosen.random:
        vectors = model.lm.prompt_encoder["default"].embedding.weight.data
        draw = torch.Generator().manual_seed(seed)
        # Each entry as large as it is among the words'.
        vectors.copy_(vectors.square().mean(0).sqrt() * torch.randn(vectors.shape, generator=draw))
    return model, tokenizer


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for; its `extra`: see `judged`. folder: see `training.fit`."""
    task = tasks.load(spec["task"])
    # A few tables are other ones for each seed: which they are matters.
    task = task.smaller(train=spec["tables"], seed=spec["seed"] if spec["tables"] == FEW else 0)
    task = task.smaller(validation=VALIDATION)
    model, tokenizer = fresh(spec["setting"], spec["seed"])
    run = training.fit(
        model.to(best_device()), tokenizer, task, spec["method"], folder=folder, hparams=spec["hparams"],
        epochs=spec["epochs"], learning_rate=spec["learning_rate"], seed=spec["seed"], **STEPS,
    )  # fmt: skip
    return judged(run, spec)


def judged(run: Run, spec: dict) -> Run:
    """The Run with what its texts are worth instead of the texts.

    Its `extra` gets errors (slot errors of each test text), bleu, and written (the first three texts).
    """
    split = tasks.load(spec["task"]).test
    run.extra |= {
        "errors": [table_to_text.errors(*pair) for pair in zip(split.info["table"], run.predictions, strict=True)],
        "bleu": table_to_text.bleu(run.predictions, split),
        "written": run.predictions[:3],
    }
    run.spec, run.predictions, run.labels = spec, [], []
    return run


def prompt_with_shots(task, shots: int, seed: int) -> list[str]:
    """Test prompts behind some tables with their texts, other ones for each seed."""
    shown = task.train.take(shots, seed) if shots else task.train.rows([])
    head = "".join(f"{table}{text}\n\n" for table, text in zip(shown.texts, shown.labels, strict=True))
    return [head + prompt for prompt in task.test.texts]


def show(spec: dict, folder: Path | None = None) -> Run:
    """What the model writes untuned, with spec["shots"] examples in its context. folder: not used."""
    task = tasks.load(spec["task"])
    model, tokenizer = models.lm()
    model.to(best_device())
    prompts = [spec.get("told", "") + prompt for prompt in prompt_with_shots(task, spec["shots"], spec["seed"])]
    written = models.write(model, tokenizer, prompts)
    if spec["shots"]:
        # Shown examples, it may go on with another one.
        written = [text.split("\n\n")[0] for text in written]
    run = Run(spec=spec, precision="fp32", predictions=written)
    run.accuracy = task.metric(written, task.test)
    return judged(run, spec)


def compare(log: RunLog, settings: Iterable[str] = SETTINGS) -> None:
    """Every setting: its rate tuned, then every seed."""
    every_seed(log, settings, sys.modules[__name__], GRID)


def prompting(log: RunLog) -> None:
    """The untuned model, shown no example or a few, or told in words what to do."""
    for shots in SHOTS:
        for seed in SEEDS if shots else SEEDS[:1]:
            log.run({"task": TASK, "shots": shots, "seed": seed}, show)
    log.run({"task": TASK, "told": f"{WORDS}\n", "shots": 0, "seed": 0}, show)


def serve(log: RunLog) -> None:
    """Time the model's forms while they write after one table, on an otherwise idle machine."""

    def measure(spec: dict, folder: Path | None = None) -> Run:
        prompt = models.lm()[1](tasks.load(TASK).test.texts[0], return_tensors="pt")["input_ids"].to(best_device())
        forms, seconds = served(), {}
        timers = {(what, n): _timer(form, prompt, n) for what, form in forms.items() for n in (1, 1 + SERVED_TOKENS)}
        for _ in range(spec["rounds"]):
            # The forms take turns, so that a machine that becomes slower does so for all of them.
            turn = {key: timer.timeit(1).mean for key, timer in timers.items()}
            for what in forms:
                first, all_of = turn[what, 1], turn[what, 1 + SERVED_TOKENS]
                seconds.setdefault(what, []).append([first, (all_of - first) / SERVED_TOKENS])
        base = float(np.mean([each for _, each in seconds["base model"]]))
        return Run(spec=spec, seconds=base, tokens_per_second=1 / base, precision="fp32", extra={"seconds": seconds})

    log.run({"serving": SERVED_TOKENS, "rounds": SERVED_ROUNDS}, measure)


def _timer(form, prompt, tokens: int) -> Timer:
    def write():
        form.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, min_new_tokens=tokens,
            max_new_tokens=tokens,
        )  # fmt: skip

    return Timer("write()", globals={"write": write}, num_threads=torch.get_num_threads())


def served() -> dict:
    """The language model in the forms in which it can be served."""
    forms = {"base model": ("full", {}), "LoRA, unmerged": ("lora", _rank(4))}
    forms |= {f"prefix, m={m}": ("prefix_tuning", _virtual(m)) for m in (LENGTH, 10 * LENGTH)}
    forms |= {f"prompt, m={m}": ("prompt_tuning", _virtual(m)) for m in (LENGTH, 10 * LENGTH)}
    return {
        what: METHODS[method].apply(models.lm()[0].lm, **hparams).to(best_device()).eval()
        for what, (method, hparams) in forms.items()
    }


def large() -> list[dict]:
    """Specs of a training step at 1 and 8 billion parameters (see `qlora_memory`): prefixes and prompts beside LoRA.

    Prefixes do not go with checkpointing in peft, so LoRA is measured with and without it.
    """
    ways = [("prefix_tuning", _virtual(20)), ("prefix_tuning", _virtual(200)), ("prompt_tuning", _virtual(20))]
    ways += [("lora", _rank(r)) for r in (8, 16)]
    return [
        {
            "shape": shape, "method": method, "hparams": hparams, "checkpointing": checkpointing, "batch_size": 4,
            "seq_len": 512,
        }
        for shape, (method, hparams), checkpointing in product(("1B", "8B"), ways, (False, True))
        if method == "lora" or not checkpointing
    ]  # fmt: skip


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    prompting(log)
    compare(log)
    serve(log)
    qlora_memory.measure_all(log, large(), "prefix_tuning")


def at_rates(runs: list[Run], setting: str) -> dict[float, Run]:
    """Learning rate → the recorded run with seed 0, for every rate that the setting tried."""
    return tried(select(runs, setting=setting))


def tuned(runs: list[Run], setting: str) -> list[Run]:
    """The recorded runs of a setting at its tuned rate, one a seed, in order; empty where a seed is missing."""
    return of_best_rate(select(runs, setting=setting))


def rate(setting: str, recorded: dict[str, list[Run]]) -> float:
    """The rate that was tuned on the first device where the setting is recorded; where none is, that of its start."""
    groups = [group for log in recorded.values() if (group := tuned(log, setting))]
    return groups[0][0].spec["learning_rate"] if groups else SETTINGS[setting].start


def shown(runs: list[Run], shots: int) -> list[Run]:
    """The recorded runs of the untuned model with so many examples, in the order of seeds."""
    found = [run for run in select(runs, shots=shots) if "told" not in run.spec]
    return sorted(found, key=lambda run: run.spec["seed"])


def slot_error_rates(runs: Iterable[Run], kind: str | None = None) -> np.ndarray:
    """Slot error rate of each run on the test split, or on one kind of its tables."""
    split = tasks.load(TASK).test
    rows = [i for i, found in enumerate(split.info["kind"]) if kind in (None, found)]
    slots = sum(len(split.info["table"][i]) for i in rows)
    return np.array([sum(run.extra["errors"][i] for i in rows) / slots for run in runs])


def fewer_errors(a: Sequence[Run], b: Sequence[Run]) -> Interval:
    """By how many points the slot error rate of the runs `a` lies below that of `b`: a 95% interval, paired by seed and
    by text."""
    slots = np.mean([len(table) for table in tasks.load(TASK).test.info["table"]])

    def right(runs: Sequence[Run]) -> list[list[float]]:
        return [[1 - found / slots for found in run.extra["errors"]] for run in runs]

    return Interval.of_hits(right(a), right(b))
