"""Checks of the exercises: each names the mistake it sees and gives a hint; none gives the answer away.

A check is a function decorated with @exercise that takes the reader's answer and calls `expect` in the order in
which a learner would want to hear of mistakes.
"""

from collections.abc import Callable
from functools import wraps


class Mistake(Exception):
    """What is wrong with an answer, and a hint."""


def expect(condition: bool, mistake: str, hint: str) -> None:
    """Raise Mistake with both sentences unless the condition is true."""
    if not condition:
        raise Mistake(f"{mistake}\n   Hint: {hint}")


def exercise(title: str) -> Callable:
    """Turn a function of expectations into a check that prints its verdict and returns whether it was right."""

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def check(answer=None, *context) -> bool:
            if answer is None or answer is Ellipsis:
                print(f"{title}: not answered yet. Replace the ... in the cell above, run it, and check again.")
                return False
            try:
                function(answer, *context)
            except Mistake as mistake:
                print(f"{title}: not yet. {mistake}")
                return False
            except Exception as error:
                print(f"{title}: your code raised {type(error).__name__}: {error}")
                return False
            print(f"{title}: right.")
            return True

        return check

    return decorate
