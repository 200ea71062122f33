"""A check of an exercise says which of four things happened, and its verdict is true only for a right answer."""

from course_lib.check import Mistake, Verdict, exercise, expect

import pytest


@exercise("Exercise 1")
def doubled(answer):
    """A check as the lessons write them."""
    expect(answer(3) > 0, "The number is not positive.", "Look at the sign.")
    expect(answer(3) == 6, "That is not twice the number.", "Try it with 3.")


def starter(x):
    y = ...
    return y


@pytest.mark.parametrize("answer", [starter, lambda x: None])
def test_not_answered(answer):
    verdict = doubled(answer)
    assert not verdict
    assert repr(verdict) == "Exercise 1: not answered yet. Replace the ... above and run the cell again."


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: -x, "Exercise 1: not yet. The number is not positive.\n   Hint: Look at the sign."),
        (lambda x: 0, "Exercise 1: not yet. The number is not positive.\n   Hint: Look at the sign."),
        (lambda x: x, "Exercise 1: not yet. That is not twice the number.\n   Hint: Try it with 3."),
    ],
)
def test_first_mistake_is_named_with_its_hint(answer, said):
    verdict = doubled(answer)
    assert not verdict
    assert repr(verdict) == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: x / 0, "ZeroDivisionError: division by zero"),
        (lambda: 6, "TypeError: "),
        (lambda x: "six", "TypeError: '>' not supported"),
    ],
)
def test_error_in_the_answer_is_reported(answer, said):
    verdict = doubled(answer)
    assert not verdict
    assert repr(verdict).startswith(f"Exercise 1: your code raised {said}")


def test_right():
    verdict = doubled(lambda x: 2 * x)
    assert verdict
    assert verdict == Verdict(True, "Exercise 1: right.")
    assert repr(verdict) == "Exercise 1: right."


def test_interruption_is_no_verdict():
    def stopped(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        doubled(stopped)


def test_check_keeps_the_name_and_the_text_of_its_function():
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "A check as the lessons write them.")


def test_expect():
    expect(True, "never", "seen")
    with pytest.raises(Mistake, match=r"^wrong\n   Hint: look$"):
        expect(False, "wrong", "look")
