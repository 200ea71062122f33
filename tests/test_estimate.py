"""The closed form, the traced step and the counted one agree: for every architecture, method and setting."""

from course_lib import models
from course_lib.memory import optimizers
from course_lib.memory.estimate import NO_CHECKPOINTING, PARTS, estimate
from course_lib.memory.measure import count_step
from course_lib.memory.trace import trace, with_loss
from course_lib.methods import METHODS

import pytest
import tiny
import torch

ROWS, LENGTH = 8, 40
ARCHITECTURES = [name for name in tiny.ARCHITECTURES if name != "t5-small"]
NEEDED = {"adalora": {"total_step": 100}, "vera": {"r": 16}, "oft": {"oft_block_size": 8}}


def needed(method: str) -> dict:
    return NEEDED.get(method, {})


def rows(model, device: str = "cpu") -> dict[str, torch.Tensor]:
    ids = torch.ones(ROWS, LENGTH, dtype=torch.long, device=device)
    labels = ids[:, 0] if isinstance(model, models.Classifier) else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def small(name: str, method: str, *, dtype=torch.float32, checkpointing: bool = False, **hparams):
    """A tiny model with a loss, made trainable by the method, on the CPU; and its config."""
    model = tiny.tiny(name).to(dtype)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    config = model.config
    if getattr(model, "pooler", None) is not None:
        # Nothing asks for it here.
        model.pooler, config.add_pooling_layer = None, False
    model = METHODS[method].apply(model, **hparams)
    model = models.Classifier(model, 2) if config.model_type in ("bert", "roberta", "distilbert") else model
    if checkpointing:
        model.activation_checkpointing_enable()
    return model, config


def within(predicted: int, real: int, share: float) -> bool:
    return abs(predicted - real) <= share * real


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_saved_tensors_are_those_of_a_real_step(method, name, checkpointing):
    hparams = needed(method)
    try:
        model, config = small(name, method, checkpointing=checkpointing and method not in NO_CHECKPOINTING, **hparams)
        METHODS[method].count(config, **hparams)
    except ValueError as reason:
        pytest.skip(str(reason)[:60])
    if not any(p.requires_grad for p in model.parameters()):
        pytest.skip("nothing trains")
    if checkpointing and method in NO_CHECKPOINTING:
        pytest.skip("no checkpointing")
    counted = count_step(model, rows(model))
    predicted = estimate(
        config, method, batch_size=ROWS, seq_len=LENGTH, dtype="fp32", device="cpu",
        gradient_checkpointing=checkpointing, **hparams,
    )  # fmt: skip
    assert predicted.parts["gradients"] == counted["gradients"]
    saved = predicted.parts["activations"] + predicted.parts["logits and loss"]
    assert within(saved, counted["activations"], 0.03), (saved, counted["activations"])
