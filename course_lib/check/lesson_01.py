"""Checks for lesson 01: what moves, what it costs, and how to tell."""

from collections.abc import Callable

from course_lib.check import exercise, expect
from course_lib.memory.estimate import predict

import torch


@exercise("Exercise 1")
def masked_mean(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """answer(states (texts, tokens, width), mask (texts, tokens)) → (texts, width)."""
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[1.0, 0.0], [2.0, 0.0], [3.0, 6.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    got = answer(states, mask)
    expect(
        tuple(got.shape) == (2, 2),
        f"Shape {tuple(got.shape)}, expected (2, 2).",
        "One vector a text: reduce over tokens.",
    )
    expect(not torch.allclose(got, states.mean(1)), "Padding is averaged in.", "The mask says which tokens are real.")
    zeroed = (states * mask.unsqueeze(-1)).mean(1)
    expect(
        not torch.allclose(got, zeroed),
        "Padding is zeroed but still counted.",
        "Divide by the number of real tokens, not by the length.",
    )
    total = (states * mask.unsqueeze(-1)).sum(1)
    expect(not torch.allclose(got, total), "That is the sum.", "Divide by the number of real tokens.")
    expect(
        torch.allclose(got, torch.tensor([[2.0, 3.0], [2.0, 2.0]])),
        "The numbers differ.",
        "Sum over real ÷ number of real.",
    )


@exercise("Exercise 2")
def block_parameters(answer: Callable[[int, int], int]) -> None:
    """answer(width, feed-forward width) → parameters of one BERT block."""
    width, inner = 384, 1536
    got = answer(width, inner)
    matrices = 4 * width * width + 2 * width * inner
    biases = 4 * width + inner + width
    expect(
        got != matrices, "Only the weight matrices.", "Every linear layer has a bias, and there are two layer norms."
    )
    expect(
        got != matrices + biases, "The two layer norms are missing.", "Each norm has a scale and a shift of size width."
    )
    expect(
        got != 3 * width * width + 2 * width * inner + biases - width + 4 * width,
        "The attention's output projection is missing.",
        "Query, key, value and output: four matrices.",
    )
    expect(got == matrices + biases + 4 * width, f"Expected another number than {got:,}.", "Count layer by layer.")
    expect(
        answer(8, 20) == 4 * 64 + 2 * 160 + 32 + 28 + 32,
        "Right for MiniLM, wrong for another width.",
        "Use the arguments.",
    )


@exercise("Exercise 3")
def training_bytes(answer: Callable[[int, int], int]) -> None:
    """answer(parameters, trainable) → bytes of weights, gradients and AdamW states in fp32."""
    total, part = 1_000_000, 10_000
    got = answer(total, total)
    expect(got != 4 * total, "Those are the weights alone.", "Gradients and two optimizer states come on top.")
    expect(got != 12 * total, "One part is missing.", "Weights 4, gradients 4, AdamW's two means 8 bytes.")
    expect(
        got == 16 * total,
        f"Full fine-tuning of a million parameters: 16,000,000 bytes; you have {got:,}.",
        "4 + 4 + 8.",
    )
    got = answer(total, part)
    expect(
        got != 16 * total,
        "Frozen parameters have neither gradients nor optimizer states.",
        "Only `trainable` count there.",
    )
    expect(
        got != 16 * part, "Frozen weights must be in memory too.", "4 bytes for all, 12 more for the trainable ones."
    )
    expect(
        got == sum(predict(total, part).values()), f"Expected another number than {got:,}.", "4 · all + 12 · trainable"
    )


@exercise("Exercise 4")
def kept_epoch(answer: Callable[[list[float], int], int]) -> None:
    """answer(validation accuracy after each epoch, patience) → index of the epoch whose weights are kept."""
    got = answer([0.5, 0.6, 0.7, 0.65, 0.6], 2)
    expect(got != 4, "You keep the last epoch.", "Early stopping goes back to the best one.")
    expect(
        got != 3, "Off by one, or the epoch in which things got worse.", "Count from 0; keep the best, not the next."
    )
    expect(
        got == 2,
        f"The best of 0.5, 0.6, 0.7, 0.65, 0.6 is epoch 2 (from 0); you have {got}.",
        "The highest validation.",
    )
    got = answer([0.5, 0.6, 0.55, 0.58, 0.9], 2)
    expect(
        got != 4,
        "Training had stopped before that epoch.",
        "Two epochs without a new best: stop, and never see the rest.",
    )
    expect(
        got == 1,
        f"Patience 2 stops after epoch 3 and keeps epoch 1; you have {got}.",
        "Walk through the epochs one by one.",
    )
    got = answer([0.5, 0.45, 0.6], 2)
    expect(got == 2, "Patience 2 forgives one bad epoch.", "Reset the counter at each new best.")
    expect(answer([0.6, 0.6, 0.6], 5) == 0, "In a tie the first one stays.", "A new best must be strictly better.")
