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


def saved_names(config, modules_to_save: Modules) -> set[str]:
    """Names of the parameters in the modules that are trained and saved whole beside a method's own.

    As in peft, a key stands for every module whose name ends with it. Raises ValueError for a key that none has.
    """
    if isinstance(modules_to_save, str):
        raise ValueError(f"modules_to_save must be a list of names, such as [{modules_to_save!r}].")
    names, found = list(parameter_shapes(config)), set()
    for key in modules_to_save or ():
        inside = {name for name in names if any(path.endswith(key) for path in _paths(name))}
        if not inside and not (key == "lm_head" and key in linears(config)):
            modules = {part for name in names for part in name.split(".")[:-1] if not part.isdigit()}
            raise unknown("module to save", key, modules)
        found |= inside
    return found


def _paths(name: str) -> list[str]:
    """The modules that hold a parameter, from the outermost in."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def saved(config, modules_to_save: Modules) -> int:
    """Number of parameters in `saved_names`; a tied output head gets a copy of its own, as peft gives it."""
    shapes, names = parameter_shapes(config), saved_names(config, modules_to_save)
    tied_head = "lm_head" in (modules_to_save or ()) and not any(name.startswith("lm_head.") for name in names)
    return sum(size(shapes[name]) for name in names) + (linears(config)["lm_head"].weights if tied_head else 0)


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
