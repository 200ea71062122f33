"""Which modules a method works on: peft's rules for `target_modules` and `modules_to_save`, from the config alone."""

import re
from collections.abc import Iterable

from course_lib.errors import unknown
from course_lib.methods.shapes import Linear, linears, parameter_shapes, size

Modules = str | Iterable[str] | None


def fits(name: str, keys: Iterable[str]) -> bool:
    """Whether a module's name is one of the keys, or ends with one after a dot."""
    return any(name == key or name.endswith(f".{key}") for key in keys)


def targets(config, target_modules: Modules, default: dict[str, list[str]] | None = None) -> dict[str, Linear]:
    """Module name → size of the linear layers that `target_modules` means.

    "all-linear": all but the output head. Another string: a regular expression for the whole name. A list: names or
    their last parts. None: what `default` (model type → list) has. Raises ValueError where nothing fits, or where an
    entry of the list fits nothing.
    """
    known = linears(config)
    if target_modules is None:
        if config.model_type not in (default or {}):
            raise ValueError(
                f"peft has no default target_modules for {config.model_type}: give target_modules='all-linear', or "
                f"some of {_endings(known)}."
            )
        keys = default[config.model_type]
    elif isinstance(target_modules, str):
        if target_modules.lower() == "all-linear":
            return {name: layer for name, layer in known.items() if name != "lm_head"}
        return _matching(target_modules, known)
    else:
        keys = list(target_modules)
        for key in keys:
            if not any(fits(name, [key]) for name in known):
                raise unknown("target module", key, {*_endings(known), "all-linear"})
    found = {name: layer for name, layer in known.items() if fits(name, keys)}
    if not found:
        raise ValueError(f"target_modules={keys!r} name no linear layer of this model; it has {_endings(known)}.")
    return found


def _matching(pattern: str, known: dict[str, Linear]) -> dict[str, Linear]:
    try:
        found = {name: layer for name, layer in known.items() if re.fullmatch(pattern, name)}
    except re.error as error:
        raise ValueError(f"target_modules={pattern!r} is no regular expression: {error}.") from error
    if not found:
        raise ValueError(
            f"target_modules={pattern!r} is read as a regular expression for whole module names, and fits none; for a "
            f"single kind of layer write a list. This model has {_endings(known)}, or 'all-linear'."
        )
    return found


def _endings(known: dict[str, Linear]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in known})


def saved(config, modules_to_save: Iterable[str] | None) -> int:
    """Number of parameters in the modules that are trained and saved whole beside a method's own.

    A tied output head gets a copy of its own, as peft gives it. Raises ValueError for a name that no module has.
    """
    total = 0
    for key in modules_to_save or ():
        sizes = [size(shape) for name, shape in parameter_shapes(config).items() if f".{key}." in f".{name}"]
        if not sizes and key == "lm_head" and "lm_head" in linears(config):
            sizes = [linears(config)["lm_head"].weights]
        if not sizes:
            modules = {part for name in parameter_shapes(config) for part in name.split(".")[:-1] if not part.isdigit()}
            raise unknown("module to save", key, modules)
        total += sum(sizes)
    return total


def without_saved(found: dict[str, Linear], modules_to_save: Iterable[str] | None) -> dict[str, Linear]:
    """The targets that are not trained whole anyway."""
    parts = list(modules_to_save or ())
    left = {name: layer for name, layer in found.items() if not any(f".{key}." in f".{name}." for key in parts)}
    if not left:
        raise ValueError(f"modules_to_save={parts!r} leaves no target module: there is nothing to adapt.")
    return left


def check_rank(name: str, rank: int, found: dict[str, Linear]) -> None:
    """Raise ValueError unless 1 ≤ rank ≤ the smaller side of every target."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more; got {rank!r}.")
    tight = min(found, key=lambda module: min(found[module]))
    if rank > min(found[tight]):
        raise ValueError(
            f"{name}={rank} is above the largest rank that {tight} ({found[tight].outputs} × {found[tight].inputs}) "
            f"can have: {name} must be {min(found[tight])} or less."
        )


def check_positive(**values: int) -> None:
    """Raise ValueError unless every value is a whole number of 1 or more."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of 1 or more; got {value!r}.")
