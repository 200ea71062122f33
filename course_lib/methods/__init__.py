"""The methods of fine-tuning as one registry: what may move, and what that costs.

`METHODS["lora"].apply(model, r=4)` makes a model trainable in that way,
`METHODS["lora"].count(config, r=4)` says how many parameters that is without a model.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from course_lib.errors import unknown
from course_lib.methods.shapes import parameter_shapes

FAMILIES = {
    "non-parametric": "nothing is trained: examples or documents go into the prompt",
    "full": "every parameter of the model",
    "selective": "some of the model's own parameters change",
    "additive": "new parts beside the model's own",
    "reparameterized": "a small description of a large change",
}
# What the first family has instead of methods: nothing to apply, nothing to count.
UNTRAINED = ("In-context learning", "Retrieval")


@dataclass(frozen=True)
class Paper:
    """A source: its title and its arXiv id, or its DOI where it is not on arXiv."""

    title: str
    id: str


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    family: one of FAMILIES; formula: what it does, in LaTeX; words: the same in words; lesson: the notebook that
    teaches it; mergeable: whether the result can be written into the model's own weights exactly, so that it costs
    nothing at inference.
    counter(config, *, name=default, …) → number of trainable parameters. Its keywords are the method's
    hyper-parameters, and it raises ValueError for every bad value: what it accepts, `build` can do.
    build(model, **all hyper-parameters) → the model with `requires_grad` set as the method asks.
    stored(config, **all hyper-parameters) → bytes of what has to be kept for one task; None: the trained parameters
    in fp32.
    penalty(model) → a term for the loss; after_step(model, step): called after each optimizer step, from 1.
    undecayed: parts of names of parameters for which 0 is not "no change", and that weight decay must leave alone;
    own_rates: part of a name → the learning rate that its parameters have whatever the others' is (undecayed too).
    """

    name: str
    title: str
    family: str
    paper: Paper
    formula: str
    words: str
    mergeable: bool
    lesson: str
    build: Callable[..., Any]
    counter: Callable[..., int]
    stored: Callable[..., int] | None = None
    penalty: Callable[[Any], Any] | None = None
    after_step: Callable[[Any, int], None] | None = None
    undecayed: tuple[str, ...] = ()
    own_rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise unknown("family", self.family, FAMILIES)

    @property
    def leaves_structure(self) -> bool:
        """Whether the model keeps its modules and names, so that another method can take over."""
        return self.family == "full" or self.name in ("feature_based", "last_layers", "bitfit")

    @property
    def hparams(self) -> dict[str, Any]:
        """The hyper-parameters and their defaults."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.counter).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    def complete(self, hparams: dict) -> dict[str, Any]:
        """`hparams` with the defaults filled in; raises ValueError for a name that the method does not have."""
        known = self.hparams
        for name in hparams:
            if name not in known:
                if not known:
                    raise ValueError(f"{self.name} has no hyper-parameters; got {name!r}.")
                raise unknown(f"hyper-parameter of {self.name}", name, known)
        return known | {name: _plain(value) for name, value in hparams.items()}

    def count(self, config, **hparams) -> int:
        """Number of trainable parameters, in closed form from the config alone.

        Raises ValueError for unknown names, bad values, and architectures that the method has no place in.
        """
        try:
            return self.counter(config, **self.complete(hparams))
        except TypeError as error:
            raise ValueError(f"{self.name}: one of {hparams} has a wrong type ({error}).") from error

    def file_bytes(self, config, **hparams) -> int:
        """Bytes of what has to be kept for one task, tensors only; the trained parameters count 4 bytes each."""
        if self.stored is None:
            return 4 * self.count(config, **hparams)
        self.count(config, **hparams)
        return self.stored(config, **self.complete(hparams))

    def apply(self, model, **hparams):
        """The model made trainable by this method; changed in place, or wrapped, so use what is returned.

        Raises ValueError as `count` does, before anything is changed.
        """
        before, _ = getattr(model, "fine_tuned_by", (None, None))
        if before in METHODS and not METHODS[before].leaves_structure:
            raise ValueError(f"This model carries {before} already: load a fresh one, then apply {self.name}.")
        self.count(model.config, **hparams)
        differing = {name for name, _ in model.named_parameters()} ^ set(parameter_shapes(model.config))
        if differing:
            raise ValueError(
                f"{type(model).__name__} and its config differ in {min(differing)}: apply {self.name} to the bare "
                "encoder or language model, such as models.encoder() gives (an encoder made without its pooler "
                "says so: config.add_pooling_layer = False)."
            )
        built = self.build(model, **self.complete(hparams))
        built.fine_tuned_by = (self.name, {name: _plain(value) for name, value in hparams.items()})
        return built


def _plain(value):
    """Iterables other than words and dictionaries as lists, which can be read twice and written to a file."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else value


class Registry(dict[str, Method]):
    """Methods by name; an unknown name raises ValueError with the near ones."""

    def add(self, method: Method) -> None:
        self[method.name] = method

    def __missing__(self, name: str) -> Method:
        raise unknown("method", name, self)


METHODS = Registry()

# The family files add their methods when they are imported, in the order of the tables and pictures.
from course_lib.methods import full, selective, sparse, prompts, additive, reparameterized  # noqa: E402, F401, I001
