"""Fine-tuning an encoder for search in documentation: with and without the Matryoshka loss, LoRA, batch sizes, and
small batches whose gradients are added up; beside search by common words; and what is lost elsewhere.

Every setting sees every pair once. Each tunes its learning rate on validation with seed 0, by climbing one grid from a
declared start, then runs with every seed. Nothing is chosen on the test split.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from course_lib import models, search, tasks, town, training
from course_lib.claims import Interval
from course_lib.experiments.tuning import RATES, SEEDS, climb, every_seed
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
    gradient_accumulation: int = 1


SETTINGS = {
    "matryoshka": Setting("Full, Matryoshka"),
    "plain": Setting("Full, 384 dimensions alone", dimensions=(384,)),
    "lora": Setting("LoRA, r = 8", "lora", 1e-3, {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}),
}
SETTINGS |= {f"batch {n}": Setting(f"Batches of {n}", batch_size=n) for n in BATCHES if n != BATCH}
# As many steps as with batches of 128 and of 32, with the negatives of smaller ones.
SETTINGS |= {
    f"{times} × {n}": Setting(f"{times} batches of {n} a step", batch_size=n, gradient_accumulation=times)
    for times, n in ((4, 32), (4, 8))
}


def make_spec(setting: str, learning_rate: float, seed: int = 0) -> dict:
    """What a run is asked for, its hyper-parameters included."""
    chosen = SETTINGS[setting]
    return {
        "task": TASK, "setting": setting, "method": chosen.method, "hparams": chosen.hparams,
        "dimensions": list(chosen.dimensions), "batch_size": chosen.batch_size,
        "gradient_accumulation": chosen.gradient_accumulation, "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for; its `extra`: see `judged`. folder: see `training.fit`.

    The last of the Matryoshka runs is kept for `course search`.
    """
    model, tokenizer = models.embedder(spec["dimensions"])
    run = training.fit(
        model.to(best_device()), tokenizer, tasks.load(TASK), spec["method"], folder=folder, hparams=spec["hparams"],
        batch_size=spec["batch_size"], gradient_accumulation=spec["gradient_accumulation"],
        learning_rate=spec["learning_rate"], seed=spec["seed"], **STEPS,
    )  # fmt: skip
    run.extra["ranks"] = np.minimum(run.predictions, WORST).tolist()
    if spec["setting"] == "matryoshka" and spec["seed"] == SEEDS[-1]:
        search.Index.build(model, tokenizer, tasks.load(TASK)).save()
    return judged(run, spec, model, tokenizer)


def judged(run: Run, spec: dict, model: models.Embedder, tokenizer) -> Run:
    """The Run without its texts, and with what the model is worth elsewhere: `town` (ranks, as `ranks` of the test) and
    `reviews` (hits of a linear head on frozen vectors). module and unseen tell of each query of the test where it is
    from: a number for each module, and whether its package is in no training."""
    found = search.ranks(model, tokenizer, town_pairs())
    run.extra |= {"town": np.minimum(found, WORST).tolist(), "reviews": probe(model, tokenizer), **origin()}
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


def origin() -> dict[str, list[int]]:
    """The module of each query of the test, as a number, and whether its package is in no training."""
    info = tasks.load(TASK).test.info
    numbers = {module: i for i, module in enumerate(dict.fromkeys(info["module"]))}
    return {
        "module": [numbers[module] for module in info["module"]],
        "unseen": [int(package in docs_search.UNSEEN) for package in info["package"]],
    }


def probe(model: models.Embedder, tokenizer) -> list[int]:
    """Whether logistic regression on the vectors of `reviews` is right about each text of its test split."""
    from sklearn.linear_model import LogisticRegression

    task = tasks.load("reviews")
    train, test = (search.vectors(model, tokenizer, split.texts) for split in (task.train, task.test))
    head = LogisticRegression(C=10.0, max_iter=1000).fit(train, task.train.labels)
    return (head.predict(test) == task.test.labels).astype(int).tolist()


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


def lexical(log: RunLog) -> None:
    """Search by words in common."""

    def ask(spec: dict, folder: Path | None = None) -> Run:
        none = {"losses": [], "trainable": 0, "seconds": 0.0, "tokens_per_second": 0.0, "predicted_bytes": {}}
        found = np.minimum(search.lexical_ranks(tasks.load(TASK).test), WORST)
        # The same at all sizes: there are no vectors to be cut.
        ranks = np.repeat(found[:, None], len(docs_search.DIMENSIONS), axis=1).tolist()
        return Run(spec=spec, peak_bytes=None, precision="fp32", extra={"ranks": ranks, **origin()}, **none)

    log.run({"task": TASK, "lexical": "TF-IDF", "seed": 0}, ask)


def best_rate(log: RunLog, setting: str) -> float:
    """The learning rate of the setting, climbing from its start."""
    return climb(RATES, SETTINGS[setting].start, lambda rate: log.run(make_spec(setting, rate), train).best_validation)


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    untuned(log)
    lexical(log)
    every_seed(log, SETTINGS, sys.modules[__name__])


def tuned(runs: list[Run], setting: str) -> list[Run]:
    """The recorded runs of a setting at its tuned rate, one a seed, in order; empty where a seed is missing."""
    return of_best_rate(select(runs, setting=setting))


def _ndcg(runs: Iterable[Run], size: int, where: str) -> np.ndarray:
    """(runs, queries)."""
    at = docs_search.DIMENSIONS.index(size)
    return np.array([docs_search.ndcg(np.array(run.extra[where])[:, at]) for run in runs])


def scores(runs: Iterable[Run], size: int, where: str = "ranks", unseen: bool | None = None) -> np.ndarray:
    """NDCG@10 of each run at one size of vectors; where: "ranks" (the test) or "town"; unseen: only queries about
    packages that training has seen, or only about those that it has not."""
    runs = list(runs)
    found = _ndcg(runs, size, where)
    chosen = slice(None) if unseen is None else np.array(runs[0].extra["unseen"]) == unseen
    return found[:, chosen].mean(1)


def _resampled(a: Sequence[Run], b: Sequence[Run], size: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean NDCG@10 of `a` and of `b` in RESAMPLED draws of seeds and of modules, whose queries are like each other
    (of "town": of queries). Raises ValueError if they were tested on different queries."""
    if len({tuple(run.extra["module"]) for run in (*a, *b)}) > 1:
        raise ValueError("These runs were not tested on the same queries: their packages had other versions.")
    new, old = _ndcg(a, size, where), _ndcg(b, size, where)
    modules = np.array(a[0].extra["module"]) if where == "ranks" else np.arange(new.shape[1])
    draw, count = np.random.default_rng(0), modules.max() + 1
    # How often each module, and each seed, is drawn.
    drawn = draw.multinomial(count, np.full(count, 1 / count), size=RESAMPLED)
    seeds = draw.multinomial(len(new), np.full(len(new), 1 / len(new)), size=RESAMPLED)
    # Runs of one seed belong together, where there are as many on both sides.
    others = seeds if len(old) == len(new) else draw.multinomial(len(old), np.full(len(old), 1 / len(old)), RESAMPLED)

    def means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        sums = np.array([np.bincount(modules, row) for row in values])
        return (drawn @ sums.T * weights).sum(1) / weights.sum(1) / (drawn @ np.bincount(modules))

    return means(new, seeds), means(old, others)


def _interval(draws: np.ndarray, value: float) -> Interval:
    """The 2.5th to the 97.5th percentile (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(low), value, float(high))


def difference(a: Sequence[Run], b: Sequence[Run], size: int, where: str = "ranks") -> Interval:
    """By how many points of NDCG@10 the runs `a` are better than `b`, which may be one."""
    new, old = _resampled(a, b, size, where)
    return _interval(100 * (new - old), 100 * float(_ndcg(a, size, where).mean() - _ndcg(b, size, where).mean()))


def gain(a: Sequence[Run], b: Sequence[Run], size: int) -> Interval:
    """Relative gain in NDCG@10 of the runs `a` over `b`, which may be one: 0.1 for a tenth."""
    new, old = _resampled(a, b, size, "ranks")
    return _interval(new / old - 1, float(_ndcg(a, size, "ranks").mean() / _ndcg(b, size, "ranks").mean() - 1))


def more_at(a: Sequence[Run], b: Sequence[Run], small: int, large: int) -> Interval:
    """By how many points of NDCG@10 more the runs `a` gain over `b` at a small size than at a large one."""
    sides = [_resampled(a, b, size, "ranks") for size in (small, large)]
    value = difference(a, b, small).value - difference(a, b, large).value
    (new, old), (new_large, old_large) = sides
    return _interval(100 * ((new - old) - (new_large - old_large)), value)
