"""`text_to_table`: `table_to_text` turned around, from sentences back to the table that they were made of."""

from collections.abc import Sequence
from functools import cache

from course_lib.tasks import Pairs, WritingTask, table_to_text

_ATTRIBUTES = {called: key for key, called in table_to_text.CALLED.items()}


def _turned(split: Pairs) -> Pairs:
    tables = tuple(prompt.removesuffix(table_to_text.ASK) for prompt in split.texts)
    return Pairs(tuple(f"{text}\n" for text in split.labels), tables, split.info)


@cache
def load() -> WritingTask:
    """The task; `info` as in `table_to_text`."""
    other = table_to_text.load()
    return WritingTask(
        "text_to_table",
        train=_turned(other.train),
        validation=_turned(other.validation),
        test=_turned(other.test),
        metric=slot_f1,
        dummy=lambda split: ["" for _ in split.texts],
    )


def read(text: str) -> set[tuple[str, str]]:
    """The attributes with their values in a text that has them as `table_to_text.prompt` writes them; one that no table
    has keeps the name that the text gives it, so that it counts as wrong."""
    parts = (part.split(table_to_text.ARROW) for part in text.strip().split(table_to_text.BETWEEN))
    return {(_ATTRIBUTES.get(part[0], part[0]), part[1]) for part in parts if len(part) == 2}


def slot_f1(written: Sequence[str], split: Pairs) -> float:
    """F1 of all attributes with their values: the harmonic mean of the shares that are right of those written and those
    asked for."""
    found, asked = [read(text) for text in written], [set(table) for table in split.info["table"]]
    right = sum(len(one & other) for one, other in zip(found, asked, strict=True))
    return 2 * right / max(1, sum(map(len, found)) + sum(map(len, asked)))
