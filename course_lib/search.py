"""Search by meaning: every passage is a vector, a query too, and what lies near is found."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

from course_lib import models
from course_lib.errors import CourseError
from course_lib.methods.storage import merge
from course_lib.paths import CACHE
from course_lib.tasks import Pairs, SearchTask, docs_search

import numpy as np
from peft import PeftModel

SAVED, VECTORS = CACHE / "search", "vectors.npy"
MAX_LENGTH = 128


def vectors(model: models.Embedder, tokenizer, texts) -> np.ndarray:
    """Vectors of length 1, (texts, width)."""
    found = models.embed(model, tokenizer, texts, max_length=MAX_LENGTH).numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def ranks(model: models.Embedder, tokenizer, split: Pairs) -> np.ndarray:
    """The rank of each query's passage among all of the split: (rows, docs_search.DIMENSIONS)."""
    return docs_search.ranks(*(vectors(model, tokenizer, texts) for texts in (split.texts, split.labels)))


def lexical_ranks(split: Pairs) -> np.ndarray:
    """The same, (rows,), by words in common: cosine similarity of TF-IDF vectors, without any model."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(split.labels)
    scores = (words.transform(split.texts) @ words.transform(split.labels).T).toarray()
    return (scores >= np.diag(scores)[:, None]).sum(1)


@dataclass
class Index:
    """A model with the vectors of all passages of a task, and the names of what they document."""

    model: models.Embedder
    tokenizer: object
    passages: np.ndarray
    names: list[str]
    texts: list[str]

    @classmethod
    def build(cls, model: models.Embedder, tokenizer, task: SearchTask) -> "Index":
        """Encode every passage once; a query is shown with its summary line in front."""
        splits = (task.train, task.validation, task.test)
        texts = [text for split in splits for text in split.labels]
        shown = [f"{query} {text}" for split in splits for query, text in zip(split.texts, split.labels, strict=True)]
        names = [name for split in splits for name in split.info["name"]]
        return cls(model, tokenizer, vectors(model, tokenizer, texts), names, shown)

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
