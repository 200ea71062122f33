"""Checks of the exercises: each names the mistake it sees and gives a hint; none gives the answer away.

A check is a function decorated with @exercise that takes the reader's function and calls `expect` in the order in
which a learner would want to hear of mistakes. What is solved in a notebook is remembered, see `course_lib.progress`.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import wraps

from course_lib import progress

import numpy as np
import torch

# Lesson, such as "05" → titles of its exercises.
EXERCISES: dict[str, list[str]] = {}


@dataclass(frozen=True)
class Verdict:
    """What a check says; true if the answer is right."""

    right: bool
    text: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.text


class Mistake(Exception):
    """What is wrong with an answer, and a hint."""


class Unanswered(Exception):
    """The `...` of the starter cell is still there."""


def expect(condition: bool, mistake: str, hint: str) -> None:
    """Raise Mistake with both sentences unless the condition is true."""
    if not condition:
        raise Mistake(f"{mistake}\n   Hint: {hint}")


class _Watched:
    """The reader's function; what it must never do is the same in every exercise."""

    def __init__(self, answer: Callable):
        self.answer, self.error = answer, None

    def __call__(self, *arguments):
        given = deepcopy(arguments)
        try:
            result = self.answer(*given)
        except Exception as error:
            self.error = error
            raise
        if result is ...:
            raise Unanswered
        expect(result is not None, "Your function returns nothing.", "Does its last line begin with return?")
        new = "Make new tensors and lists: masked_fill and not masked_fill_, a + b and not a += b or append."
        expect(_same(given, arguments), "Your function changes what it is given.", new)
        return result


def _same(a, b) -> bool:
    if isinstance(a, torch.Tensor | np.ndarray):
        return a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def exercise(title: str) -> Callable[[Callable], Callable[[Callable], Verdict]]:
    """Turn a function of expectations into a check that takes the reader's function and returns a Verdict."""

    def decorate(expectations: Callable) -> Callable[[Callable], Verdict]:
        lesson = expectations.__module__[-2:]
        EXERCISES.setdefault(lesson, []).append(title)

        @wraps(expectations)
        def check(answer: Callable) -> Verdict:
            watched = _Watched(answer)
            try:
                expectations(watched)
            except Unanswered:
                return Verdict(False, f"{title}: not answered yet. Replace the ... above and run the cell again.")
            except Mistake as mistake:
                return Verdict(False, f"{title}: not yet. {mistake}")
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                if error is watched.error:
                    return Verdict(False, f"{title}: your code raised {said}")
                kind = "Your function returns something of another kind than is asked for"
                return Verdict(False, f"{title}: not yet. {kind}, so that the check failed with {said}")
            # Functions of a notebook belong to __main__; the lesson's own solution is nobody's merit.
            theirs = getattr(answer, "__name__", "").endswith("_solution")
            if theirs or getattr(answer, "__module__", None) != "__main__":
                return Verdict(True, f"{title}: right.")
            progress.mark(lesson, title)
            return Verdict(True, f"{title}: right. {so_far(lesson)}")

        return check

    return decorate


def so_far(lesson: str) -> str:
    """How many of a lesson's exercises are solved, in words."""
    solved = progress.solved(lesson) & set(EXERCISES[lesson])
    return f"{len(solved)} of {len(EXERCISES[lesson])} solved."
