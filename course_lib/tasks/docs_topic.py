"""`docs_topic`: the first sentence of a docstring, to be sorted into the area of the library it comes from.

Real text, read from the source files of the packages that are installed with the course. No module is in two
splits, and no text occurs twice. What is read is kept in the cache folder until a package changes.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import random
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.paths import CACHE
from course_lib.tasks import Split, Task

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
# Where the name to install differs from the name to import.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "sentence_transformers": "sentence-transformers",
    "jupyter_server": "jupyter-server",
}
SKIPPED_FOLDERS = {
    "tests",
    "test",
    "testing",
    "_testing",
    "vendor",
    "_vendor",
    "vendored",
    "extern",
    "externals",
    "__pycache__",
}


# A full stop after one of these ends no sentence.
ABBREVIATIONS = ("e.g", "i.e", "cf", "fig", "eq", "sec", "vs", "al", "resp", "approx", "w.r.t")
SENTENCE_END = re.compile("".join(rf"(?<!\b{re.escape(short)}\.)" for short in ABBREVIATIONS) + r"(?<=[.!?])\s", re.I)


def first_sentence(docstring: str) -> str | None:
    """The summary of a docstring on one line; None if it is no sentence of 8 to 40 words."""
    summary = " ".join(docstring.strip().split("\n\n")[0].split())
    summary = SENTENCE_END.split(summary)[0]
    words = summary.split()
    prose = summary.endswith((".", "!", "?")) and not re.search(r">>>|https?:|[{}<>|]|::|\*optional\*", summary)
    letters = sum(map(str.isalpha, summary)) / max(len(summary), 1)
    return summary if prose and 8 <= len(words) <= 40 and letters > 0.7 else None


def summaries(file: Path) -> list[str]:
    """The summary lines of the public functions and classes that a Python file defines."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = (n for n in ast.walk(tree) if isinstance(n, kinds) and not n.name.startswith("_"))
    lines = (first_sentence(ast.get_docstring(node) or "") for node in nodes)
    return sorted({line for line in lines if line})


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package.split(".")[0])
    return Path(spec.submodule_search_locations[0]).joinpath(*package.split(".")[1:])


def _files(area: str) -> list[tuple[str, Path]]:
    """(module, file) pairs of an area, in an order that depends on the names only."""
    found = []
    for package in AREAS[area]:
        root = _folder(package)
        for file in root.rglob("*.py"):
            inner = file.relative_to(root)
            if not SKIPPED_FOLDERS.intersection(inner.parts):
                found.append((f"{package}.{'.'.join(inner.with_suffix('').parts)}", file))
    found.sort()
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


def _cached() -> Path:
    """The cache file for the installed versions of the packages that are read, and of this file.

    On a machine that lacks one of them (a rented GPU), the newest file that was brought along.
    """
    packages = sorted({package.split(".")[0] for packages in AREAS.values() for package in packages})
    try:
        versions = [importlib.metadata.version(DISTRIBUTIONS.get(package, package)) for package in packages]
    except importlib.metadata.PackageNotFoundError:
        brought = sorted(CACHE.glob("docs_topic-*.json"), key=lambda file: file.stat().st_mtime)
        if brought:
            return brought[-1]
        raise
    key = hashlib.sha256("|".join([*versions, Path(__file__).read_text()]).encode()).hexdigest()[:12]
    return CACHE / f"docs_topic-{key}.json"


def _split(rows: list[dict]) -> Split:
    return Split(
        tuple(r["text"] for r in rows),
        tuple(LABELS.index(r["area"]) for r in rows),
        {"module": tuple(r["module"] for r in rows)},
    )


@cache
def load() -> Task:
    """The task; `info` holds the module of each line. Read once, then from the cache folder.

    Raises CourseError if a package it reads is missing.
    """
    try:
        file = _cached()
    except importlib.metadata.PackageNotFoundError as missing:
        raise CourseError(
            f"docs_topic reads the docstrings of {missing.name}, which is not installed. "
            "Run `make lab`, or install it with pip."
        ) from missing
    if file.exists():
        rows = json.loads(file.read_text())
    else:
        rows = _collect()
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written whole or not at all: two lessons may start at the same time.
        draft = file.with_suffix(f".{random.getrandbits(32)}")
        draft.write_text(json.dumps(rows))
        draft.replace(file)
    return Task("docs_topic", LABELS, *(_split(rows[name]) for name in ("train", "validation", "test")))
