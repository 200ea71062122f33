"""Errors that tell the reader what to do next."""

import difflib
from collections.abc import Iterable


class CourseError(RuntimeError):
    """Something about the reader's machine or files stands in the way; the message says how to mend it."""


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """A ValueError for a name that is not in `known`, naming the nearest ones first."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return ValueError(f"Unknown {what} {name!r}. {hint}Known: {', '.join(known)}.")
