"""Predicted bytes are plain arithmetic; counted bytes equal a count by hand on networks small enough for it."""

from functools import partial
from types import SimpleNamespace

from course_lib.memory.estimate import PARTS, STATE_BYTES, predict
from course_lib.memory.measure import count_step

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

ROWS, WIDTH, HIDDEN, LABELS = 5, 4, 8, 3
PARAMETERS = WIDTH * HIDDEN + HIDDEN + HIDDEN * LABELS + LABELS


class Small(nn.Module):
    """Two layers with a ReLU between them, and dropout where it is asked for."""

    def __init__(self, dropout: float | None = None):
        super().__init__()
        middle = [nn.ReLU()] if dropout is None else [nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(nn.Linear(WIDTH, HIDDEN), *middle, nn.Linear(HIDDEN, LABELS))

    def forward(self, x, labels):
        return SimpleNamespace(loss=nn.functional.cross_entropy(self.layers(x), labels))


def batch() -> dict:
    return {"x": torch.randn(ROWS, WIDTH), "labels": torch.arange(ROWS) % LABELS}


@given(
    parameters=st.integers(0, 10**12),
    share=st.fractions(0, 1),
    size=st.sampled_from([1, 2, 4]),
    optimizer=st.sampled_from(sorted(STATE_BYTES)),
)
def test_predict_is_arithmetic(parameters, share, size, optimizer):
    trainable = int(parameters * share)
    assert predict(parameters, trainable, bytes_per_weight=size, optimizer=optimizer) == {
        "weights": size * parameters,
        "gradients": size * trainable,
        "optimizer states": STATE_BYTES[optimizer] * trainable,
    }


def test_full_adamw_takes_sixteen_bytes_a_parameter():
    assert sum(predict(1000, 1000).values()) == 16_000


@pytest.mark.parametrize(("parameters", "trainable"), [(10, 11), (10, -1), (-1, 0)])
def test_predict_refuses_impossible_numbers(parameters, trainable):
    with pytest.raises(ValueError, match="trainable must lie between 0 and"):
        predict(parameters, trainable)


def test_predict_refuses_unknown_optimizers():
    with pytest.raises(KeyError):
        predict(10, 10, optimizer="lion")


def test_counted_bytes_equal_a_count_by_hand():
    # Kept for the backward pass: the ReLU's output, the log-probabilities, and one number of the loss.
    assert count_step(Small(), batch()) == {
        "weights": 4 * PARAMETERS,
        "gradients": 4 * PARAMETERS,
        "optimizer states": 8 * PARAMETERS,
        "activations": 4 * (ROWS * HIDDEN + ROWS * LABELS + 1),
    }


def test_activations_grow_with_the_batch():
    once = batch()
    thrice = {name: torch.cat([tensor] * 3) for name, tensor in once.items()}
    small, large = (count_step(Small(), rows)["activations"] for rows in (once, thrice))
    assert large - 4 == 3 * (small - 4)


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (torch.optim.AdamW, "adamw"),
        (torch.optim.SGD, "sgd"),
        (partial(torch.optim.SGD, momentum=0.9), "sgd_momentum"),
        (torch.optim.RMSprop, "rmsprop"),
    ],
)
def test_counted_equals_predicted_for_every_optimizer(optimizer, name):
    counted = count_step(Small(), batch(), optimizer=optimizer)
    predicted = predict(PARAMETERS, PARAMETERS, optimizer=name)
    assert counted == predicted | {"activations": counted["activations"]}
    assert tuple(counted) == PARTS[:4]


def test_frozen_parameters_have_no_gradients_and_no_states():
    model = Small()
    model.layers[0].requires_grad_(False)
    head = HIDDEN * LABELS + LABELS
    counted = count_step(model, batch())
    assert counted["weights"] == 4 * PARAMETERS
    assert (counted["gradients"], counted["optimizer states"]) == (4 * head, 8 * head)


def test_half_precision_halves_the_bytes():
    rows = batch()
    rows["x"] = rows["x"].bfloat16()
    counted = count_step(Small().bfloat16(), rows)
    assert (counted["weights"], counted["gradients"]) == (2 * PARAMETERS, 2 * PARAMETERS)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(training):
    model = Small(dropout=0.5).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = batch()
    state = torch.get_rng_state()
    count_step(model, rows)
    assert torch.equal(torch.get_rng_state(), state)
    assert {module.training for module in model.modules()} == {training}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
