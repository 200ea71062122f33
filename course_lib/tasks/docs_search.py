"""`docs_search`: from the summary line of a docstring to the text below it, in the documentation installed here.

Real text, read from source files at run time. No module is in two splits, nor are modules that copy from each other.
See data/docs_search/README.md, the data card.
"""

import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

from course_lib.paths import DATA
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
SPLITS = {"train": 0.70, "validation": 0.10, "test": 0.20}
# At most so many files a package and pairs a module, so that no package and no file is the echo of itself.
FILES, PER_MODULE = 300, 10
QUERY_WORDS, PASSAGE_WORDS, PASSAGE_CHARACTERS = 5, 15, 1000
# Two passages that begin alike are one for the reader, whatever comes after.
SAME = 150
# Pairs that share more of their runs of five words are nearly the same; a run that more pairs have says nothing.
ALIKE, COMMON = 0.4, 40
# Packages that only the test asks for.
UNSEEN = ("tornado", "hypothesis", "fontTools")
QUESTIONS = DATA / "docs_search" / "questions.csv"
DIMENSIONS = (384, 256, 128, 64, 32)
INFO = ("name", "module", "package", "family")


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
        if query and query[0].isalnum() and len(passage.split()) >= PASSAGE_WORDS:
            shown = f"{module}.{name}".replace(".__init__", "")
            found.append({"query": query, "passage": passage, "name": shown, "module": module})
    return found


def _kept() -> list[dict]:
    """The pairs of all packages; of those that are alike the first."""
    seen: set[str] = set()
    kept = []
    for package in PACKAGES:
        chosen = docstrings.files(package)
        random.Random(f"docs_search {package}").shuffle(chosen)
        for module, file in chosen[:FILES]:
            rows = pairs(module, file)
            random.Random(module).shuffle(rows)
            found = 0
            for row in rows:
                alike = {row["query"].lower(), row["passage"][:SAME].lower()}
                if not alike & seen and found < PER_MODULE:
                    seen |= alike
                    found += 1
                    kept.append(row | {"package": package})
    return kept


def shingles(text: str) -> set[str]:
    """All runs of five words (Broder, Compression and Complexity of Sequences 1997)."""
    words = text.lower().split()
    return {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def families(rows: Sequence[dict]) -> list[list[dict]]:
    """The rows by family: modules with a pair that is nearly one of another module's belong together."""
    family = {row["module"]: row["module"] for row in rows}

    def head(module: str) -> str:
        while family[module] != module:
            family[module] = module = family[family[module]]
        return module

    said = [shingles(f"{row['query']} {row['passage']}") for row in rows]
    holders = defaultdict(list)
    for i, runs in enumerate(said):
        for run in runs:
            holders[run].append(i)
    shared = Counter(pair for found in holders.values() if 1 < len(found) <= COMMON for pair in combinations(found, 2))
    for (i, j), common in shared.items():
        if common > ALIKE * len(said[i] | said[j]):
            family[head(rows[i]["module"])] = head(rows[j]["module"])
    found = defaultdict(list)
    for row in rows:
        named = head(row["module"])
        found[named].append(row | {"family": named})
    return list(found.values())


@cache
def questions() -> dict[str, str]:
    """What somebody might ask who does not know the documentation → the name of a definition that answers it."""
    with QUESTIONS.open(encoding="utf-8", newline="") as file:
        return {row["question"]: row["name"] for row in csv.DictReader(file)}


def _for_test(rows: Sequence[dict]) -> bool:
    """Whether a row is of UNSEEN packages, or answers a question: the test alone has such families."""
    return any(row["package"] in UNSEEN or row["name"] in questions().values() for row in rows)


def _collect() -> dict[str, list[dict]]:
    """The rows of every split; families of modules are dealt to the splits whole."""
    dealt = families(_kept())
    total = sum(map(len, dealt))
    splits = {name: [] for name in SPLITS}
    splits["test"] = [row for family in dealt if _for_test(family) for row in family]
    room = {name: share * total - len(splits[name]) for name, share in SPLITS.items()}
    filled = dict.fromkeys(SPLITS, 0)
    # The largest families first, each to the split whose room is least filled: so all get families of all sizes.
    for family in sorted((rows for rows in dealt if not _for_test(rows)), key=len, reverse=True):
        name = min(room, key=lambda one: filled[one] / room[one])
        splits[name] += family
        filled[name] += len(family)
    for found in splits.values():
        random.Random("docs_search").shuffle(found)
    return splits


@cache
def load() -> SearchTask:
    """The task; `info` holds name (of what is documented), module, package, and family (see `families`). Read once,
    then from the cache folder.

    Raises CourseError if a package that it reads is missing.
    """
    rows = docstrings.cached("docs_search", PACKAGES, [Path(__file__), QUESTIONS], _collect)

    def split(name: str) -> Pairs:
        query, passage, *info = (tuple(row[key] for row in rows[name]) for key in ("query", "passage", *INFO))
        return Pairs(query, passage, dict(zip(INFO, info, strict=True)))

    return SearchTask("docs_search", *map(split, SPLITS))


# Measures. A rank is the place of the right passage among all, 1 for the first; each query has one.


def places(scores: np.ndarray, answers: Sequence[int]) -> np.ndarray:
    """The rank of each query's right passage, by its column of scores (queries, passages); in a tie the worst, and so
    where scores are no numbers."""
    right = scores[np.arange(len(scores)), np.asarray(answers)]
    return scores.shape[1] - (scores < right[:, None]).sum(1)


def ranks(
    queries: np.ndarray,
    passages: np.ndarray,
    dimensions: Sequence[int] = DIMENSIONS,
    answers: Sequence[int] | None = None,
    combine: Callable[[np.ndarray], np.ndarray] = lambda scores: scores,
) -> np.ndarray:
    """The rank of each query's right passage, by cosine similarity of the first so many dimensions.

    queries, passages: (rows, width). answers: the row of each right passage; None where passage i answers query i.
    combine: makes of the similarities (queries, passages) the scores to rank by. Returns (queries, dimensions).
    """
    answers, found = range(len(queries)) if answers is None else answers, []
    for size in dimensions:
        q, p = (side[:, :size] / np.linalg.norm(side[:, :size], axis=1, keepdims=True) for side in (queries, passages))
        found.append(places(combine(q @ p.T), answers))
    return np.stack(found, axis=1)


def ndcg(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """NDCG@k of each rank: 1/log2(1 + rank) up to k, else 0 (Burges et al., ICML 2005, section 6)."""
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def mrr(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """1/rank up to k, else 0."""
    return np.where(ranks <= k, 1 / ranks, 0.0)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """Whether the right passage is among the first k."""
    return (ranks <= k).astype(float)
