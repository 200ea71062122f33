"""Search by meaning: every passage is a vector, a query too, and what lies near is found."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from course_lib import models
from course_lib.errors import CourseError
from course_lib.methods.storage import merge
from course_lib.paths import CACHE
from course_lib.tasks import Pairs, SearchTask, docs_search
from course_lib.training import native_bf16

import numpy as np
import torch
from peft import PeftModel
from scipy.stats import rankdata

SAVED, VECTORS = CACHE / "search", "vectors.npy"
MAX_LENGTH = 128


def vectors(model: models.Embedder, tokenizer, texts, *, max_length: int = MAX_LENGTH) -> np.ndarray:
    """Vectors of length 1, (texts, width); zeros where the model gives no numbers (its training diverged).

    In the precision of training, for all models alike: bf16 autocast where it is fast.
    """
    with torch.autocast(model.device.type, torch.bfloat16, enabled=native_bf16()):
        found = models.embed(model, tokenizer, texts, max_length=max_length).float().numpy()
    return np.nan_to_num(found / np.linalg.norm(found, axis=1, keepdims=True))


def ranks(model: models.Embedder, tokenizer, split: Pairs, **options) -> np.ndarray:
    """The rank of each query's passage in the split, (rows, docs_search.DIMENSIONS); options: of `vectors`."""
    return docs_search.ranks(*(vectors(model, tokenizer, texts, **options) for texts in (split.texts, split.labels)))


def turned(queries: np.ndarray, passages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, (rows, width), turned so that the strongest directions of the passages come first: what is kept of them
    when they are cut is then as much as can be, without any training (principal components, not centred)."""
    directions = np.linalg.eigh(passages.T @ passages)[1][:, ::-1]
    return queries @ directions, passages @ directions


def bm25(queries: Sequence[str], passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Scores, (queries, passages), by words in common: Robertson and Zaragoza, The Probabilistic Relevance Framework
    (2009), section 3.4.3, with Lucene's inverse document frequency."""
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(dtype=np.float32, token_pattern=r"[^\W_]+").fit(passages)
    counts, asked = words.transform(passages).toarray(), words.transform(queries)
    lengths = counts.sum(1, keepdims=True)
    holding = (counts > 0).sum(0)
    rarity = np.log1p((len(passages) - holding + 0.5) / (holding + 0.5))
    weights = counts * (k1 + 1) / (counts + k1 * (1 - b + b * lengths / lengths.mean()))
    return asked @ (weights * rarity).T


def lexical_ranks(split: Pairs, **options) -> np.ndarray:
    """The rank of each query's passage, (rows,), by words in common, without any model; options: of `bm25`."""
    return docs_search.places(bm25(split.texts, split.labels, **options), range(len(split)))


def reciprocal(scores: np.ndarray, k: int = 60) -> np.ndarray:
    """1 / (k + rank) of each passage for each query, (queries, passages): of two searches these can be added up, unlike
    scores. Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009, section 2); in a tie both have the worse
    rank."""
    return 1 / (k + rankdata(-scores, method="max", axis=1))


def whole_texts(split: Pairs) -> list[str]:
    """Summary line and body of each row: what a search that is used looks through."""
    return [f"{query} {text}" for query, text in zip(split.texts, split.labels, strict=True)]


def _all_rows(task: SearchTask) -> Pairs:
    return task.train + task.validation + task.test


@dataclass
class Index:
    """A model with the vectors of all docstrings of a task, and the names of what they document."""

    model: models.Embedder
    tokenizer: object
    passages: np.ndarray
    names: list[str]
    texts: list[str]

    @classmethod
    def build(cls, model: models.Embedder, tokenizer, task: SearchTask) -> "Index":
        """Encode every docstring once: summary line and body."""
        rows = _all_rows(task)
        texts = whole_texts(rows)
        return cls(model, tokenizer, vectors(model, tokenizer, texts), list(rows.info["name"]), texts)

    def covers(self, task: SearchTask) -> bool:
        """Whether it was built of this task's docstrings, as they are now."""
        return self.texts == whole_texts(_all_rows(task))

    def find(self, query: str, k: int = 10) -> list[tuple[float, str, str]]:
        """Similarity, name and text of the k nearest; raises ValueError for an empty query."""
        if not query.strip():
            raise ValueError("Type what you look for.")
        scores = self.passages @ vectors(self.model, self.tokenizer, [query])[0]
        return [(float(scores[i]), self.names[i], self.texts[i]) for i in np.argsort(-scores)[:k]]

    def save(self, folder: Path = SAVED) -> None:
        """Keep the model, an adapter merged into it, and the vectors; the vectors last, so that a search that has them
        has all."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / VECTORS).unlink(missing_ok=True)
        encoder = copy.deepcopy(self.model.encoder)
        (merge(encoder) if isinstance(encoder, PeftModel) else encoder).save_pretrained(folder / "model")
        (folder / "texts.json").write_text(json.dumps({"names": self.names, "texts": self.texts}))
        np.save(folder / "draft.npy", self.passages)
        (folder / "draft.npy").replace(folder / VECTORS)

    @classmethod
    def load(cls, folder: Path = SAVED) -> "Index":
        """What was saved; raises CourseError if nothing was."""
        if not (folder / VECTORS).exists():
            raise CourseError(
                "There is no tuned search yet: run lesson 07, or `course record embedding`, which take it along."
            )
        model, tokenizer = models.embedder()
        model.encoder = type(model.encoder).from_pretrained(folder / "model", add_pooling_layer=False)
        read = json.loads((folder / "texts.json").read_text())
        return cls(model.eval(), tokenizer, np.load(folder / VECTORS), read["names"], read["texts"])
