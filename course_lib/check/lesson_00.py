"""Checks for lesson 00: the update loop."""

import math
from collections.abc import Callable

from course_lib.check import exercise, expect

import torch


@exercise("Exercise 1")
def optimizer_steps(answer: Callable[[int, int, int, int], int]) -> None:
    """answer(examples, batch_size, accumulation, epochs) → number of optimizer steps."""
    got = answer(1000, 10, 1, 1)
    expect(got == 100, f"1000 examples in batches of 10 make 100 steps; you have {got}.", "How many batches is that?")
    got = answer(1000, 10, 1, 3)
    expect(got != 100, "Three epochs gave as many steps as one.", "An epoch is one pass over all the data.")
    got = answer(1000, 10, 4, 1)
    expect(got != 100, "Accumulation changed nothing.", "The optimizer steps once every `accumulation` batches.")
    expect(got != 400, "Accumulation made more steps.", "Accumulating means waiting: fewer steps, not more.")
    got = answer(1001, 10, 1, 1)
    expect(
        got == 101, f"1001 examples need a last batch with one example in it; you have {got}.", "Round up, not down."
    )
    got = answer(95, 10, 4, 2)
    expect(
        got == 6,
        f"95 examples, batches of 10, accumulation 4, 2 epochs: 6 steps; you have {got}.",
        "An epoch ends with a step, even if fewer than `accumulation` batches are waiting: round up twice.",
    )


@exercise("Exercise 2")
def combined_loss(answer: Callable[[list[float], list[int]], float]) -> None:
    """answer(mean loss of each micro-batch, its number of examples) → mean loss over all examples."""
    equal = answer([1.0, 3.0], [4, 4])
    expect(not math.isclose(equal, 4.0), "You add the losses up.", "The classic mistake: divide.")
    expect(
        not math.isclose(equal, 8.0), "You forgot to divide by the number of examples.", "Sum over all, then divide."
    )
    expect(math.isclose(equal, 2.0), f"Two equal halves with losses 1 and 3 average to 2; you have {equal}.", "A mean.")
    unequal = answer([1.0, 3.0], [6, 2])
    expect(
        not math.isclose(unequal, 2.0),
        "The mean of the means: an example in the small micro-batch counts three times as much as one in the large.",
        "Weigh each loss by its number of examples.",
    )
    expect(math.isclose(unequal, 1.5), f"6 examples at 1.0 and 2 at 3.0 average to 1.5; you have {unequal}.", "Weigh.")


@exercise("Exercise 3")
def momentum_step(answer: Callable) -> None:
    """answer(weight, gradient, velocity, rate, momentum) → (new weight, new velocity), as torch.optim.SGD does it."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    reference = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    ours, velocity = weight.detach().clone(), torch.zeros(2)
    for number, gradient in enumerate((torch.tensor([0.5, 1.0]), torch.tensor([-1.0, 0.25])), 1):
        result = answer(ours, gradient, velocity, 0.1, 0.9)
        expect(isinstance(result, tuple) and len(result) == 2, "Return two things.", "(new weight, new velocity)")
        before, (ours, velocity) = ours, result
        weight.grad = gradient.clone()
        reference.step()
        close = torch.allclose(ours, weight.detach())
        uphill = torch.allclose(ours - before, before - weight.detach())
        expect(close or not uphill, "The weight climbs.", "Against the gradient: subtract.")
        damped = torch.allclose(velocity, 0.1 * gradient)
        expect(close or not damped, "You average (1 − momentum) in.", "torch adds the whole gradient to the velocity.")
        plain = torch.allclose(ours, before - 0.1 * gradient)
        expect(
            close or not plain,
            f"Step {number} is a plain gradient step.",
            "Move by the new velocity, not the gradient.",
        )
        expect(
            close, f"Step {number} differs from torch.optim.SGD.", "velocity = momentum × velocity + gradient, first."
        )
        kept = reference.state[weight]["momentum_buffer"]
        inside = torch.allclose(velocity, 0.1 * kept)
        expect(not inside, "The rate is in the velocity.", "If the rate changed, the old steps would keep theirs.")
        expect(torch.allclose(velocity, kept), "The velocity is another.", "Return the new velocity, second.")


@exercise("Exercise 4")
def cross_entropy(answer: Callable) -> None:
    """answer(logits of one example, its label) → loss, as torch.nn.functional.cross_entropy does it."""
    logits = torch.tensor([2.0, 0.0, -1.0])
    expected = torch.nn.functional.cross_entropy(logits.unsqueeze(0), torch.tensor([0])).item()
    got = float(answer(logits, 0))
    expect(not math.isclose(got, -2.0, abs_tol=1e-4), "That is minus the logit.", "Logits are not yet probabilities.")
    expect(
        not math.isclose(got, -expected, rel_tol=1e-4),
        "The sign is wrong.",
        "A loss falls as the right answer gets likelier.",
    )
    probability = math.exp(-expected)
    expect(not math.isclose(got, probability, rel_tol=1e-4), "That is the probability.", "Minus its logarithm.")
    expect(
        math.isclose(got, expected, rel_tol=1e-4),
        f"Expected {expected:.4f}, got {got:.4f}.",
        "−log(softmax(logits)[label])",
    )
    large = float(answer(torch.tensor([1000.0, 0.0]), 1))
    expect(
        math.isclose(large, 1000.0, rel_tol=1e-4),
        f"For the logits [1000, 0] and label 1 the loss is 1000; you have {large}.",
        "exp(1000) overflows. Subtract the largest logit first, or use torch.logsumexp.",
    )
    other = float(answer(torch.tensor([0.0, 1000.0]), 0))
    expect(
        math.isclose(other, 1000.0, rel_tol=1e-4),
        f"For the logits [0, 1000] and label 0 the loss is 1000; you have {other}.",
        "The largest logit may stand anywhere.",
    )
