"""Checks for lesson 07: NDCG, the ranking loss, cut vectors, a split without leaks."""

import math
from collections.abc import Callable, Sequence

from course_lib.check import exercise, expect

import numpy as np
import torch


@exercise("Exercise 1")
def mean_ndcg(answer: Callable[[Sequence[int]], float]) -> None:
    """answer(ranks) → mean NDCG@10."""
    got = np.asarray(answer([1, 3, 20]))
    expect(got.ndim == 0, f"The result has {got.size} numbers.", "One is asked for: the mean.")
    got = float(got)
    hint = "For each rank up to 10: 1 / log2(1 + rank); beyond 10: 0; then the mean over all of them."
    expect(not math.isclose(got, (1 + 1 / 3) / 3), "That is the MRR.", "The discount is a logarithm.")
    expect(not math.isclose(got, (1 + 0.5) / 2), "Ranks beyond 10 count too, with 0.", "Divide by all of them.")
    expect(not math.isclose(got, (1 + 0.5 + 1 / np.log2(21)) / 3), "Ranks beyond 10 give nothing here.", hint)
    expect(not math.isclose(got, (1 / np.log(2) + 1 / np.log(4)) / 3), "Your logarithm is the natural one.", "Base 2.")
    expect(math.isfinite(got), "The first place counts infinitely much.", "log2(1) is 0: take 1 + rank.")
    expect(not math.isclose(got, 1.5), "That is the sum.", "Divide by the number of queries.")
    expect(math.isclose(got, 0.5), f"Ranks 1, 3 and 20: not {got:.4f}.", hint)
    got = float(answer([10, 11]))
    expect(got != 0, "The tenth place still counts.", hint)
    expect(math.isclose(got, 1 / np.log2(11) / 2), f"Ranks 10 and 11: not {got:.4f}.", hint)


@exercise("Exercise 2")
def loss_of(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """answer(scores, same) → the ranking loss without those that are no wrong answers."""
    # Near each other, or a wrong treatment of one of them would not be seen.
    scores = torch.tensor([[0.5, 0.4, 0.45], [-0.9, -0.85, -0.8], [0.3, 0.35, 0.4]])
    same = torch.eye(3, dtype=torch.bool)
    same[1, 2] = True
    got = float(answer(scores, same))

    def wanted(matrix: torch.Tensor, scale: float = 20, reduction: str = "mean") -> float:
        return float(torch.nn.functional.cross_entropy(scale * matrix, torch.arange(3), reduction=reduction))

    def without(mask: torch.Tensor, matrix: torch.Tensor = scores) -> torch.Tensor:
        return matrix.masked_fill(mask, -math.inf)

    others = same & ~torch.eye(3, dtype=torch.bool)
    column = others.any(0) & ~torch.eye(3, dtype=torch.bool)
    said = torch.log_softmax(20 * scores, dim=1)
    hint = "Cross-entropy of each row of 20 · scores, the right class of row i being i; what is out gets -∞ before it."
    mistakes = {
        "The other right passages still count as wrong.": wanted(scores),
        "The scale is missing.": wanted(without(others), 1),
        "A score of 0 is still a wrong answer.": wanted(scores.masked_fill(others, 0.0)),
        "A score of -1 is still a wrong answer, if a weak one.": wanted(scores.masked_fill(others, -1.0)),
        "You leave the passage out for every query; it is right for one of them only.": wanted(without(column)),
        "You mask the columns of the queries: same[i, j] is about row i.": wanted(without(others.T)),
        "The other right answers are not to be rewarded, only left out.": -said.exp().mul(same).sum(1).log().mean(),
        "The other right answers are not to be learned, only left out.": -said.mul(same).sum(1).div(same.sum(1)).mean(),
        "That is the sum over queries.": wanted(without(others), reduction="sum"),
        "The sign is wrong.": -wanted(without(others)),
    }
    for mistake, value in mistakes.items():
        expect(not math.isclose(got, value, rel_tol=1e-5), mistake, hint)
    expect(math.isfinite(got), "You mask each query's own passage too.", "same[i, i] is true, and must stay.")
    expect(math.isclose(got, wanted(without(others)), rel_tol=1e-5), f"Not {got:.4f}.", hint)


@exercise("Exercise 3")
def cut(answer: Callable[[np.ndarray, int], np.ndarray]) -> None:
    """answer(vectors, size) → cut vectors of length 1."""
    vectors = np.random.default_rng(0).normal(size=(5, 8))
    got = np.asarray(answer(vectors, 3))
    hint = "First cut, then divide each row by its own length."
    expect(got.shape == (5, 3), f"The result has shape {got.shape}, not (5, 3).", "Columns, not rows.")
    short = vectors[:, :3]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    expect(not np.allclose(got, short), "They do not have length 1: their dot product is no cosine.", hint)
    whole = short / np.linalg.norm(vectors, axis=1, keepdims=True)
    expect(not np.allclose(got, whole), "You divide by the length of the whole vector.", hint)
    last = vectors[:, -3:] / np.linalg.norm(vectors[:, -3:], axis=1, keepdims=True)
    expect(not np.allclose(got, last), "Those are the last numbers.", "Training made the first ones good alone.")
    expect(not np.allclose(got, short / np.linalg.norm(short)), "You divide by the length of the whole matrix.", hint)
    columns = np.linalg.norm(short, axis=0)
    expect(not np.allclose(got, short / columns), "You divide each column by its length, not each row.", hint)
    expect(not np.allclose(got, short / lengths**2), "You divide by the square of the length.", hint)
    expect(np.allclose(got, short / lengths), "The numbers are others.", hint)


@exercise("Exercise 4")
def chosen_indices(answer: Callable[[Sequence[str], float], set[int]]) -> None:
    """answer(modules, share) → indices of the test split."""
    modules = ["c", "a", "b", "c", "a", "b", "c", "d"]
    got = answer(modules, 0.5)
    hint = "Whole modules in alphabetical order, while the chosen pairs are fewer than share · all."
    expect(isinstance(got, set | frozenset), "A set of indices is asked for.", "set(…)")
    expect(all(isinstance(i, int | np.integer) for i in got), "Those are not indices.", "Use enumerate.")
    parts = {module: {i for i, of in enumerate(modules) if of == module} for module in modules}
    cut_up = [module for module, rows in parts.items() if rows & got and not rows <= got]
    expect(not cut_up, f"Module {cut_up[:1]} is in both splits.", "A module goes whole, or not at all.")
    expect(
        got != parts["c"] | parts["a"], "You take modules in the order in which they appear.", "sorted(set(modules))"
    )
    more = parts["a"] | parts["b"] | parts["c"]
    expect(got != more, "Four of eight are enough for a half.", "Stop when the share is there.")
    expect(got != parts["a"], "Two of eight are less than a half.", "Go on until the share is there.")
    expect(got == parts["a"] | parts["b"], f"Expected others than {sorted(got)}.", hint)
    got = answer(modules, 0.3)
    expect(got == parts["a"] | parts["b"], "A share of 0.3 needs more than the two pairs of a.", "At least the share.")
    expect(answer(modules, 0.0) == set(), "A share of nothing is nothing.", hint)
