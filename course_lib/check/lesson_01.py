"""Checks for lesson 01: what moves, what it costs, and how to tell."""

from collections.abc import Callable

from course_lib.check import exercise, expect
from course_lib.memory.estimate import predict

import torch


@exercise("Exercise 1")
def masked_max(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """answer(states (texts, tokens, width), mask (texts, tokens)) → (texts, width)."""
    states = torch.tensor([[[-1.0, 2.0], [-3.0, 4.0], [9.0, 9.0]], [[1.0, -5.0], [2.0, -6.0], [3.0, -7.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    got = answer(states, mask)
    shape = tuple(got.shape)
    expect(shape == (2, 2), f"Shape {shape}, expected (2, 2).", "One vector a text: reduce over tokens.")
    expect(not torch.equal(got, states.amax(1)), "Padding wins.", "The mask says which tokens are real.")
    zeroed = (states * mask.unsqueeze(-1)).amax(1)
    expect(not torch.equal(got, zeroed), "A zero at the padding beats a negative value.", "Fill it with −infinity.")
    mean = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    expect(not torch.allclose(got, mean), "That is the mean.", "The largest value in each dimension.")
    expected = torch.tensor([[-1.0, 4.0], [3.0, -5.0]])
    expect(torch.equal(got, expected), "The numbers differ.", "For every dimension, the largest over the real tokens.")
    got = answer(states[:1], torch.tensor([[0, 1, 1]]))
    expect(
        torch.equal(got, torch.tensor([[9.0, 9.0]])), "Padding may stand in front.", "Go by the mask, not by a count."
    )


@exercise("Exercise 2")
def block_parameters(answer: Callable[[int, int], int]) -> None:
    """answer(width, feed-forward width) → parameters of one BERT block."""
    width, inner = 384, 1536
    got = answer(width, inner)
    matrices = 4 * width * width + 2 * width * inner
    biases = 4 * width + inner + width
    norms = 4 * width
    without_output = matrices + biases + norms - width * width - width
    expect(got != matrices, "Only the weight matrices.", "Every linear layer has a bias; there are two layer norms.")
    expect(got != matrices + biases, "The layer norms are missing.", "Each has a scale and a shift of size width.")
    expect(
        got != without_output,
        "The attention's output projection is missing.",
        "Attention has four matrices.",
    )
    expect(got == matrices + biases + norms, f"Expected another number than {got:,}.", "Count layer by layer.")
    other = answer(8, 20)
    expect(other == 4 * 64 + 320 + 32 + 28 + 32, "Right for MiniLM, wrong for another width.", "Use the arguments.")


@exercise("Exercise 3")
def layers_that_fit(answer: Callable[[int, int, int, int], int]) -> None:
    """answer(parameters, block, blocks, limit) → the most top blocks whose training fits in `limit` bytes."""
    total, block, blocks = 1000, 100, 6

    def bytes_for(k):
        return sum(predict(total, k * block).values())

    got = answer(total, block, blocks, bytes_for(3))
    expect(got != 2, "The limit itself still fits.", "At most `limit`: ≤, not <.")
    expect(got != 6, "Too many.", "Weights 4 bytes for all; gradients 4 and AdamW 8 for the trainable ones.")
    expect(got == 3, f"Exactly enough for three blocks; you have {got}.", "4 · parameters + 12 · trainable ≤ limit")
    got = answer(total, block, blocks, bytes_for(1) - 1)
    expect(got == 0, f"One byte short of one block: none fits; you have {got}.", "Frozen weights take memory too.")
    got = answer(total, block, blocks, 10**9)
    expect(got == blocks, f"In plenty of memory all {blocks} blocks train; you have {got}.", "There are only so many.")
    got = answer(total, block, blocks, bytes_for(4) - 1)
    expect(got == 3, f"One byte short of four blocks: three; you have {got}.", "Round down.")
    got = answer(total, block, blocks, 100)
    expect(got == 0, f"Not even the weights fit: {got} blocks train?", "The answer is never negative.")


@exercise("Exercise 4")
def kept_epoch(answer: Callable[[list[float], int], int]) -> None:
    """answer(validation accuracy after each epoch, patience) → index of the epoch whose weights are kept."""
    got = answer([0.5, 0.6, 0.7, 0.65, 0.6], 2)
    expect(got != 4, "You keep the last epoch.", "Early stopping goes back to the best one.")
    expect(got != 3, "Off by one, or the epoch that got worse.", "Count from 0; keep the best, not the next.")
    expect(got == 2, f"The best of 0.5, 0.6, 0.7, 0.65, 0.6 is epoch 2; you have {got}.", "Count from 0.")
    got = answer([0.5, 0.6, 0.55, 0.58, 0.9], 2)
    expect(got != 4, "Training had stopped before that epoch.", "Two epochs without a new best, and it is over.")
    expect(got == 1, f"Patience 2 stops after epoch 3 and keeps epoch 1; you have {got}.", "Walk through the epochs.")
    expect(answer([0.5, 0.45, 0.6], 2) == 2, "Patience 2 forgives one bad epoch.", "Count how many came in a row.")
    got = answer([0.5, 0.4, 0.6, 0.55, 0.7], 2)
    expect(got == 4, "Bad epochs are added up over the whole run.", "Reset the counter at each new best.")
    expect(answer([0.5, 0.4, 0.6], 1) == 0, "With patience 1, one bad epoch is the end.", "Use the argument.")
    expect(answer([0.6, 0.6, 0.6], 5) == 0, "In a tie the first one stays.", "A new best must be strictly better.")
