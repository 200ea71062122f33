"""The methods of fine-tuning as one registry: what may move, and what that costs.

`METHODS["last_layers"].apply(model, num_layers=2)` makes a model trainable in that way,
`METHODS["last_layers"].count(config, num_layers=2)` says how many parameters that is without a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from course_lib.errors import unknown

FAMILIES = {
    "non-parametric": "nothing is trained: examples or documents go into the prompt",
    "full": "every parameter of the model",
    "selective": "some of the model's own parameters",
    "additive": "new parameters beside the model's own",
    "reparameterized": "a small description of a large change",
}


@dataclass(frozen=True)
class Paper:
    """A source: its title and its arXiv id, or its DOI where it is not on arXiv."""

    title: str
    id: str


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    apply(model, **hparams) returns the model with `requires_grad` set as the method asks;
    count(config, **hparams) returns the number of trainable parameters, from the config alone;
    lesson is the notebook that teaches it. Both raise ValueError for hyper-parameters the model has no place for.
    """

    name: str
    title: str
    family: str
    paper: Paper
    formula: str
    mergeable: bool
    lesson: str
    apply: Callable[..., Any]
    count: Callable[..., int]

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise unknown("family", self.family, FAMILIES)


class Registry(dict[str, Method]):
    """Methods by name; an unknown name raises ValueError with the near ones."""

    def add(self, method: Method) -> None:
        self[method.name] = method

    def __missing__(self, name: str) -> Method:
        raise unknown("method", name, self)


METHODS = Registry()

# The family files add their methods when they are imported.
from course_lib.methods import full, selective  # noqa: E402, F401
