"""Checks of the exercises: each names the mistake it sees and gives a hint; none gives the answer away.

A check is a function decorated with @exercise that takes the reader's function and calls `expect` in the order in
which a learner would want to hear of mistakes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps


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


def _watched(answer: Callable) -> Callable:
    def call(*arguments):
        result = answer(*arguments)
        if result is ... or result is None:
            raise Unanswered
        return result

    return call


def exercise(title: str) -> Callable[[Callable], Callable[[Callable], Verdict]]:
    """Turn a function of expectations into a check that takes the reader's function and returns a Verdict."""

    def decorate(expectations: Callable) -> Callable[[Callable], Verdict]:
        @wraps(expectations)
        def check(answer: Callable) -> Verdict:
            try:
                expectations(_watched(answer))
            except Unanswered:
                return Verdict(False, f"{title}: not answered yet. Replace the ... above and run the cell again.")
            except Mistake as mistake:
                return Verdict(False, f"{title}: not yet. {mistake}")
            except Exception as error:
                return Verdict(False, f"{title}: your code raised {type(error).__name__}: {error}")
            return Verdict(True, f"{title}: right.")

        return check

    return decorate
