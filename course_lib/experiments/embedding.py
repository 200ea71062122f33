"""Fine-tuning an encoder for search in documentation: with and without the Matryoshka loss, batch sizes, LoRA, a
network without pre-training; and what is lost elsewhere.

Every setting sees every pair once. Each tunes its learning rate on validation with seed 0, by climbing one grid from a
declared start, then runs with every seed. Nothing is chosen on the test split.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from course_lib import models, search, tasks, town, training
from course_lib.claims import Interval
from course_lib.experiments.tuning import RATES, SEEDS, climb
from course_lib.experiments.tuning import tuned as of_best_rate
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device
from course_lib.tasks import Pairs, docs_search

import numpy as np

TASK = "docs_search"
STEPS = {"epochs": 1, "weight_decay": 0.0, "max_length": search.MAX_LENGTH}
BATCHES = (8, 16, 32, 64, 128)
BATCH = 32
# Ranks beyond count for no measure.
WORST = 11
RESAMPLED = 2000
# Pairs of texts about one place, to search elsewhere.
ELSEWHERE = 300


@dataclass(frozen=True)
class Setting:
    """A method with its hyper-parameters, the rate at which its tuning starts, and how pairs are compared."""

    title: str
    method: str = "full"
    start: float = 1e-4
    hparams: dict = field(default_factory=dict)
    dimensions: tuple[int, ...] = docs_search.DIMENSIONS
    batch_size: int = BATCH
    pretrained: bool = True


SETTINGS = {
    "matryoshka": Setting("Full, Matryoshka"),
    "plain": Setting("Full, 384 dimensions alone", dimensions=(384,)),
    "lora": Setting("LoRA, r = 8", "lora", 1e-3, {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}),
    "random weights": Setting("Full, random weights", pretrained=False),
}
SETTINGS |= {f"batch {n}": Setting(f"Batches of {n}", batch_size=n) for n in BATCHES if n != BATCH}


def make_spec(setting: str, learning_rate: float, seed: int = 0) -> dict:
    """What a run is asked for, its hyper-parameters included."""
    chosen = SETTINGS[setting]
    return {
        "task": TASK, "setting": setting, "method": chosen.method, "hparams": chosen.hparams,
        "dimensions": list(chosen.dimensions), "batch_size": chosen.batch_size, "learning_rate": learning_rate,
        "seed": seed,
    }  # fmt: skip


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for; its `extra`: see `judged`. folder: see `training.fit`.

    The last of the Matryoshka runs is kept for `course search`.
    """
    model, tokenizer = models.embedder(spec["dimensions"], pretrained=SETTINGS[spec["setting"]].pretrained)
    run = training.fit(
        model.to(best_device()), tokenizer, tasks.load(TASK), spec["method"], folder=folder, hparams=spec["hparams"],
        batch_size=spec["batch_size"], learning_rate=spec["learning_rate"], seed=spec["seed"], **STEPS,
    )  # fmt: skip
    run.extra["ranks"] = np.minimum(run.predictions, WORST).tolist()
    if spec["setting"] == "matryoshka" and spec["seed"] == SEEDS[-1]:
        search.Index.build(model, tokenizer, tasks.load(TASK)).save()
    return judged(run, spec, model, tokenizer)


def judged(run: Run, spec: dict, model: models.Embedder, tokenizer) -> Run:
    """The Run without its texts, and with what the model is worth elsewhere: `town` (ranks, as `ranks` of the test) and
    `reviews` (accuracy of a linear head on frozen vectors)."""
    found = search.ranks(model, tokenizer, town_pairs())
    run.extra |= {"town": np.minimum(found, WORST).tolist(), "reviews": probe(model, tokenizer)}
    run.spec, run.predictions, run.labels = spec, [], []
    return run


def town_pairs() -> Pairs:
    """Opinions as queries, and guidebook entries about the same made-up places: names left out, facts shared."""
    draw = Random("embedding elsewhere")
    queries, passages = [], []
    for _ in range(ELSEWHERE):
        one = town.place(draw)
        topics = draw.sample(town.TOPICS, 5)
        for style, texts in (("opinion", queries), ("guide", passages)):
            texts.append(town.about(one, style, draw.sample(topics, len(topics)), draw).replace(one.name, "this place"))
    return Pairs(tuple(queries), tuple(passages))


def probe(model: models.Embedder, tokenizer) -> float:
    """Accuracy of logistic regression on the vectors of `reviews`, on its test split."""
    from sklearn.linear_model import LogisticRegression

    task = tasks.load("reviews")
    train, test = (search.vectors(model, tokenizer, split.texts) for split in (task.train, task.test))
    head = LogisticRegression(C=10.0, max_iter=1000).fit(train, task.train.labels)
    return float(head.score(test, task.test.labels))


def untuned(log: RunLog) -> None:
    """The encoder as it is."""

    def ask(spec: dict, folder: Path | None = None) -> Run:
        model, tokenizer = models.embedder()
        model.to(best_device())
        none = {"losses": [], "trainable": 0, "seconds": 0.0, "tokens_per_second": 0.0, "predicted_bytes": {}}
        run = Run(spec=spec, peak_bytes=None, precision="fp32", **none)
        run.extra["ranks"] = np.minimum(search.ranks(model, tokenizer, tasks.load(TASK).test), WORST).tolist()
        return judged(run, spec, model, tokenizer)

    log.run({"task": TASK, "untuned": True, "seed": 0}, ask)


def best_rate(log: RunLog, setting: str) -> float:
    """The learning rate of the setting, climbing from its start."""
    return climb(RATES, SETTINGS[setting].start, lambda rate: log.run(make_spec(setting, rate), train).best_validation)


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    untuned(log)
    for setting in SETTINGS:
        rate = best_rate(log, setting)
        for seed in SEEDS:
            log.run(make_spec(setting, rate, seed), train)


def tuned(runs: list[Run], setting: str) -> list[Run]:
    """The recorded runs of a setting at its tuned rate, one a seed, in order; empty where a seed is missing."""
    return of_best_rate(select(runs, setting=setting))


def scores(runs: Iterable[Run], size: int, where: str = "ranks") -> np.ndarray:
    """NDCG@10 of each run at one size of vectors; where: "ranks" (the test) or "town"."""
    at = docs_search.DIMENSIONS.index(size)
    return np.array([docs_search.ndcg(np.array(run.extra[where])[:, at]).mean() for run in runs])


def difference(a: Sequence[Run], b: Sequence[Run], size: int, where: str = "ranks") -> Interval:
    """By how many points of NDCG@10 the runs `a` are better than `b`, which may be one: a 95% interval over seeds and
    queries."""
    at = docs_search.DIMENSIONS.index(size)
    sides = [[docs_search.ndcg(np.array(run.extra[where])[:, at]) for run in runs] for runs in (a, b)]
    return Interval.of_hits(sides[0], sides[1] * len(sides[0]) if len(sides[1]) == 1 else sides[1])


def gain(a: Sequence[Run], b: Sequence[Run], size: int) -> Interval:
    """Relative gain of NDCG@10 of the runs `a` over `b`, 0.1 for a tenth: a bootstrap over seeds and queries, the 2.5th
    to the 97.5th percentile (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    at = docs_search.DIMENSIONS.index(size)
    new, old = (np.array([docs_search.ndcg(np.array(run.extra["ranks"])[:, at]) for run in runs]) for runs in (a, b))
    draw = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLED):
        queries = draw.integers(new.shape[1], size=new.shape[1])
        seeds = [draw.integers(len(side), size=len(side)) for side in (new, old)]
        found.append(new[seeds[0]][:, queries].mean() / old[seeds[1]][:, queries].mean() - 1)
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(float(low), float(new.mean() / old.mean() - 1), float(high))
