"""A check of an exercise says which of four things happened, and returns whether the answer was right."""

import pytest

from course_lib.check import Mistake, exercise, expect


@exercise("Exercise 1")
def counted(answer, total=10):
    """A check as the lessons write them."""
    expect(answer > 0, "The number is not positive.", "Count the weights once more.")
    expect(answer == total, "The biases are missing.", "A layer has one bias a row.")


@pytest.mark.parametrize("answer", [None, ...])
def test_not_answered(answer, capsys):
    assert counted(answer) is False
    assert capsys.readouterr().out.startswith("Exercise 1: not answered yet.")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (-1, "Exercise 1: not yet. The number is not positive.\n   Hint: Count the weights once more.\n"),
        (9, "Exercise 1: not yet. The biases are missing.\n   Hint: A layer has one bias a row.\n"),
    ],
)
def test_first_mistake_is_named_with_its_hint(answer, said, capsys):
    assert counted(answer) is False
    assert capsys.readouterr().out == said


def test_error_in_the_answer_is_reported(capsys):
    assert counted("ten") is False
    assert capsys.readouterr().out.startswith("Exercise 1: your code raised TypeError: '>' not supported")


def test_right(capsys):
    assert counted(10) is True
    assert counted(12, 12) is True
    assert capsys.readouterr().out == "Exercise 1: right.\n" * 2


def test_unanswered_is_not_zero(capsys):
    assert counted(0) is False
    assert "not positive" in capsys.readouterr().out


def test_check_keeps_the_name_and_the_text_of_its_function():
    assert counted.__name__ == "counted"
    assert counted.__doc__ == "A check as the lessons write them."


def test_expect():
    expect(True, "never", "seen")
    with pytest.raises(Mistake, match=r"^wrong\n   Hint: look$"):
        expect(False, "wrong", "look")
