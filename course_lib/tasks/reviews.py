"""`reviews`: what visitors wrote of the places of a small town; negative, mixed or positive.

See data/reviews/README.md, the data card.
"""

import csv
from functools import cache

from course_lib.errors import CourseError
from course_lib.paths import DATA
from course_lib.tasks import Split, Task

LABELS = ("negative", "mixed", "positive")


def read(split: str) -> Split:
    """The rows of data/reviews/<split>.csv; raises CourseError if the file is missing."""
    file = DATA / "reviews" / f"{split}.csv"
    if not file.exists():
        raise CourseError(
            f"data/reviews/{split}.csv is missing. It is part of the repository: `git checkout data/reviews`."
        )
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = tuple(LABELS.index(row["label"]) for row in rows)
    info = {column: tuple(row[column] for row in rows) for column in ("place", "kind")}
    return Split(tuple(row["text"] for row in rows), labels, info)


@cache
def load() -> Task:
    """The task; `info` holds the place and the kind of difficulty of each review."""
    return Task("reviews", LABELS, read("train"), read("validation"), read("test"))
