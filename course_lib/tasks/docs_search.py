"""`docs_search`: from the summary line of a docstring to the text below it, in the documentation installed here.

Real text, read from source files at run time. No module is in two splits, and no text occurs twice. See
data/docs_search/README.md, the data card.
"""

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from course_lib.tasks import Pairs, SearchTask, docstrings
from course_lib.tasks.docstrings import STANDARD_LIBRARY, first_sentence

import numpy as np

PACKAGES = (
    STANDARD_LIBRARY, "numpy", "scipy", "sklearn", "matplotlib", "pandas", "torch", "transformers", "peft",
    "sentence_transformers", "accelerate", "sympy", "networkx", "tornado", "jupyter_server", "httpx", "requests",
    "urllib3", "PIL", "fontTools", "IPython", "ipywidgets", "traitlets", "jinja2", "hypothesis", "safetensors",
    "huggingface_hub", "datasets",
)  # fmt: skip
# Shares of the pairs.
SPLITS = {"train": 0.74, "validation": 0.06, "test": 0.20}
# At most so many files a package and pairs a module, so that no package and no file is the echo of itself.
FILES, PER_MODULE = 300, 10
QUERY_WORDS, PASSAGE_WORDS, PASSAGE_CHARACTERS = 5, 15, 1000
# Two passages that begin alike are one for the reader, whatever comes after.
SAME = 150
DIMENSIONS = (384, 256, 128, 64, 32)
INFO = ("name", "module")


def clean(body: str) -> str:
    """What stands below a summary, on one line: underlines of headings, prompts and marks of cross-references left out,
    cut at a word."""
    text = re.sub(r"^\s*[-=~^ ]{3,}\s*$", "", body, flags=re.MULTILINE)
    text = re.sub(r":\w+:`~?([^`<]+?)`", r"\1", text)
    text = " ".join(text.replace(">>>", "").replace("``", "").split())
    return text if len(text) <= PASSAGE_CHARACTERS else text[:PASSAGE_CHARACTERS].rsplit(" ", 1)[0]


def pairs(module: str, file: Path) -> list[dict]:
    """Query, passage, and name of the public definitions of a file whose docstrings have both."""
    found = []
    for name, docstring in docstrings.definitions(file):
        summary, _, body = docstring.strip().partition("\n\n")
        query, passage = first_sentence(summary, least=QUERY_WORDS), clean(body)
        if query and len(passage.split()) >= PASSAGE_WORDS:
            found.append({"query": query, "passage": passage, "name": f"{module}.{name}", "module": module})
    return found


def _collect() -> dict[str, list[dict]]:
    """The rows of every split. Modules are dealt to the splits whole; of rows that are alike the first is kept."""
    splits: dict[str, list[dict]] = {name: [] for name in SPLITS}
    seen: set[str] = set()
    for package in PACKAGES:
        chosen = docstrings.files(package)
        random.Random(f"docs_search {package}").shuffle(chosen)
        for module, file in chosen[:FILES]:
            rows = pairs(module, file)
            random.Random(module).shuffle(rows)
            kept = []
            for row in rows:
                alike = {row["query"].lower(), row["passage"][:SAME].lower()}
                if not alike & seen and len(kept) < PER_MODULE:
                    seen |= alike
                    kept.append(row)
            # The split that is furthest from its share takes the module.
            split = min(SPLITS, key=lambda name: len(splits[name]) / SPLITS[name])
            splits[split] += kept
    return splits


@cache
def load() -> SearchTask:
    """The task; `info` holds name (of what is documented) and module. Read once, then from the cache folder.

    Raises CourseError if a package that it reads is missing.
    """
    rows = docstrings.cached("docs_search", PACKAGES, [Path(__file__)], _collect)

    def split(name: str) -> Pairs:
        query, passage, *info = (tuple(row[key] for row in rows[name]) for key in ("query", "passage", *INFO))
        return Pairs(query, passage, dict(zip(INFO, info, strict=True)))

    return SearchTask("docs_search", *map(split, SPLITS))


# Measures. A rank is the place of the right passage among all, 1 for the first; each query has one.


def ranks(queries: np.ndarray, passages: np.ndarray, dimensions: Sequence[int] = DIMENSIONS) -> np.ndarray:
    """The rank of passage i for query i, by cosine similarity of the first so many dimensions; in a tie the worst.

    queries, passages: (rows, width). Returns (rows, dimensions).
    """
    found = []
    for size in dimensions:
        q, p = (side[:, :size] / np.linalg.norm(side[:, :size], axis=1, keepdims=True) for side in (queries, passages))
        scores = q @ p.T
        found.append((scores >= np.diag(scores)[:, None]).sum(1))
    return np.stack(found, axis=1)


def ndcg(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """NDCG@k of each rank: 1/log2(1 + rank) up to k, else 0 (Järvelin and Kekäläinen, ACM TOIS 20, 2002)."""
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def mrr(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """1/rank up to k, else 0."""
    return np.where(ranks <= k, 1 / ranks, 0.0)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """Whether the right passage is among the first k."""
    return (ranks <= k).astype(float)
