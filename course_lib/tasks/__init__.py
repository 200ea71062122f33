"""Tasks: what is learned, to label texts, to write them, or to find them. Each has three splits and a metric."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module

from course_lib.errors import unknown

import numpy as np

TASKS = ("reviews", "docs_topic", "table_to_text", "text_to_table", "instructions", "docs_search")


@dataclass(frozen=True)
class Split:
    """Texts with their labels (indices into `Task.labels`); `info` holds further columns by name.

    A plain pair of columns, so that a training machine without the `datasets` package can use it too.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    info: dict[str, tuple] = field(default_factory=dict)

    def __post_init__(self):
        for name, column in {"labels": self.labels, **self.info}.items():
            if len(column) != len(self.texts):
                raise ValueError(f"column {name!r} has {len(column)} rows, texts have {len(self.texts)}")

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, indices: Sequence[int]) -> "Split":
        """The rows at `indices`, in that order."""

        def pick(column):
            return tuple(column[i] for i in indices)

        return type(self)(pick(self.texts), pick(self.labels), {k: pick(v) for k, v in self.info.items()})

    def __add__(self, other: "Split") -> "Split":
        """The rows of both, which have the same columns."""
        info = {name: column + other.info[name] for name, column in self.info.items()}
        return type(self)(self.texts + other.texts, self.labels + other.labels, info)

    def where(self, column: str, values: Sequence) -> "Split":
        """The rows that have one of these values in a column of `info`."""
        return self.rows([i for i, value in enumerate(self.info[column]) if value in values])

    def _check_room(self, n: int) -> None:
        if not 1 <= n <= len(self):
            raise ValueError(f"n must be between 1 and {len(self)}, the rows of this split; got {n}.")

    def take(self, n: int, seed: int = 0) -> "Split":
        """`n` rows, drawn with `seed`, with as equal a number of each label as n and the rarest label allow.

        Raises ValueError if there are fewer than n rows.
        """
        self._check_room(n)
        if n == len(self):
            return self
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        by_label = {label: [i for i in order if self.labels[i] == label] for label in sorted(set(self.labels))}
        # Round robin over the labels: the first n rows are balanced until the rarest label runs out.
        ranked = sorted((rank, label, i) for label, rows in by_label.items() for rank, i in enumerate(rows))
        return self.rows([i for _, _, i in ranked[:n]])

    def as_dataset(self):
        """The same rows as a `datasets.Dataset` with columns text, label and those of `info`."""
        from datasets import Dataset

        return Dataset.from_dict(
            {"text": list(self.texts), "label": list(self.labels)} | {k: list(v) for k, v in self.info.items()}
        )


def accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Share of equal entries."""
    return float(np.mean(np.asarray(predicted) == np.asarray(labels)))


@dataclass(frozen=True)
class Task:
    """What is learned: texts to labels, in three splits that share nothing that would help to cheat."""

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    metric: Callable[[Sequence[int], Sequence[int]], float] = accuracy

    def baseline(self) -> float:
        """The metric of the dummy that always answers the most frequent training label, on the test split."""
        majority = Counter(self.train.labels).most_common(1)[0][0]
        return self.metric([majority] * len(self.test), self.test.labels)

    def smaller(
        self,
        *,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> "Task":
        """The task with fewer rows in the splits that are named, drawn with `seed`."""

        def cut(split, n):
            return split if n is None else split.take(min(n, len(split)), seed)

        parts = (cut(self.train, train), cut(self.validation, validation), cut(self.test, test))
        return replace(self, **dict(zip(("train", "validation", "test"), parts, strict=True)))


@dataclass(frozen=True)
class Pairs(Split):
    """Prompts (`texts`) with what should be written after them (`labels`, texts too)."""

    labels: tuple[str, ...]

    def take(self, n: int, seed: int = 0) -> "Pairs":
        """`n` rows, drawn with `seed`; raises ValueError if there are fewer."""
        self._check_room(n)
        return self.rows(np.random.default_rng(seed).permutation(len(self))[:n].tolist())

    def as_dataset(self):
        """The same rows as a `datasets.Dataset` with columns prompt, completion and those of `info`."""
        return super().as_dataset().rename_columns({"text": "prompt", "label": "completion"})


@dataclass(frozen=True)
class WritingTask:
    """What is learned: to write a text after a prompt, in three splits that share nothing that would help to cheat.

    metric(written texts, split) → a score, greater is better; dummy(split) → texts written without any model.
    chat: whether a prompt is what a user says, and the text the assistant's answer, so that the chat template goes
    around them.
    """

    name: str
    train: Pairs
    validation: Pairs
    test: Pairs
    metric: Callable[[Sequence[str], Pairs], float]
    dummy: Callable[[Pairs], list[str]]
    chat: bool = False

    def baseline(self) -> float:
        """The metric of the dummy on the test split."""
        return self.metric(self.dummy(self.test), self.test)

    smaller = Task.smaller


@dataclass(frozen=True)
class SearchTask:
    """What is learned: to find for each query (`texts`) its own passage (`labels`) among all passages of the split."""

    name: str
    train: Pairs
    validation: Pairs
    test: Pairs

    smaller = Task.smaller


def load(name: str) -> Task | WritingTask | SearchTask:
    """The task of that name; raises ValueError with the near names for any other."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return import_module(f"course_lib.tasks.{name}").load()
