"""Instruction tuning of the course's language model: full and LoRA; how many examples, of how many kinds of task, how
often and how good; what the loss sees; what is remembered, and what can be taught. Each run is judged on places,
phrasings and kinds of task that are new.

Every run takes as many steps unless its setting says otherwise, with the same examples repeatedly where there are
fewer, and keeps the weights of the last one. The learning rate is tuned on validation with seed 0, by climbing one grid
from a declared start; then come all seeds, each with its own draw of the examples. Nothing is chosen on the test split.
"""

import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from course_lib import models, tasks, training
from course_lib.claims import Interval
from course_lib.experiments import qlora_memory
from course_lib.experiments.steps import time_steps
from course_lib.experiments.tuning import RATES, every_seed
from course_lib.experiments.tuning import tuned as of_best_rate
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device
from course_lib.tasks import Pairs, WritingTask
from course_lib.tasks import instructions as task_of
from course_lib.training.examples import Writing, chats

import numpy as np
import torch

TASK = "instructions"
# Examples that a run sees; usually all different.
SEEN = 4800
STEPS = {"batch_size": 8, "weight_decay": 0.0, "max_length": 384, "keep_last": True}
# Different examples among those that a run sees; the fewer the more often each.
SIZES = (300, 1200, SEEN)
# Enough to choose a rate by; answering takes as long as training.
VALIDATION = 120
# Sizes that are seen once as well.
ONCE = SIZES[:2]
KINDS = (2, 8, 24)
# Examples where kinds of task are compared.
FEW = 400
# Tokens of an answer that is asked for by hand, at most: twice as many as the longest right one has.
LONGEST = 60
# How often each fact is asked for where facts are taught, and the share of answers that are wrong where some are.
TIMES, WRONG = 12, 0.2
# Batches that the speed of packing is measured on, tokens of a packed row, and repetitions.
PACKED_EXAMPLES, PACKED_LENGTH, PACKED_ROUNDS = 96, 1024, 5


@dataclass(frozen=True)
class Setting:
    """A method with its hyper-parameters, the rate at which its tuning starts, and the examples that it learns from.

    epochs: None for as many as give the usual number of steps. kinds: so many kinds of task (None: all).
    new_kinds: the kinds that are else new are trained, too. by_heart: the part of the test whose facts some examples
    ask for. wrong: some answers belong to other examples of their kind. spaced: the chat template has a space before
    what is said. asked_otherwise: the tuned model is asked in other forms, too, see `train`. rate_of: the setting whose
    tuned rate it takes instead of one of its own; gentle: or the next lower rate.
    """

    title: str
    method: str = "full"
    start: float = 3e-4
    hparams: dict = field(default_factory=dict)
    size: int = SEEN
    epochs: int | None = None
    kinds: int | None = None
    train_on_prompt: bool = False
    new_kinds: bool = False
    by_heart: str | None = None
    wrong: bool = False
    pretrained: bool = True
    spaced: bool = True
    asked_otherwise: bool = False
    rate_of: str | None = None
    gentle: bool = False


_LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
SETTINGS = {
    "full": Setting("Full fine-tuning", asked_otherwise=True),
    "lora": Setting("LoRA, r = 8", "lora", 3e-3, _LORA, asked_otherwise=True),
    "full, gentle": Setting("Full, lower rate", asked_otherwise=True, rate_of="full", gentle=True),
    "full, longer": Setting(f"All {task_of.TRAIN:,} examples, twice", size=task_of.TRAIN, epochs=2, rate_of="full"),
    "full, all kinds": Setting("Full, all 29 kinds", new_kinds=True, rate_of="full"),
    "full, random weights": Setting("Full, random weights", start=1e-3, pretrained=False),
    "full, prompts too": Setting("Full, loss on prompts too", train_on_prompt=True),
    f"full, prompts too, {SIZES[0]} examples": Setting(
        f"The same, {SIZES[0]} examples", size=SIZES[0], train_on_prompt=True
    ),
    "full, wrong answers": Setting("Some answers wrong", wrong=True, rate_of="full"),
    "full, no space": Setting("No space in the template", spaced=False, rate_of="full"),
    "full, known facts": Setting("Full, known facts", by_heart=task_of.TOWN, rate_of="full"),
    "full, new facts": Setting("Full, new facts", by_heart=task_of.TAUGHT, rate_of="full"),
}
SETTINGS |= {f"full, {n} examples": Setting(f"{n:,} examples", size=n) for n in SIZES if n != SEEN}
SETTINGS |= {f"full, {n} examples once": Setting(f"{n:,} examples, once", size=n, epochs=1) for n in ONCE}
# With two kinds, validation has few rows, and easy ones would choose their rate by a tie.
SETTINGS |= {
    f"full, {k} kinds, {FEW} examples": Setting(f"{k} kinds, {FEW}", size=FEW, epochs=6, kinds=k, rate_of="full")
    for k in KINDS
}


def make_spec(setting: str, learning_rate: float, seed: int = 0) -> dict:
    """What a run is asked for, its hyper-parameters included."""
    chosen = SETTINGS[setting]
    if chosen.gentle:
        learning_rate = RATES[RATES.index(learning_rate) - 1]
    return {
        "task": TASK, "setting": setting, "method": chosen.method, "hparams": chosen.hparams, "size": chosen.size,
        "epochs": chosen.epochs or SEEN // chosen.size, "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip


def examples(spec: dict) -> WritingTask:
    """The task with the training examples of a spec, other ones for each seed. More kinds of task include the fewer."""
    seed, setting = spec["seed"], SETTINGS[spec["setting"]]
    task = tasks.load(spec["task"])
    if setting.kinds is not None:
        kinds = drawn_kinds(setting.kinds, seed)
        task = replace(task, train=task.train.where("kind", kinds), validation=task.validation.where("kind", kinds))
    task = task.smaller(validation=VALIDATION)
    if setting.by_heart is not None:
        facts = task_of.by_heart(setting.by_heart, TIMES)
        return replace(task, train=task.train.take(spec["size"] - len(facts), seed) + facts)
    if setting.new_kinds:
        # As many of each kind.
        share = spec["size"] * len(task_of.KEPT_KINDS) // len(task_of.KINDS)
        kept = task_of.of_new_kinds().take(share, seed)
        return replace(task, train=task.train.take(spec["size"] - share, seed) + kept)
    task = task.smaller(train=spec["size"], seed=seed)
    return replace(task, train=spoiled(task.train, seed)) if setting.wrong else task


def drawn_kinds(n: int, seed: int) -> list[str]:
    """So many of the usual kinds of task; more of them, with the same seed, are these and others."""
    return random.Random(seed).sample(task_of.USUAL_KINDS, len(task_of.USUAL_KINDS))[:n]


def spoiled(split: Pairs, seed: int) -> Pairs:
    """The split with the answers of some rows handed on to the next such row of their kind."""
    chosen = random.Random(seed).sample(range(len(split)), round(WRONG * len(split)))
    labels = list(split.labels)
    for kind in set(split.info["kind"]):
        rows = [i for i in chosen if split.info["kind"][i] == kind]
        for i, j in zip(rows, rows[1:] + rows[:1], strict=True):
            labels[i] = split.labels[j]
    return replace(split, labels=tuple(labels))


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for; its `extra`: see `judged`, and the hits of the tuned model where
    it is asked otherwise: unasked, on new places where the instruction is left out and the text alone is given;
    reading, on new kinds of task and on the town in the form of pre-training, see `asked` (form not counted).
    folder: see `training.fit`."""
    task, setting = examples(spec), SETTINGS[spec["setting"]]
    # On a CPU, in bf16, plain attention trained faster here than the fused kernel, whose backward pass is slow.
    model, tokenizer = models.lm(pretrained=setting.pretrained, seed=spec["seed"], attn_implementation="eager")
    if not setting.spaced:
        tokenizer.chat_template = tokenizer.chat_template.replace(" {{ message.content", "{{ message.content")
    run = training.fit(
        model.to(best_device()), tokenizer, task, setting.method, folder=folder, hparams=setting.hparams,
        epochs=spec["epochs"], learning_rate=spec["learning_rate"], train_on_prompt=setting.train_on_prompt,
        seed=spec["seed"], **STEPS,
    )  # fmt: skip
    run = judged(run, spec, task)
    if setting.asked_otherwise:
        run.extra |= _asked_otherwise(model, tokenizer, task.test)
    return run


def _asked_otherwise(model, tokenizer, test: Pairs) -> dict:
    def right(prompts: Sequence[str], rows: Pairs, hits) -> list[int]:
        return _ones(hits(models.write(model, tokenizer, prompts, max_new_tokens=LONGEST), rows))

    rows = with_text(test)
    reading = {part: test.where("split", [part]) for part in (task_of.NEW_KINDS, task_of.TOWN)}
    return {
        "unasked": right(chats(tokenizer, rows.info["context"]), rows, task_of.hits),
        "reading": {
            part: right(asked(tokenizer, "reading", rows), rows, task_of.loose_hits) for part, rows in reading.items()
        },
    }


def with_text(test: Pairs) -> Pairs:
    """The rows about new places whose instruction refers to a text."""
    new = test.where("split", [task_of.NEW_PLACES])
    return new.rows([i for i, text in enumerate(new.info["context"]) if text])


def _ones(hits: Sequence[bool]) -> list[int]:
    return [int(hit) for hit in hits]


def judged(run: Run, spec: dict, task: WritingTask) -> Run:
    """The Run with what its answers are worth instead of the answers.

    Its `extra` gets hits (0 or 1 for each test row, by part of the test), loose (the same by `loose_hits`), rouge
    (ROUGE-L, for the new kinds of task) and said (about ten wrong answers: what was asked, was right, was said).
    """
    split, answers = task.test, run.predictions
    parts: dict[str, list[int]] = {}
    for i, part in enumerate(split.info["split"]):
        parts.setdefault(part, []).append(i)
    right, loosely = task_of.hits(answers, split), task_of.loose_hits(answers, split)
    new = parts[task_of.NEW_KINDS]
    wrong = [i for i, hit in enumerate(right) if not hit]
    run.extra |= {
        "hits": {part: _ones([right[i] for i in rows]) for part, rows in parts.items()},
        "loose": {part: _ones([loosely[i] for i in rows]) for part, rows in parts.items()},
        "rouge": [round(f, 3) for f in task_of.rouge([answers[i] for i in new], split.rows(new))],
        "said": [[split.texts[i], split.labels[i], answers[i]] for i in wrong[:: max(1, len(wrong) // 10)]],
    }
    run.spec, run.predictions, run.labels = spec, [], []
    return run


def asked(tokenizer, way: str, split: Pairs) -> list[str]:
    """Prompts for a model. chat: in the template; plain: as they are; reading: as questions, with a text or without
    one, stand in what it was pre-trained on."""
    if way == "chat":
        return chats(tokenizer, split.texts)
    if way == "plain":
        return [f"{text}\n" for text in split.texts]
    texts = (f"Read\n{text}\n" if text else "" for text in split.info["context"])
    return [f"{text}Questions\nQ: {said}\nA:" for text, said in zip(texts, split.info["instruction"], strict=True)]


UNTUNED = ("chat", "plain", "reading")


def untuned(log: RunLog) -> None:
    """What the base model says, asked in each of the ways UNTUNED."""

    def ask(spec: dict, folder: Path | None = None) -> Run:
        task = tasks.load(TASK)
        model, tokenizer = models.lm()
        prompts = asked(tokenizer, spec["untuned"], task.test)
        written = models.write(model.to(best_device()), tokenizer, prompts, max_new_tokens=LONGEST)
        run = Run(spec=spec, precision="fp32", predictions=written)
        run.accuracy = task.metric(written, task.test)
        return judged(run, spec, task)

    for way in UNTUNED:
        log.run({"task": TASK, "untuned": way, "seed": 0}, ask)


def compare(log: RunLog, settings: Iterable[str] = SETTINGS) -> None:
    """Every setting: its rate tuned, then every seed."""
    every_seed(log, settings, sys.modules[__name__])


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
        for turn in range(1 + spec["rounds"]):
            # The ways take turns, so that a machine that becomes slower does so for all of them.
            for way, some in made.items():
                steps = [_on(batch, model.device) for batch in some]
                times = [sum(time_steps(model.lm, batch, optimizer, warmup=0, steps=1)[1]) for batch in steps]
                if turn:
                    # The first one warms up.
                    seconds[way].append(sum(times))
        held = {way: sum(batch["input_ids"].numel() for batch in some) for way, some in made.items()}
        return Run(
            spec=spec, seconds=sum(map(sum, seconds.values())), precision="fp32",
            tokens_per_second=tokens * spec["rounds"] / sum(seconds["padded"]),
            extra={"seconds": seconds, "tokens": tokens, "held": held},
        )  # fmt: skip

    log.run({"packing": PACKED_EXAMPLES, "length": PACKED_LENGTH, "rounds": PACKED_ROUNDS}, measure)


def _on(batch: dict, device) -> dict:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def large() -> list[dict]:
    """Specs of a training step at 1 and 8 billion parameters (see `qlora_memory`): the same 32 examples, as long as the
    instructions are times four, padded to the longest, or packed into rows of at most 4,096 tokens."""
    tokenizer = models.lm()[1]
    rows = Writing(tokenizer, tasks.load(TASK).smaller(train=32), STEPS["max_length"]).rows("train")
    one_each = [[4 * len(row["input_ids"])] for row in rows]
    in_one = [[4 * len(row["input_ids"]) for row in some] for some in _chunks(rows, 1024)]
    shape = {"method": "lora", "hparams": {"r": qlora_memory.RANK}, "checkpointing": True}
    return [
        {"shape": size, **shape, "texts": texts, "batch_size": len(texts), "seq_len": max(map(sum, texts))}
        for size, texts in product(("1B", "8B"), (one_each, in_one))
    ]


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    untuned(log)
    compare(log)
    pack(log)
    qlora_memory.measure_all(log, large(), "instruction_tuning")


def tuned(runs: list[Run], setting: str) -> list[Run]:
    """The recorded runs of a setting at its tuned rate, one a seed, in order; empty where a seed is missing."""
    return of_best_rate(select(runs, setting=setting))


def exact(runs: Iterable[Run], part: str, how: str = "hits") -> np.ndarray:
    """Share of right answers of each run on one part of the test; how: "hits" or "loose"."""
    return np.array([np.mean(run.extra[how][part]) for run in runs])


def either(runs: Iterable[Run], part: str, ways: Sequence[str] = ("loose", "reading")) -> list[list[int]]:
    """Of each run, for each question of a part of the test, whether it was right when asked in one of these ways."""
    return [np.max([run.extra[way][part] for way in ways], axis=0).tolist() for run in runs]


def more_right(a: Sequence[Run], b: Sequence[Run], part: str, how: str = "hits") -> Interval:
    """By how many points more answers of the runs `a` are right than of `b` on a part of the test: a 95% interval,
    paired by seed and by example. For the new kinds it is one over more examples of these very kinds."""
    return Interval.of_hits(*([run.extra[how][part] for run in runs] for runs in (a, b)))


def by_kind(
    runs: Iterable[Run], parts: Sequence[str] = (task_of.NEW_PLACES, task_of.NEW_KINDS), how: str = "hits"
) -> dict[str, np.ndarray]:
    """Kind of task → share of right answers of each run; how: "hits" or "loose"."""
    test, found = tasks.load(TASK).test, {}
    for part in parts:
        split = test.where("split", [part])
        rows = [task_of.by_kind(run.extra[how][part], split) for run in runs]
        found |= {kind: np.array([row[kind] for row in rows]) for kind in rows[0]}
    return found
