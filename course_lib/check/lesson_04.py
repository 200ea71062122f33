"""Checks for lesson 04: bits of quantized weights, peaks of a step, what fits, and NormalFloat's levels."""

from collections.abc import Callable, Sequence

from course_lib.check import exercise, expect

import torch


@exercise("Exercise 1")
def bits_per_weight(answer: Callable[[float, int, float], float]) -> None:
    """answer(bits of a code, weights in a block, bits of its constant) → bits a weight."""
    got = answer(4, 64, 32)
    expect(got != 4, "The constants are missing.", "Each block of 64 weights has one more number.")
    expect(got != 36, "Each weight would have a constant of its own.", "One constant is shared by a whole block.")
    expect(got != 4 + 64 / 32, "The fraction is upside down.", "A larger block costs less for each weight.")
    expect(got == 4.5, f"4 bits in blocks of 64 with constants of 32 bits: not {got}.", "bits + what a constant adds.")
    expect(answer(8, 256, 32) == 8.125, "Right for 4 bits, wrong for 8.", "Use `bits`, not 4.")
    expect(answer(4, 64, 8.125) == 4 + 8.125 / 64, "A constant may have 8.125 bits.", "Do not round.")


@exercise("Exercise 2")
def step_peak(answer: Callable[..., int]) -> None:
    """answer(parameters, weight_bytes, trained, trained_bytes, activations, extra_bytes=0) → bytes at the peak."""
    got = answer(100, 4, 100, 4, 50)
    expect(got != 400, "Those are the weights alone.", "Weights, two states for each trained number, and more.")
    expect(got != 1650, "That is the sum of all parts.", "Gradients and activations are never all there together.")
    expect(got != 1250, "That is the start of the backward pass.", "Here gradients are larger than activations.")
    expect(got != 1200, "The gradients are missing, or the states are there once.", "Weights 4, states 8, gradients 4.")
    expect(got == 1600, f"Full fine-tuning of 100 numbers: not {got}.", "weights + states + the larger of two.")
    got = answer(100, 2, 10, 4, 90)
    expect(got != 410, "You added the trained numbers' own bytes.", "They are in `parameters`, or in `extra_bytes`.")
    expect(got == 370, f"A tenth trained in fp32: not {got}.", "States and gradients are of the trained numbers' type.")
    got = answer(100, 2, 100, 2, 50)
    expect(got == 800, f"All trained in bf16: not {got}.", "States take trained_bytes a number, twice.")
    got = answer(100, 2, 10, 4, 90, 40)
    expect(got == 410, f"With 40 bytes of adapters: not {got}.", "Add extra_bytes: they are there all the time.")


@exercise("Exercise 3")
def peak(answer: Callable[[Sequence[tuple[str, int]]], int]) -> None:
    """answer(list of (name, bytes)) → the most that is held at one moment; bytes below 0 are freed."""
    events = [("weights", 10), ("activations", 6), ("activations", -6), ("gradients", 10), ("gradients", -10)]
    got = answer(events)
    expect(got != 26, "That is the sum of all that was ever allocated.", "Subtract what is freed on the way.")
    expect(
        got != 10, "That is the largest part, or what is left at the end.", "Add up as you go; keep the largest sum."
    )
    expect(got == 20, f"Expected another number than {got}.", "Add up as you go; keep the largest sum.")
    got = answer([("weights", 4), ("activations", 9), ("activations", -9), ("gradients", 4)])
    expect(got == 13, f"A peak in the middle: expected another number than {got}.", "Not the sum at the end.")
    expect(answer([]) == 0, "Nothing allocated, nothing held.", "Start at 0.")


@exercise("Exercise 4")
def largest_batch(answer: Callable[[Callable[[int], int], int, int], int]) -> None:
    """answer(cost(rows), room, most) → the largest number of rows that fits, 0 to most."""
    asked: list[int] = []

    def cost(rows: int) -> int:
        asked.append(rows)
        expect(len(asked) < 10_000, "Your search does not end.", "Each question must make the range smaller.")
        return 100 + 7 * rows

    got = answer(cost, 150, 64)
    expect(got != 8, "8 rows cost 156.", "cost(rows) must not be more than room.")
    expect(got == 7, f"7 rows cost 149 of 150; you say {got}.", "The largest number that still fits.")
    got = answer(cost, 156, 64)
    expect(got == 8, "8 rows cost exactly 156, and that fits.", "≤, not <.")
    expect(answer(cost, 50, 64) == 0, "Not even one row fits into 50.", "Then the answer is 0.")
    expect(answer(cost, 10**6, 64) == 64, "All 64 fit, and no more are asked for.", "Stop at `most`.")
    asked.clear()
    got = answer(cost, 100 + 7 * 3000, 4096)
    expect(got == 3000, f"3,000 of 4,096 fit; you say {got}.", "The largest number that still fits.")
    few = len(asked) <= 20
    expect(few, f"You asked `cost` {len(asked):,} times.", "Halve the range with each question.")
    got = answer(lambda rows: 10 + rows * rows, 10 + 50 * 50, 4096)
    expect(got == 50, f"Where costs grow with the square, 50 fit; you say {got}.", "Ask, do not extrapolate.")


@exercise("Exercise 5")
def normal_levels(answer: Callable[[int], torch.Tensor]) -> None:
    """answer(bits) → the sorted levels of NormalFloat with so many bits."""
    got = torch.as_tensor(answer(4)).float()
    expect(
        got.shape == (16,), f"4 bits have 16 levels; you have {tuple(got.shape)}.", "8 above zero, 7 below, and zero."
    )
    expect(bool((got.sort().values == got).all()), "The levels are not sorted.", "np.sort, or .sort().values.")
    expect(bool((got == 0).sum() == 1), "There must be exactly one zero.", "Leave 0.5 out of both sides; add 0.0.")
    largest = got.abs().max().item()
    expect(abs(largest - 1) < 1e-6, f"The largest is {largest:.4f}, not 1.", "Divide by the largest at the end.")
    above = int((got > 0).sum())
    expect(above == 8, f"{above} levels are above zero.", "8 above, 7 below.")
    nf4 = (
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
    )  # fmt: skip
    same = torch.allclose(got, torch.tensor(nf4), atol=1e-4)
    expect(same, "For 4 bits this is not NF4.", "Quantiles from `last` to 0.5, both ends in, then drop 0.5.")
    got = torch.as_tensor(answer(3)).float()
    right = got.shape == (8,) and abs(got[5].item() - 0.3819940) < 1e-3 and abs(got[0].item() + 1) < 1e-6
    expect(right, "Right for 4 bits, wrong for 3.", "n = 2 ** bits; n // 2 levels above zero; `last` depends on n.")
