"""Checks for lesson 02: what each method trains, keeps and costs."""

from collections.abc import Callable

from course_lib.check import exercise, expect

import torch


@exercise("Exercise 1")
def prefix_parameters(answer: Callable[[int, int, int, int], int]) -> None:
    """answer(m virtual tokens, layers, key-value heads, width of a head) → trainable parameters of a prefix."""
    got = answer(10, 4, 3, 16)
    one = 10 * 4 * 3 * 16
    expect(got != one, "That is the keys alone, or the values alone.", "A prefix has a key and a value at each place.")
    expect(got != 2 * 10 * 3 * 16, "That is one layer.", "Every layer has a prefix of its own.")
    expect(
        got == 2 * one, f"Expected another number than {got:,}.", "Tokens × layers × (keys and values) × their width."
    )
    got = answer(20, 32, 8, 128)
    expect(got == 20 * 32 * 2 * 8 * 128, "Right for one model, wrong for another.", "Use all four arguments.")


@exercise("Exercise 2")
def trains(answer: Callable[[str], bool]) -> None:
    """answer(name of a BERT parameter) → whether the small BitFit trains it: biases of queries and of the first
    feed-forward layer."""
    at = "encoder.layer.3."
    expect(
        not answer(at + "attention.self.query.weight"),
        "You train the weight matrix of the queries.",
        "Only names that end in .bias.",
    )
    expect(bool(answer(at + "attention.self.query.bias")), "The biases of the queries are missing.", "query.bias")
    expect(
        bool(answer(at + "intermediate.dense.bias")),
        "The biases of the first feed-forward layer are missing.",
        "BERT calls that layer intermediate.dense.",
    )
    expect(
        not answer(at + "intermediate.dense.weight"),
        "You train the weight matrix of the first feed-forward layer.",
        "Only names that end in .bias.",
    )
    for other in ("attention.self.key.bias", "attention.self.value.bias", "output.LayerNorm.bias"):
        expect(not answer(at + other), f"You train {other} too.", "Of all biases only two kinds.")
    for other in ("output.dense.bias", "attention.output.dense.bias"):
        expect(not answer(at + other), f"You train {other} too.", "The first feed-forward layer, not what follows.")
    expect(
        bool(answer("encoder.layer.11.intermediate.dense.bias")), "Only in some blocks.", "The block's number is free."
    )


@exercise("Exercise 3")
def widest_bottleneck(answer: Callable[[int, int, int], int]) -> None:
    """answer(model width, number of adapters, budget) → the widest bottleneck whose adapters have at most `budget`
    parameters."""

    def parameters(width, adapters, m):
        return adapters * (2 * width * m + m + width)

    width, adapters = 100, 6
    got = answer(width, adapters, parameters(width, adapters, 5))
    expect(got != 4, "The budget itself may be used up.", "At most: ≤.")
    expect(got == 5, f"Exactly enough for 5; you have {got}.", "Each adapter: 2 · width · m weights, m + width biases.")
    got = answer(width, adapters, parameters(width, adapters, 6) - 1)
    expect(got == 5, f"One parameter short of 6; you have {got}.", "Round down.")
    got = answer(width, adapters, parameters(width, adapters, 1) - 1)
    expect(got == 0, f"Too little for 1; you have {got}.", "The answer may be 0, and is never negative.")
    expect(answer(width, adapters, 50) == 0, "With a budget of 50 you go below zero.", "The answer is never negative.")
    got = answer(1000, 12, 10**6)
    expect(got == 41, f"Width 1000, 12 adapters, a million: expected another number than {got}.", "Use all arguments.")


@exercise("Exercise 4")
def top_mask(answer: Callable[[dict[str, torch.Tensor], int], dict[str, torch.Tensor]]) -> None:
    """answer(changes by matrix, k) → for each matrix a mask of bools; k entries are true in all, those that changed
    most."""
    changes = {"a": torch.tensor([[0.1, -5.0], [0.2, 0.3]]), "b": torch.tensor([[2.0, -3.0]])}
    got = answer(changes, 3)
    expect(set(got) == {"a", "b"}, "A mask for each matrix, under its name.", "A dictionary with the same keys.")
    shapes = all(got[name].shape == changes[name].shape for name in changes)
    expect(shapes, "A mask has another shape than its matrix.", "Reshape it like the matrix.")
    expect(
        all(mask.dtype == torch.bool for mask in got.values()), "The masks are no bools.", "A comparison gives them."
    )
    total = sum(int(mask.sum()) for mask in got.values())
    expect(total != 5, "k in each matrix.", "k in all: rank the entries of all matrices together.")
    expect(total == 3, f"{total} entries are true, 3 were asked for.", "Exactly k in all.")
    expect(
        bool(got["a"][0, 1]), "The largest change is missing: −5.", "What counts is how far, not in which direction."
    )
    right = bool(got["a"][0, 1] and got["b"].all())
    expect(right, "Not the three that changed most.", "Their sizes are 5, 3 and 2.")
    ties = answer({"a": torch.ones(2, 2)}, 2)
    expect(int(ties["a"].sum()) == 2, "With ties you take more than k.", "topk gives exactly k places.")


@exercise("Exercise 5")
def front(answer: Callable[[dict[str, float], dict[str, float]], list[str]]) -> None:
    """answer(costs, scores) → the names on the Pareto front, cheapest first."""
    costs = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    got = list(answer(costs, {"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.8}))
    expect("c" not in got, "c costs more than b and scores less.", "Something on the front is beaten by nobody.")
    expect("a" in got, "The cheapest is always on the front.", "Nothing costs less.")
    expect("d" in got, "The best is always on the front.", "Nothing scores more.")
    expect(got != ["d", "b", "a"], "The order is turned round.", "Cheapest first.")
    expect(got == ["a", "b", "d"], f"Expected a, b and d; you have {got}.", "Walk from cheap to dear, keep new bests.")
    got = list(answer(costs, {"a": 0.9, "b": 0.7, "c": 0.9, "d": 0.8}))
    expect(
        got == ["a"], f"Nothing dearer scores more than a; you have {got}.", "An equal score at a higher cost loses."
    )
    got = list(answer({"a": 3.0, "m": 1.0, "c": 2.0, "b": 4.0}, {"a": 0.7, "m": 0.5, "c": 0.6, "b": 0.8}))
    expect(got == ["m", "c", "a", "b"], f"Not in the order of their costs: {got}.", "Cheapest first, by cost.")
    got = list(answer({"a": 2.0, "b": 2.0}, {"a": 0.6, "b": 0.7}))
    expect(got == ["b"], f"At equal cost the better one wins; you have {got}.", "Sort by cost, then by score.")
