"""Fine-tuning an encoder for search in documentation: with and without the Matryoshka loss, LoRA, batch sizes, and
small batches whose gradients are added up; beside search by common words, both searches together, and vectors that are
turned before they are cut; on docstrings, and on questions in other words; and what is lost elsewhere.

Settings are compared on the same PAIRS pairs, each seen once, other ones for each seed. Each tunes its learning rate on
validation with seed 0 by climbing one grid from a declared start, then runs with every seed. The Matryoshka loss then
sees all pairs, at the rate that it was given with fewer. Nothing is chosen on the test split.
"""

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from random import Random

from course_lib import models, search, tasks, town, training
from course_lib.claims import Interval
from course_lib.experiments.tuning import SEEDS, best_rate, every_seed
from course_lib.experiments.tuning import tuned as of_best_rate
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device
from course_lib.tasks import Pairs, docs_search

import numpy as np

TASK = "docs_search"
STEPS = {"epochs": 1, "weight_decay": 0.0, "max_length": search.MAX_LENGTH}
BATCHES = (8, 32, 128)
BATCH = 32
# 60 steps of BATCH: a third of all.
PAIRS = 1920
# Ranks beyond count for no measure.
WORST = 101
RESAMPLED = 2000
# Pairs of texts about one place, to search elsewhere; facts that each tells beside its kind and district, and of
# these in both.
ELSEWHERE, FACTS, SHARED = 300, 5, 2
# Inverse strengths of regularization that the head on frozen vectors may have.
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
SIZES = len(docs_search.DIMENSIONS)
# What BM25's two constants may be: how soon a word's repetitions stop counting, how much long texts are held back.
BM25 = tuple(product((0.4, 0.8, 1.2, 2.0, 3.0), (0.25, 0.5, 0.75, 1.0)))
USUAL = 1.2, 0.75
# What search by words may weigh beside search by meaning.
WEIGHTS = (0.0, 0.25, 0.5, 0.75)
# Tokens of a text that the encoder could read; it was trained with search.MAX_LENGTH of them.
LONGER = 256


@dataclass(frozen=True)
class Setting:
    """A method with its hyper-parameters, the rate at which its tuning starts, and how pairs are compared; how many
    pairs it sees (None: all), and the setting whose tuned rate it takes instead of one of its own."""

    title: str
    method: str = "full"
    start: float = 1e-4
    hparams: dict = field(default_factory=dict)
    dimensions: tuple[int, ...] = docs_search.DIMENSIONS
    batch_size: int = BATCH
    gradient_accumulation: int = 1
    pairs: int | None = PAIRS
    rate_of: str | None = None


SETTINGS = {
    "matryoshka": Setting("Full, Matryoshka"),
    "plain": Setting("Full, 384 dimensions alone", dimensions=(384,)),
    "lora": Setting("LoRA, r = 8", "lora", 1e-3, {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}),
}
SETTINGS |= {f"batch {n}": Setting(f"Batches of {n}", batch_size=n) for n in BATCHES if n != BATCH}
# As many steps as with batches of 32, with the negatives of batches of 8.
SETTINGS["4 × 8"] = Setting("4 batches of 8 a step", batch_size=8, gradient_accumulation=4)
SETTINGS["all pairs"] = Setting("Full, Matryoshka, all pairs", pairs=None, rate_of="matryoshka")


def make_spec(setting: str, learning_rate: float, seed: int = 0) -> dict:
    """What a run is asked for, its hyper-parameters included."""
    chosen = SETTINGS[setting]
    return {
        "task": TASK, "setting": setting, "method": chosen.method, "hparams": chosen.hparams,
        "dimensions": list(chosen.dimensions), "batch_size": chosen.batch_size,
        "gradient_accumulation": chosen.gradient_accumulation, "pairs": chosen.pairs, "learning_rate": learning_rate,
        "seed": seed,
    }  # fmt: skip


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for; its `extra`: see `judged`. folder: see `training.fit`.

    The last run on all pairs is kept for `course search`.
    """
    model, tokenizer = models.embedder(spec["dimensions"])
    # `judged` looks at the whole test.
    task = tasks.load(TASK).smaller(train=spec["pairs"] or len(tasks.load(TASK).train), test=1, seed=spec["seed"])
    run = training.fit(
        model.to(best_device()), tokenizer, task, spec["method"], folder=folder, hparams=spec["hparams"],
        batch_size=spec["batch_size"], gradient_accumulation=spec["gradient_accumulation"],
        learning_rate=spec["learning_rate"], seed=spec["seed"], **STEPS,
    )  # fmt: skip
    if spec["pairs"] is None and spec["seed"] == SEEDS[-1]:
        search.Index.build(model, tokenizer, tasks.load(TASK)).save()
    run.extra["trained on"] = len(task.train)
    return judged(run, spec, model, tokenizer)


def judged(run: Run, spec: dict, model: models.Embedder, tokenizer, **options) -> Run:
    """The Run without its texts, and with what the model is worth.

    Its `extra` gets, for each size of vectors, ranks on the test (ranks; turned: see `search.turned`; hybrid: with
    common words, see `search.reciprocal`), of the answers to `questions` (asked; asked turned; asked hybrid; asked
    bodies: where summaries are not searched) and elsewhere (town); weights (of common words, by size, best on
    validation); reviews (hits of a linear head on frozen vectors, of the usual length); and what `origin` tells.
    options: of `search.vectors`.
    """

    def vectors(texts: Sequence[str]) -> np.ndarray:
        return search.vectors(model, tokenizer, texts, **options)

    test, validation = tasks.load(TASK).test, tasks.load(TASK).validation
    sides, chosen_on = ([vectors(split.texts), vectors(split.labels)] for split in (test, validation))
    asked, answers = questions()
    asked_sides = vectors(asked), vectors(search.whole_texts(test))
    of_test, of_questions, of_validation = by_words(*bm25_constants())
    weights = docs_search.ndcg(_hybrid(chosen_on, of_validation, [WEIGHTS] * SIZES)).mean(1).argmax(0)
    best = [[WEIGHTS[i]] for i in weights]
    found = {
        "ranks": docs_search.ranks(*sides),
        "turned": docs_search.ranks(*search.turned(*sides)),
        "hybrid": _hybrid(sides, of_test, best)[0],
        "asked": docs_search.ranks(*asked_sides, answers=answers),
        "asked turned": docs_search.ranks(*search.turned(*asked_sides), answers=answers),
        "asked hybrid": _hybrid(asked_sides, of_questions, best, answers)[0],
        "asked bodies": docs_search.ranks(asked_sides[0], sides[1], answers=answers),
        "town": search.ranks(model, tokenizer, town_pairs(), **options),
    }
    run.extra |= {name: np.minimum(ranks, WORST).tolist() for name, ranks in found.items()}
    run.extra |= {"weights": [WEIGHTS[i] for i in weights], "reviews": probe(model, tokenizer), **origin()}
    run.accuracy = float(docs_search.ndcg(found["ranks"][:, 0]).mean())
    run.spec, run.predictions, run.labels = spec, [], []
    return run


def _hybrid(
    sides: Sequence[np.ndarray], words: np.ndarray, weights: Sequence[Sequence[float]],
    answers: Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Ranks of search by meaning together with search by words, for the weights of words that each of the sizes is to
    be tried with, equally many: (weights, queries, sizes)."""
    by_words = search.reciprocal(words)

    def fused(size: int, weight: float) -> np.ndarray:
        def both(scores):
            return (1 - weight) * search.reciprocal(scores) + weight * by_words

        return docs_search.ranks(*sides, (size,), answers, both)[:, 0]

    of_sizes = zip(docs_search.DIMENSIONS, weights, strict=True)
    return np.array([[fused(size, weight) for weight in tried] for size, tried in of_sizes]).transpose(1, 2, 0)


def questions() -> tuple[list[str], list[int]]:
    """The questions in other words whose answer is in the test split, and the row of each."""
    rows = {name: i for i, name in enumerate(tasks.load(TASK).test.info["name"])}
    found = {question: rows[name] for question, name in docs_search.questions().items() if name in rows}
    return list(found), list(found.values())


def town_pairs() -> Pairs:
    """Opinions as queries, and guidebook entries about the same made-up places: each tells kind, district, and FACTS
    more facts (owner, street, …), of which SHARED are in both, in other sentences; neither tells the place's name."""
    draw = Random("embedding elsewhere")
    queries, passages = [], []
    for _ in range(ELSEWHERE):
        one = town.place(draw)
        topics = draw.sample(town.TOPICS, 2 * FACTS - SHARED)
        shared, own = topics[:SHARED], (topics[SHARED:FACTS], topics[FACTS:])
        for style, texts, more in zip(("opinion", "guide"), (queries, passages), own, strict=True):
            told = draw.sample(shared + more, FACTS)
            texts.append(town.about(one, style, told, draw).replace(one.name, "this place"))
    return Pairs(tuple(queries), tuple(passages))


def origin() -> dict:
    """What the queries of the test and the questions in other words come from: of each the package, as a number; of the
    former also the family of modules, and whether the package is in no training. queries: a digest of them all."""
    info, (asked, answers) = tasks.load(TASK).test.info, questions()
    package = _numbered(info["package"])
    return {
        "family": _numbered(info["family"]), "package": package, "asked package": [package[row] for row in answers],
        "unseen": [int(package in docs_search.UNSEEN) for package in info["package"]],
        "queries": hashlib.sha256("\n".join([*info["name"], *asked]).encode()).hexdigest(),
    }  # fmt: skip


def _numbered(names: Sequence[str]) -> list[int]:
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def probe(model: models.Embedder, tokenizer) -> list[int]:
    """Whether logistic regression on the vectors of `reviews` is right about each text of its test split; how strongly
    it is regularized is chosen on validation, since tuning changes how far vectors lie apart."""
    from sklearn.linear_model import LogisticRegression

    task = tasks.load("reviews")
    splits = (task.train, task.validation, task.test)
    train, validation, test = (search.vectors(model, tokenizer, split.texts) for split in splits)
    heads = [LogisticRegression(C=c, max_iter=1000).fit(train, task.train.labels) for c in STRENGTHS]
    best = max(heads, key=lambda head: head.score(validation, task.validation.labels))
    return (best.predict(test) == task.test.labels).astype(int).tolist()


def untuned(log: RunLog) -> None:
    """The encoder as it is; also where it reads more of each text."""

    def ask(spec: dict, folder: Path | None = None) -> Run:
        model, tokenizer = models.embedder()
        model.to(best_device())
        run = Run(spec=spec, precision="bf16 autocast" if training.native_bf16() else "fp32")
        return judged(run, spec, model, tokenizer, max_length=spec["untuned"])

    for length in (search.MAX_LENGTH, LONGER):
        log.run({"task": TASK, "untuned": length, "seed": 0}, ask)


@cache
def bm25_constants() -> tuple[float, float]:
    """Those of BM25 that are best on validation, by NDCG@10."""
    validation = tasks.load(TASK).validation

    def worth(constants: tuple[float, float]) -> float:
        k1, b = constants
        return float(docs_search.ndcg(search.lexical_ranks(validation, k1=k1, b=b)).mean())

    return max(BM25, key=worth)


@cache
def by_words(k1: float, b: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BM25's scores, with these constants, of the test's queries, of the questions in other words, and of validation,
    (queries, passages)."""
    test, validation = tasks.load(TASK).test, tasks.load(TASK).validation
    sides = (
        (test.texts, test.labels), (questions()[0], search.whole_texts(test)), (validation.texts, validation.labels)
    )  # fmt: skip
    return tuple(search.bm25(*side, k1=k1, b=b) for side in sides)


def lexical(log: RunLog) -> None:
    """Search by words in common, with constants tuned on validation and with the usual ones."""

    def ask(spec: dict, folder: Path | None = None) -> Run:
        k1, b = USUAL if spec["lexical"] == "usual" else bm25_constants()
        docstrings, asked, _ = by_words(k1, b)
        found = {"ranks": docs_search.places(docstrings, range(len(docstrings)))}
        found["asked"] = docs_search.places(asked, questions()[1])
        found["town"] = search.lexical_ranks(town_pairs(), k1=k1, b=b)
        # The same at all sizes: there are no vectors to be cut.
        extra = {
            name: np.repeat(np.minimum(ranks, WORST)[:, None], SIZES, axis=1).tolist() for name, ranks in found.items()
        }
        return Run(spec=spec, precision="fp32", extra=extra | {"k1": k1, "b": b, **origin()})

    for constants in ("BM25", "usual"):
        log.run({"task": TASK, "lexical": constants, "seed": 0}, ask)


def compare(log: RunLog, settings: Iterable[str] = SETTINGS) -> None:
    """What settings are held against; then every setting: its rate tuned, then every seed."""
    for baseline in log.order([untuned, lexical]):
        baseline(log)
    every_seed(log, settings, sys.modules[__name__])


def accumulated(log: RunLog) -> None:
    """4 × 8 also at the rate of batches of 32: the wrong answers are then all that differs."""
    rate = best_rate(log, "matryoshka", sys.modules[__name__])
    for seed in log.order(SEEDS):
        log.run(make_spec("4 × 8", rate, seed), train)


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    compare(log)
    accumulated(log)


def tuned(runs: list[Run], setting: str) -> list[Run]:
    """The recorded runs of a setting at its tuned rate, one a seed, in order; empty where a seed is missing."""
    return of_best_rate(select(runs, setting=setting))


def at_one_rate(runs: list[Run]) -> list[Run]:
    """The recorded runs of `accumulated`, one a seed, in order; empty where a seed is missing."""
    rates = {run.spec["learning_rate"] for run in tuned(runs, "matryoshka")}
    found = [run for run in select(runs, setting="4 × 8") if run.spec["learning_rate"] in rates]
    found.sort(key=lambda run: run.spec["seed"])
    return found if [run.spec["seed"] for run in found] == list(SEEDS) else []


def _ndcg(runs: Iterable[Run], size: int, where: str) -> np.ndarray:
    """(runs, queries)."""
    at = docs_search.DIMENSIONS.index(size)
    return np.array([docs_search.ndcg(np.array(run.extra[where])[:, at]) for run in runs])


def scores(runs: Iterable[Run], size: int, where: str = "ranks", unseen: bool | None = None) -> np.ndarray:
    """NDCG@10 of each run at one size of vectors; where: "ranks", "turned" or "hybrid" (the test), "asked", "asked
    turned", "asked hybrid" or "asked bodies" (questions in other words), or "town"; unseen: of the test, only queries
    about packages that training has seen, or only about those that it has not."""
    runs = list(runs)
    found = _ndcg(runs, size, where)
    chosen = slice(None) if unseen is None else np.array(runs[0].extra["unseen"]) == unseen
    return found[:, chosen].mean(1)


def _groups(run: Run, where: str, by: str) -> np.ndarray:
    """The number of each query's group: its family of modules or its package, where it asks for a docstring; its
    package, where it asks in other words; in the town each query is its own."""
    if where == "town":
        return np.arange(len(run.extra["town"]))
    return np.unique(run.extra["asked package" if "asked" in where else by], return_inverse=True)[1]


def _resampled(
    a: Sequence[Run], b: Sequence[Run], size: int, where: str, unseen: bool | None = None, of_b: str | None = None,
    by: str = "family", size_of_b: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean NDCG@10 of `a` and of `b` in RESAMPLED draws of seeds and of groups of queries that are like each other, see
    `_groups`; by: "family" or "package"; of_b, size_of_b: where to look with `b`, and at which size, if elsewhere.
    Raises ValueError if they were tested on different queries."""
    if len({run.extra["queries"] for run in (*a, *b)}) > 1:
        raise ValueError("These runs were not tested on the same queries: their packages had other versions.")
    new, old = (_spread(_ndcg(*side)) for side in ((a, size, where), (b, size_of_b or size, of_b or where)))
    groups = _groups(a[0], where, by)
    if unseen is not None:
        chosen = np.array(a[0].extra["unseen"]) == unseen
        new, old, groups = new[:, chosen], old[:, chosen], np.unique(groups[chosen], return_inverse=True)[1]
    draw, count = np.random.default_rng(0), groups.max() + 1
    # How often each group, and each seed, is drawn.
    drawn = draw.multinomial(count, np.full(count, 1 / count), size=RESAMPLED)
    seeds = draw.multinomial(len(new), np.full(len(new), 1 / len(new)), size=RESAMPLED)
    # Runs of one seed belong together, where there are as many on both sides.
    others = seeds if len(old) == len(new) else draw.multinomial(len(old), np.full(len(old), 1 / len(old)), RESAMPLED)

    def means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        sums = np.array([np.bincount(groups, row) for row in values])
        return (drawn @ sums.T * weights).sum(1) / weights.sum(1) / (drawn @ np.bincount(groups))

    return means(new, seeds), means(old, others)


def _spread(values: np.ndarray) -> np.ndarray:
    """The runs' values, (runs, queries), with as much more distance from their mean as drawing few runs anew loses: the
    variance of n drawn from n is too small by (n − 1) / n."""
    n, mean = len(values), values.mean(0)
    return mean + (values - mean) * (n / (n - 1)) ** 0.5 if n > 1 else values


def _interval(draws: np.ndarray, value: float) -> Interval:
    """The 2.5th to the 97.5th percentile (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(low), value, float(high))


def difference(
    a: Sequence[Run], b: Sequence[Run], size: int, where: str = "ranks", of_b: str | None = None,
    size_of_b: int | None = None,
) -> Interval:  # fmt: skip
    """By how many points of NDCG@10 the runs `a` are better than `b`, which may be one; where, of_b, size_of_b: see
    `scores` and `_resampled`."""
    new, old = _resampled(a, b, size, where, of_b=of_b, size_of_b=size_of_b)
    ahead = scores(a, size, where).mean() - scores(b, size_of_b or size, of_b or where).mean()
    return _interval(100 * (new - old), 100 * float(ahead))


def gain(a: Sequence[Run], b: Sequence[Run], size: int, unseen: bool | None = None, by: str = "family") -> Interval:
    """Relative gain in NDCG@10 of the runs `a` over `b`, which may be one: 0.1 for a tenth; unseen: see `scores`;
    by: the groups that are drawn anew, "family" of modules or "package"."""
    new, old = _resampled(a, b, size, "ranks", unseen, by=by)
    means = [scores(runs, size, unseen=unseen).mean() for runs in (a, b)]
    return _interval(new / old - 1, float(means[0] / means[1] - 1))


def more_at(
    a: Sequence[Run], b: Sequence[Run], small: int, large: int, where: str = "ranks", of_b: str | None = None
) -> Interval:
    """By how many points of NDCG@10 more the runs `a` gain over `b` at a small size than at a large one; where, of_b:
    see `difference`."""
    sides = [_resampled(a, b, size, where, of_b=of_b) for size in (small, large)]
    value = difference(a, b, small, where, of_b).value - difference(a, b, large, where, of_b).value
    (new, old), (new_large, old_large) = sides
    return _interval(100 * ((new - old) - (new_large - old_large)), value)


def more_closed(
    a: Sequence[Run], b: Sequence[Run], small: int, large: int, where: str = "ranks", of_b: str | None = None
) -> Interval:
    """The same in points of the gap to the best possible: what the runs `a` gain over `b`, divided by what `b` lacks to
    an NDCG@10 of 1. A low start leaves more to gain."""

    def closed(new, old):
        return 100 * (new - old) / (1 - old)

    sides = ((a, where), (b, of_b or where))
    draws = [closed(*_resampled(a, b, size, where, of_b=of_b)) for size in (small, large)]
    means = [closed(*(scores(runs, size, here).mean() for runs, here in sides)) for size in (small, large)]
    return _interval(draws[0] - draws[1], float(means[0] - means[1]))
