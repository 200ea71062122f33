"""Docstrings of the packages that are installed here: real text, read at run time and kept in the cache folder.

Nothing of it is stored in the repository, and what is read is always the same for the same package versions.
"""

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.paths import CACHE

STANDARD_LIBRARY = "the standard library"
# Where the name to install differs from the name to import.
DISTRIBUTIONS = {
    "PIL": "pillow", "sklearn": "scikit-learn", "sentence_transformers": "sentence-transformers",
    "jupyter_server": "jupyter-server", "IPython": "ipython", "huggingface_hub": "huggingface-hub",
}  # fmt: skip
SKIPPED_FOLDERS = {
    "tests", "test", "testing", "_testing", "vendor", "_vendor", "vendored", "extern", "externals", "__pycache__",
    "site-packages", "dist-packages", "idlelib", "lib2to3", "ensurepip", "turtledemo",
}  # fmt: skip
# A full stop after one of these ends no sentence.
ABBREVIATIONS = ("e.g", "i.e", "cf", "fig", "eq", "sec", "vs", "al", "resp", "approx", "w.r.t")
SENTENCE_END = re.compile("".join(rf"(?<!\b{re.escape(short)}\.)" for short in ABBREVIATIONS) + r"(?<=[.!?])\s", re.I)


def first_sentence(docstring: str, least: int = 8, most: int = 40) -> str | None:
    """The summary of a docstring on one line; None if it is no sentence of so many words."""
    summary = " ".join(docstring.strip().split("\n\n")[0].split())
    summary = SENTENCE_END.split(summary)[0]
    prose = summary.endswith((".", "!", "?")) and not re.search(r">>>|https?:|[{}<>|]|::|\*optional\*", summary)
    letters = sum(map(str.isalpha, summary)) / max(len(summary), 1)
    return summary if prose and least <= len(summary.split()) <= most and letters > 0.7 else None


def files(package: str) -> list[tuple[str, Path]]:
    """(module, file) of a package, a part of one (torch.nn) or STANDARD_LIBRARY, sorted; no tests, nothing vendored."""
    if package == STANDARD_LIBRARY:
        root, head = Path(sysconfig.get_path("stdlib")), ""
    else:
        top, *inner = package.split(".")
        spec = importlib.util.find_spec(top)
        root, head = Path(spec.submodule_search_locations[0]).joinpath(*inner), f"{package}."
    found = []
    for file in root.rglob("*.py"):
        inner = file.relative_to(root)
        if not SKIPPED_FOLDERS.intersection(inner.parts):
            found.append((head + ".".join(inner.with_suffix("").parts), file))
    return sorted(found)


def definitions(file: Path) -> Iterator[tuple[str, str]]:
    """Name within the module ("Line.length") and docstring of each public function, class and method in a file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _within(tree, "")


def _within(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(child)
            if docstring and not child.name.startswith("_"):
                yield prefix + child.name, docstring
            yield from _within(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _within(child, prefix)


def cached(name: str, packages: Sequence[str], code: Sequence[Path], collect: Callable[[], dict]) -> dict:
    """What `collect` reads, kept in the cache folder for these versions of the packages and of the code that reads.

    On a machine that lacks one of them (a rented GPU), the newest file that was brought along. Raises CourseError
    if there is none.
    """
    try:
        file = CACHE / f"{name}-{_key(packages, code)}.json"
    except importlib.metadata.PackageNotFoundError as missing:
        brought = sorted(CACHE.glob(f"{name}-*.json"), key=lambda file: file.stat().st_mtime)
        if not brought:
            raise CourseError(
                f"{name} reads the docstrings of {missing.name}, which is not installed. "
                "Run `make lab`, or install it with pip."
            ) from missing
        file = brought[-1]
    if file.exists():
        return json.loads(file.read_text())
    # Syntax trees are many objects and no cycles: beside loaded libraries, the search for cycles would double the time.
    gc.disable()
    try:
        rows = collect()
    finally:
        gc.enable()
    file.parent.mkdir(parents=True, exist_ok=True)
    # Written whole or not at all: two lessons may start at the same time.
    draft = file.with_suffix(f".{random.getrandbits(32)}")
    draft.write_text(json.dumps(rows))
    draft.replace(file)
    return rows


def _key(packages: Sequence[str], code: Sequence[Path]) -> str:
    tops = sorted({package.split(".")[0] for package in packages} - {STANDARD_LIBRARY})
    versions = [importlib.metadata.version(DISTRIBUTIONS.get(top, top)) for top in tops]
    read = [Path(file).read_text() for file in (*code, __file__)]
    return hashlib.sha256("|".join([sysconfig.get_python_version(), *versions, *read]).encode()).hexdigest()[:12]
