"""Checks for lesson 06: conversations as text, labels of many turns, ROUGE-L, packing, the loss of DPO."""

import math
from collections.abc import Callable, Sequence

from course_lib.check import exercise, expect

import torch

Turns = Sequence[tuple[str, str]]


@exercise("Exercise 1")
def render(answer: Callable[..., str]) -> None:
    """answer(turns, open_turn) → the conversation as one text."""
    talk = [("user", "Is it open?"), ("assistant", "Yes."), ("user", "Until when?")]
    wanted = "<user> Is it open?<end><assistant> Yes.<end><user> Until when?<end>"
    got = answer(talk, False)
    hint = "For each turn: <role>, a space, the text, <end>; nothing between turns."
    expect(isinstance(got, str), "A text is asked for.", "Join the turns.")
    expect(got != wanted.replace("> ", ">"), "The space before the text is missing.", hint)
    expect("\n" not in got and "> <" not in got, "There is something between the turns.", hint)
    expect(got != wanted.removesuffix("<end>"), "The last turn has no end.", hint)
    expect(got.count("<end>") != 1, "Only one turn ends.", "Every turn ends with <end>.")
    expect(got != wanted + "<assistant>", "It opens the assistant's turn without being asked to.", "Look at open_turn.")
    expect(got == wanted, f"Expected another text than {got!r}.", hint)
    got = answer([("system", "Be brief."), ("user", "Hi.")], False)
    expect(
        got == "<system> Be brief.<end><user> Hi.<end>",
        f"A system's turn in front: not {got!r}.",
        "Each turn says its own role.",
    )
    got = answer(talk, True)
    expect(got != wanted, "open_turn=True changes nothing.", "The model is to go on behind <assistant>.")
    expect(not got.endswith("<assistant><end>"), "The turn that is opened must not end.", "No <end> behind it.")
    expect(got == wanted + "<assistant>", f"With open_turn=True expected another text than {got!r}.", hint)
    expect(answer([], True) == "<assistant>", "Without turns there is still the one that is opened.", hint)


@exercise("Exercise 2")
def labels_of(answer: Callable[[Sequence[tuple[str, Sequence[int]]]], Sequence[int]]) -> None:
    """answer(turns) → the labels of the whole conversation."""
    talk = [("user", [3, 11, 1]), ("assistant", [4, 21, 22, 1]), ("user", [3, 12, 1]), ("assistant", [4, 23, 1])]
    got = list(answer(talk))
    no = -100
    wanted = [no, no, no, no, 21, 22, 1, no, no, no, no, 23, 1]
    hint = "Of the assistant's turns all but their first id; -100 for all else."
    expect(
        len(got) == len(wanted), f"{len(got)} labels for {len(wanted)} ids.", "One label for each id, -100 included."
    )
    mistakes = {
        "The user's turns are trained.": [i for _, ids in talk for i in ids],
        "The role token is trained; it is given.": [no, no, no, 4, 21, 22, 1, no, no, no, 4, 23, 1],
        "The ends are not trained: this model never stops.": [*[no] * 4, 21, 22, *[no] * 5, 23, no],
        "Only the last answer is trained.": [*[no] * 11, 23, 1],
        "The labels are moved by one position; the model does that.": [*wanted[1:], no],
    }
    for mistake, labels in mistakes.items():
        expect(got != labels, mistake, hint)
    expect(got == wanted, f"Expected other labels than {got}.", hint)
    got = list(answer([("system", [2, 10, 1]), *talk[:2]]))
    expect(
        got == [no] * 7 + [21, 22, 1],
        f"With a system's turn in front: not {got}.",
        "Go by the role, not the turn's place.",
    )


@exercise("Exercise 3")
def rouge_l(answer: Callable[[str, str], float]) -> None:
    """answer(said, wanted) → F1 of the longest common subsequence of words."""
    hint = "Length of the longest common subsequence by either number of words: P and R; then 2PR/(P+R)."
    got = answer("it is open on Monday", "closed on Monday")
    expect(not math.isclose(got, 2 / 5), "That is the precision.", hint)
    expect(not math.isclose(got, 2 / 3), "That is the recall.", hint)
    expect(math.isclose(got, 1 / 2), f"2 of 5 and 2 of 3 words: not {got:.3f}.", hint)
    got = answer("a b c d", "a x c d")
    expect(not math.isclose(got, 2 / 4), "You take the longest run of words side by side.", "Gaps are allowed.")
    expect(math.isclose(got, 3 / 4), f"a, c, d are common: not {got:.3f}.", hint)
    got = answer("b a", "a b")
    expect(not math.isclose(got, 1), "You count common words in any order.", "The order has to be the same.")
    expect(math.isclose(got, 1 / 2), f"One of two words in order: not {got:.3f}.", hint)
    longest = "Fill the table: taking the first word that fits, or the longest run, may miss the longest subsequence."
    got = answer("c a b", "a b c")
    expect(math.isclose(got, 2 / 3), f"a, b are common to 'c a b' and 'a b c': not {got:.3f}.", longest)
    got = answer("a b c x y", "x y a q b r c")
    expect(math.isclose(got, 1 / 2), f"a, b, c are common to 'a b c x y' and 'x y a q b r c': not {got:.3f}.", longest)
    expect(math.isclose(answer("OPEN", "open"), 1), "OPEN and open are one word here.", "Lower case first.")
    expect(answer("yes", "no") == 0, "Nothing in common is 0.", "Mind the division by zero.")
    expect(answer("", "") == 0, "Call two empty texts 0, too.", "Mind the division by zero.")
    expect(answer("", "no") == 0, "A model may say nothing at all: that is 0.", "Mind the division by zero.")


@exercise("Exercise 4")
def pack_greedily(answer: Callable[[Sequence[int], int], Sequence[Sequence[int]]]) -> None:
    """answer(lengths, room) → rows of indices."""
    got = [list(row) for row in answer([4, 3, 2, 6, 1, 5, 8], 8)]
    hint = "Keep what is left of the current row; an example that is longer begins a new row."
    expect(got != [[4, 3], [2, 6], [1, 5], [8]], "Those are lengths, not indices.", "Use enumerate.")
    expect(
        got != [[0, 1], [2], [3, 4], [5], [6]],
        "A row may be filled to its last place.",
        "It fits if length ≤ what is left.",
    )
    expect(got != [[0, 1, 2], [3, 4], [5], [6]], "The first row has 9 tokens, and room for 8.", hint)
    expect(
        got != [[0, 1, 4], [2, 3], [5], [6]],
        "You fill earlier rows that still have room: that packs better, but is not what is asked.",
        "Only the current row takes an example.",
    )
    expect([] not in got, "There is an empty row.", "Begin a row when there is an example for it.")
    expect(
        sorted(i for row in got for i in row) == list(range(7)),
        "Every example is in one row, once.",
        "Also those of the last row.",
    )
    expect(got == [[0, 1], [2, 3], [4, 5], [6]], f"Expected other rows than {got}.", hint)
    expect(list(answer([], 8)) == [], "Without examples there are no rows.", hint)
    try:
        answer([3, 9], 8)
    except ValueError:
        return
    expect(
        False,
        "An example of 9 tokens was put into a row of 8.",
        "Raise ValueError: cut examples teach to stop anywhere.",
    )


@exercise("Exercise 5")
def dpo_loss(answer: Callable[..., torch.Tensor]) -> None:
    """answer(chosen, rejected, chosen_ref, rejected_ref, beta) → the loss of a pair."""

    def call(*numbers: float, beta: float = 0.1) -> float:
        return float(answer(*(torch.tensor(number, dtype=torch.float64) for number in numbers), beta))

    hint = (
        "How much more likely than under the reference is each answer? The loss is in the section on what comes after."
    )
    got = call(-4, -9, -5, -7)
    right = -math.log(1 / (1 + math.exp(-0.1 * 3)))
    expect(
        not math.isclose(got, -math.log(1 / (1 + math.exp(-0.1 * 5))), rel_tol=1e-6), "The reference is missing.", hint
    )
    expect(
        not math.isclose(got, -math.log(1 / (1 + math.exp(0.1 * 3))), rel_tol=1e-6),
        "Its sign is wrong: it prefers the rejected.",
        hint,
    )
    expect(not math.isclose(got, -right, rel_tol=1e-6), "A loss is minimized: the minus in front is missing.", hint)
    expect(not math.isclose(got, math.log(1 + math.exp(-3)), rel_tol=1e-6), "β is missing.", hint)
    expect(math.isclose(got, right, rel_tol=1e-6), f"Not {got:.4f}.", hint)
    expect(
        math.isclose(call(-5, -7, -5, -7), math.log(2), rel_tol=1e-6),
        "Where model and reference agree it is log 2.",
        hint,
    )
    far = call(-5000, -0, -0, -5000, beta=1.0)
    expect(math.isfinite(far), "It overflows where the difference is large.", "torch.nn.functional.logsigmoid")
    expect(math.isclose(far, 10000, rel_tol=1e-6), "For a large difference it is β times that.", hint)
