"""`docs_topic`: the first sentence of a docstring, to be sorted into the area of the library it comes from.

Real text, read from the source files of the packages that are installed with the course. No module is in two
splits, and no text occurs twice. What is read is kept in the cache folder until a package changes.
"""

import random
from collections import defaultdict
from functools import cache
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.tasks import Split, Task, docstrings
from course_lib.tasks.docstrings import first_sentence

# Area → where its text comes from. Several packages an area where one alone is too small.
AREAS = {
    "numerics": ("numpy", "scipy"),
    "machine learning": ("sklearn",),
    "plotting": ("matplotlib",),
    "tables": ("pandas",),
    "neural networks": ("torch.nn", "torch.optim", "torch.distributed", "torch.autograd"),
    "language models": ("transformers.models", "peft", "sentence_transformers"),
    "symbolic maths": ("sympy",),
    "graphs": ("networkx",),
    "fonts and images": ("fontTools", "PIL"),
    "web and servers": ("tornado", "jupyter_server", "httpx", "urllib3", "requests"),
}
LABELS = tuple(AREAS)
PER_AREA = {"train": 50, "validation": 30, "test": 50}
# At most so many lines a module, so that no area is the echo of one file.
PER_MODULE = 6
# Enough files for the lines we need, drawn with a fixed seed: reading all of transformers takes ten seconds.
FILES_PER_AREA = 220


def summaries(file: Path) -> list[str]:
    """The summary lines of the public functions and classes that a Python file defines."""
    lines = (first_sentence(docstring) for _, docstring in docstrings.definitions(file))
    return sorted({line for line in lines if line})


def _files(area: str) -> list[tuple[str, Path]]:
    """(module, file) pairs of an area, in an order that depends on the names only."""
    found = sorted(pair for package in AREAS[area] for pair in docstrings.files(package))
    random.Random(f"docs_topic {area}").shuffle(found)
    return found[:FILES_PER_AREA]


def _collect() -> dict[str, list[dict]]:
    """The rows of every split. Modules are dealt to the splits whole, texts are unique over all areas."""
    seen: set[str] = set()
    splits = defaultdict(list)
    for area in AREAS:
        wanted = dict(PER_AREA)
        for module, file in _files(area):
            if not any(wanted.values()):
                break
            lines = [line for line in summaries(file) if line.lower() not in seen]
            random.Random(module).shuffle(lines)
            # The split that is furthest from full takes the module.
            split = max(wanted, key=lambda s: wanted[s] / PER_AREA[s])
            lines = lines[: min(PER_MODULE, wanted[split])]
            seen.update(line.lower() for line in lines)
            wanted[split] -= len(lines)
            splits[split] += [{"text": line, "area": area, "module": module} for line in lines]
        if any(wanted.values()):
            raise CourseError(
                f"docs_topic found too few docstrings for {area!r} ({sum(wanted.values())} short). "
                "A package is installed without its source files."
            )
    return splits


def _split(rows: list[dict]) -> Split:
    return Split(
        tuple(r["text"] for r in rows),
        tuple(LABELS.index(r["area"]) for r in rows),
        {"module": tuple(r["module"] for r in rows)},
    )


@cache
def load() -> Task:
    """The task; `info` holds the module of each line. Read once, then from the cache folder.

    Raises CourseError if a package that it reads is missing.
    """
    packages = [package for packages in AREAS.values() for package in packages]
    rows = docstrings.cached("docs_topic", packages, [Path(__file__)], _collect)
    return Task("docs_topic", LABELS, *(_split(rows[name]) for name in ("train", "validation", "test")))
