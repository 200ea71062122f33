"""Checks for lesson 03: LoRA's counts, its merged weight, and low-rank approximation."""

from collections.abc import Callable, Sequence

from course_lib.check import exercise, expect

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


@exercise("Exercise 1")
def lora_parameters(answer: Callable[[Sequence[tuple[int, int]], int], int]) -> None:
    """answer(list of (outputs, inputs), rank) → parameters that LoRA trains on these matrices."""
    got = answer([(10, 6)], 2)
    expect(got != 2 * 10 * 6, "That is r times the whole matrix.", "A has r rows, B has r columns; nothing is d × k.")
    expect(got not in (2 * 10, 2 * 6), "That is one of the two factors.", "Both A and B are trained.")
    expect(got == 2 * 16, f"One 10 × 6 matrix at rank 2: not {got}.", "A is r × inputs, B is outputs × r.")
    got = answer([(10, 6), (3, 4)], 2)
    expect(got == 2 * 16 + 2 * 7, f"Two matrices: expected another number than {got}.", "Add up over all of them.")
    expect(answer([], 8) == 0, "Without matrices nothing is trained.", "The sum over nothing is 0.")


@exercise("Exercise 2")
def largest_rank(answer: Callable[[int, int], int]) -> None:
    """answer(d, k) → the largest rank r with r(d + k) < dk."""
    got = answer(768, 768)
    expect(got != 384, "At that rank both are equal.", "Fewer, not as many.")
    expect(got == 383, f"768 × 768: expected another number than {got}.", "Find the largest r with r(d + k) < dk.")
    got = answer(10, 15)
    expect(got == 5, f"10 × 15: expected another number than {got}.", "r · 25 < 150, and r is whole.")
    got = answer(7, 5)
    expect(got == 2, f"7 × 5: expected another number than {got}.", "r · 12 < 35: round down.")
    expect(
        answer(12, 9) == 5, "12 × 9: 5 · 21 is still less than 108.", "The largest r with r(d + k) < dk, and no less."
    )
    expect(answer(1, 9) == 0, "A 1 × 9 matrix has fewer numbers than LoRA of rank 1.", "The answer may be 0.")


@exercise("Exercise 3")
def merged_weight(answer: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]) -> None:
    """answer(W, A, B, lora_alpha) → the weight of the plain layer that computes the same."""
    draw = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(*shape, generator=draw) for shape in ((4, 6), (2, 6), (4, 2)))
    alpha = 3.0
    got = answer(w, a, b, alpha)
    expect(got.shape == w.shape, f"The result is {tuple(got.shape)}, W is (4, 6).", "B @ A, in this order.")
    wrong = {
        "The scale α/r is missing.": w + b @ a,
        "You scale by α alone.": w + alpha * b @ a,
        "You scale by α/√r: that is rsLoRA.": w + alpha / 2**0.5 * b @ a,
        "W itself is missing.": alpha / 2 * b @ a,
    }
    for mistake, value in wrong.items():
        expect(not torch.allclose(got, value), mistake, "W + (α/r) B A, and r is the number of rows of A.")
    same = torch.allclose(got, w + alpha / 2 * b @ a, atol=1e-5)
    expect(same, "The layer would compute something else.", "W + (α/r) B A, and r is the number of rows of A.")
    a, b = torch.randn(3, 6, generator=draw), torch.randn(4, 3, generator=draw)
    same = torch.allclose(answer(w, a, b, alpha), w + alpha / 3 * b @ a, atol=1e-5)
    expect(same, "Right at rank 2, wrong at rank 3.", "r is the number of rows of A: read it from A's shape.")


@exercise("Exercise 4")
def rank_needed(answer: Callable[[torch.Tensor, float], int]) -> None:
    """answer(matrix, share) → the smallest rank that keeps at least this share of the energy."""
    matrix = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))  # squares: 16, 9, 4, 1 of 30
    got = answer(matrix, 0.6)
    expect(
        got != 1, "One direction holds 16 of 30, less than 0.6.", "At least the share, so go on until it is reached."
    )
    expect(got == 2, f"0.6 of the energy: expected another rank than {got}.", "Energy is the sum of the squares.")
    got = answer(matrix, 0.8)
    expect(got != 3, "Two directions hold 25 of 30.", "Square the singular values: energy, not their sum.")
    expect(got == 2, f"0.8 of the energy: expected another rank than {got}.", "Add squares until the share is reached.")
    expect(answer(matrix, 0.9) == 3, "0.9 of the energy needs three directions.", "16 + 9 + 4 of 30.")
    expect(
        answer(torch.eye(4), 0.5) == 2,
        "Two of four equal directions hold exactly half.",
        "At least, so half is enough.",
    )
    expect(
        answer(torch.ones(3, 3), 0.99) == 1, "This matrix has rank 1.", "torch.linalg.svdvals gives singular values."
    )
    turned = torch.tensor([[0.0, 4.0], [1.0, 0.0]])
    expect(answer(turned, 0.9) == 1, "One direction of [[0, 4], [1, 0]] holds 16 of 17.", "Singular, not eigenvalues.")


@exercise("Exercise 5")
def extract(answer: Callable[[torch.Tensor, int], Pair]) -> None:
    """answer(change (outputs, inputs), r) → A (r, inputs), B (outputs, r), BA as near to the change as can be."""
    draw = torch.Generator().manual_seed(1)
    delta = torch.randn(5, 7, generator=draw)
    a, b = answer(delta, 2)
    swapped = a.shape == (5, 2) and b.shape == (2, 7)
    expect(not swapped, "You return B first.", "A, then B.")
    shapes = a.shape == (2, 7) and b.shape == (5, 2)
    expect(shapes, f"A is {tuple(a.shape)}, B is {tuple(b.shape)}.", "A is r × inputs (2, 7), B is outputs × r (5, 2).")
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    best = u[:, :2] * s[:2] @ v[:2]
    expect(not torch.allclose(b @ a, u[:, :2] @ v[:2]), "The singular values are missing.", "U · S · V, each in place.")
    twice = u[:, :2] * s[:2].square() @ v[:2]
    expect(not torch.allclose(b @ a, twice), "The singular values are in twice.", "Their square root in each factor.")
    quarter = torch.allclose(b @ a, u[:, :2] * s[:2].square() / 4 @ v[:2])
    expect(not quarter, "Half of a singular value times the other half is not the whole.", "Its square root in each.")
    expect(torch.allclose(b @ a, best, atol=1e-4), "BA is not the nearest.", "Keep the largest singular values.")
    even = torch.allclose(a.norm(dim=1), b.norm(dim=0), atol=1e-4)
    expect(even, "The singular values are not divided evenly.", "Give each factor their square root.")
