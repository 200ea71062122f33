"""How much of a pre-trained model should move? Heads, last layers, everything; with controls and tuned rates.

Every approach that trains the encoder gets the same passes over the same data; heads on cached vectors get more
passes, which cost them nothing. Each tunes its learning rate on validation with seed 0 over its own declared grid,
then runs with every seed. Nothing is chosen on the test split.
"""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from course_lib import models, tasks, training
from course_lib.methods.shapes import block, blocks
from course_lib.runs import Run, RunLog, select
from course_lib.session import best_device

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SEEDS = (0, 1, 2, 3, 4)
# Passes over the training data of everything that trains the encoder: about 285 updates on either task.
EPOCHS = {"reviews": 3, "docs_topic": 9}


@dataclass(frozen=True)
class Approach:
    """One answer to the question: a method, its head, the learning rates that it may choose from, and what else
    differs from the common recipe."""

    title: str
    method: str
    rates: tuple[float, ...]
    head: str = "linear"
    cached: bool = False
    pretrained: bool = True
    recipe: dict = field(default_factory=dict)


HEAD_ONLY = {"epochs": 80, "patience": 15, "schedule": "constant", "warmup": 0}
APPROACHES = {
    "linear": Approach("Linear head", "feature_based", (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), cached=True, recipe=HEAD_ONLY),
    "mlp": Approach("MLP head", "feature_based", (3e-4, 1e-3, 3e-3, 1e-2), head="mlp", cached=True, recipe=HEAD_ONLY),
    "last_1": Approach(
        "Last layer", "last_layers", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), recipe={"hparams": {"num_layers": 1}}
    ),
    "last_3": Approach("Last 3 layers", "last_layers", (3e-5, 1e-4, 3e-4, 1e-3), recipe={"hparams": {"num_layers": 3}}),
    "gradual": Approach(
        "Gradual unfreezing",
        "full",
        (1e-4, 3e-4, 1e-3, 3e-3),
        recipe={"gradual_unfreezing": True, "layer_decay": 1 / 2.6},
    ),
    "full": Approach("Full fine-tuning", "full", (3e-5, 1e-4, 3e-4)),
    "random": Approach("Random weights, all trained", "full", (1e-4, 3e-4, 1e-3, 3e-3), pretrained=False),
}
# Full fine-tuning from harmless to destructive; the tuning rates lie between.
SWEEP = (1e-6, 1e-5, 1e-3)
# Size of the training set → passes over it, more of them where a pass has few updates.
CURVE = {32: 48, 128: 24, 512: 9}
# Passes over the data cost the same each time: this many examples tell the speed.
TIMED = 160
# What a spec of the comparison itself does not have.
PARTS = {"n_train", "timing", "uncached"}
REPEATS = 3


def make_spec(task: str, approach: str, learning_rate: float, seed: int = 0, **part) -> dict:
    """What a run is asked for, its recipe included: another recipe is another run.

    part: n_train (a smaller training set), timing (the number of a timing run), uncached (run the frozen encoder
    anew for every batch).
    """
    chosen = APPROACHES[approach]
    recipe = {"epochs": EPOCHS[task]} | chosen.recipe
    if part.get("uncached"):
        recipe = {"epochs": EPOCHS[task]}
    if "n_train" in part and not chosen.cached:
        recipe |= {"epochs": CURVE[part["n_train"]], "patience": CURVE[part["n_train"]] // 3}
    if "timing" in part and (part.get("uncached") or not chosen.cached) and not recipe.get("gradual_unfreezing"):
        # One pass costs what the next one does, except where more and more of the model is trained.
        recipe |= {"epochs": 1}
    return {"task": task, "approach": approach, "learning_rate": learning_rate, "seed": seed, "recipe": recipe, **part}


def train(spec: dict, folder: Path | None = None) -> Run:
    """The run that `spec` (see `make_spec`) asks for. folder: see `training.fit`.

    The Run's `extra` has, where it applies: encode_seconds (of the training texts, once for all heads), logistic
    (see `logistic_accuracy`), drift (see `drift`), typos (accuracy on the test split with typos), old_skill
    (see there).
    """
    approach, task, seed = APPROACHES[spec["approach"]], tasks.load(spec["task"]), spec["seed"]
    cached = approach.cached and not spec.get("uncached")
    if "n_train" in spec:
        # A reader with little training data has little validation data too.
        task = task.smaller(train=spec["n_train"], validation=min(spec["n_train"], 100), seed=seed)
    if "timing" in spec and not cached:
        task = task.smaller(train=TIMED, validation=32, test=32)
    model, tokenizer = models.classifier(
        len(task.labels), head=approach.head, pretrained=approach.pretrained, seed=seed
    )
    model.to(best_device())
    before = {name: p.detach().clone() for name, p in model.encoder.named_parameters()}
    extra, features = {}, None
    if cached:
        features, extra["encode_seconds"] = _features(model, tokenizer, task)
    run = training.fit(
        model, tokenizer, task, approach.method, features=features, folder=folder,
        learning_rate=spec["learning_rate"], seed=seed, **spec["recipe"],
    )  # fmt: skip
    if approach.method != "feature_based":
        extra["drift"] = drift(before, model.encoder)
    if spec["approach"] in ("linear", "full") and not PARTS & set(spec):
        noisy = [with_typos(text, random.Random(f"{seed} {i}")) for i, text in enumerate(task.test.texts)]
        extra["typos"] = task.metric(models.predict(model, tokenizer, noisy), task.test.labels)
        if task.name == "reviews" and (seed == 0 or not cached):
            extra["old_skill"] = old_skill(model, tokenizer)
        if features is not None and seed == 0:
            extra["logistic"] = logistic_accuracy(task, features)
    run.spec, run.extra = spec, extra
    return run


_vectors: dict[tuple, tuple[dict[str, torch.Tensor], float]] = {}


def _features(model, tokenizer, task) -> tuple[dict[str, torch.Tensor], float]:
    """The frozen encoder's vectors of the task, kept for the next head, and the seconds for the training texts."""
    key = (task.name, task.train.texts, len(task.validation))
    if key not in _vectors:
        _vectors.clear()
        started = time.perf_counter()
        models.embed(model, tokenizer, task.train.texts)
        seconds = time.perf_counter() - started
        _vectors[key] = training.features(model, tokenizer, task), seconds
    return _vectors[key]


def drift(before: dict[str, torch.Tensor], encoder) -> list[float]:
    """‖W − W₀‖ / ‖W₀‖ over all weights of each depth: the embeddings first, then block after block."""
    moved, size = np.zeros(blocks(encoder.config) + 1), np.zeros(blocks(encoder.config) + 1)
    for name, parameter in encoder.named_parameters():
        index = block(name)
        depth = 0 if index is None else index + 1
        moved[depth] += (parameter.detach() - before[name]).square().sum().item()
        size[depth] += before[name].square().sum().item()
    return np.sqrt(moved / size).tolist()


def old_skill(model, tokenizer) -> list[int]:
    """What is left of a skill that was not trained: 1 for each text of docs_topic's test split that a new linear probe
    on the model's vectors answers rightly, 0 for each other."""
    task = tasks.load("docs_topic")
    train, test = (models.embed(model, tokenizer, split.texts).numpy() for split in (task.train, task.test))
    probe = LogisticRegression(C=10, max_iter=2000).fit(train, task.train.labels)
    return (probe.predict(test) == task.test.labels).astype(int).tolist()


def with_typos(text: str, rng: random.Random, share: float = 0.15) -> str:
    """The text with two neighbouring letters swapped in about `share` of its words of four letters or more."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) >= 4 and rng.random() < share:
            at = rng.randrange(len(word) - 1)
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


# Inverse penalties that the two logistic regressions choose from, on validation.
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


def tfidf_accuracy(task: tasks.Task) -> float:
    """The control without pre-training: counts of words and word pairs, logistic regression; on the test split."""
    texts = {name: getattr(task, name).texts for name in ("train", "validation", "test")}
    return _logistic(lambda: TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), task, texts)


def logistic_accuracy(task: tasks.Task, features: dict[str, torch.Tensor]) -> float:
    """The same classifier on standardised frozen vectors: a linear head trained to the end; on the test split."""
    return _logistic(StandardScaler, task, {name: vectors.numpy() for name, vectors in features.items()})


def _logistic(first: Callable, task: tasks.Task, inputs: dict) -> float:
    fits = [make_pipeline(first(), LogisticRegression(C=c, max_iter=2000)) for c in PENALTIES]
    for fitted in fits:
        fitted.fit(inputs["train"], task.train.labels)
    best = max(fits, key=lambda fitted: fitted.score(inputs["validation"], task.validation.labels))
    return float(best.score(inputs["test"], task.test.labels))


def best_rate(log: RunLog, task: str, approach: str) -> float:
    """The rate of the approach's grid with the best validation accuracy (seed 0; the smaller one in a tie)."""
    rates = APPROACHES[approach].rates
    return _best([log.run(make_spec(task, approach, rate), train) for rate in rates]).spec["learning_rate"]


def compare(log: RunLog, task: str, approaches: Iterable[str] = APPROACHES) -> None:
    """Every approach on a task: its rate tuned, then every seed."""
    for approach in approaches:
        rate = best_rate(log, task, approach)
        for seed in SEEDS:
            log.run(make_spec(task, approach, rate, seed), train)


def curves(log: RunLog, task: str) -> None:
    """Heads against full fine-tuning on smaller training sets, a different one for each seed."""
    for n_train in (n for n in CURVE if n < len(tasks.load(task).train)):
        for approach in ("linear", "full"):
            rate = best_rate(log, task, approach)
            for seed in SEEDS:
                log.run(make_spec(task, approach, rate, seed, n_train=n_train), train)


def sweep(log: RunLog) -> None:
    """Full fine-tuning on reviews at rates from harmless to destructive."""
    for rate in SWEEP:
        log.run(make_spec("reviews", "full", rate), train)


def timing(log: RunLog, task: str) -> None:
    """The speed of every approach, on an otherwise idle machine; the frozen encoder with cached vectors and without."""
    for repeat in range(REPEATS):
        _vectors.clear()
        for approach in APPROACHES:
            rate = best_rate(log, task, approach)
            log.run(make_spec(task, approach, rate, timing=repeat), train)
            if approach == "linear":
                log.run(make_spec(task, approach, rate, timing=repeat, uncached=True), train)


def study(log: RunLog) -> None:
    """The whole study; what is in the log already is not run again."""
    for task in ("reviews", "docs_topic"):
        compare(log, task)
    for task in ("reviews", "docs_topic"):
        curves(log, task)
    sweep(log)
    for task in ("reviews", "docs_topic"):
        timing(log, task)


def tuned(runs: list[Run], task: str, approach: str) -> list[Run]:
    """The recorded runs of an approach at its tuned rate, one a seed, in order.

    Raises ValueError if the recording holds no complete set of seeds.
    """
    plain = [r for r in select(runs, task=task, approach=approach) if not PARTS & set(r.spec)]
    grid = [r for r in plain if r.spec["seed"] == 0 and r.spec["learning_rate"] in APPROACHES[approach].rates]
    rate = _best(grid).spec["learning_rate"] if grid else None
    chosen = sorted(select(plain, learning_rate=rate), key=lambda run: run.spec["seed"])
    if [run.spec["seed"] for run in chosen] != list(SEEDS):
        raise ValueError(
            f"{approach!r} on {task!r} is not recorded with all seeds. Run: course record full_vs_feature_based"
        )
    return chosen


def at_edge(run: Run) -> bool:
    """Whether a run's rate is the smallest or largest of its grid: a wider grid might have held a better one."""
    rates = APPROACHES[run.spec["approach"]].rates
    return run.spec["learning_rate"] in (min(rates), max(rates))


def on_fewer(runs: list[Run], task: str, approach: str, n_train: int) -> list[Run]:
    """The recorded runs of an approach on a smaller training set, in the order of seeds."""
    return sorted(select(runs, task=task, approach=approach, n_train=n_train), key=lambda run: run.spec["seed"])


def _best(runs: list[Run]) -> Run:
    """The run with the best validation accuracy; the smaller learning rate in a tie."""
    return max(runs, key=lambda run: (run.best_validation, -run.spec["learning_rate"]))


def seconds(runs: list[Run], task: str, approach: str, *, uncached: bool = False) -> dict[str, np.ndarray]:
    """Training seconds of an approach at its tuned rate, one value a timing run: "once" (encoding the training texts
    for all heads; 0 where the encoder trains) and "each" (a run: all passes over the training data).

    Evaluation is left out. Raises ValueError if the approach was not timed.
    """
    timed = [r for r in select(runs, task=task, approach=approach) if "timing" in r.spec]
    timed = [r for r in timed if r.spec.get("uncached", False) == uncached]
    if not timed:
        raise ValueError(f"{approach!r} on {task!r} was not timed. Run: course record full_vs_feature_based")
    timed.sort(key=lambda run: run.spec["timing"])
    if APPROACHES[approach].cached and not uncached:
        each = [run.seconds for run in timed]
    else:
        full = tuned(runs, task, "full")[0]
        each = [full.seconds * full.tokens_per_second / run.tokens_per_second for run in timed]
    return {"once": np.array([run.extra.get("encode_seconds", 0.0) for run in timed]), "each": np.array(each)}
