"""Patterns with choices and slots, written down as text, and what they say when the slots are filled.

A file has sections, `[rule]`, and a pattern a line: `(one|two|)` is one of these or nothing, choices may hold choices;
`{slot}` is a fact; `{slot^}` with a capital, `{slot&}` with its article. Lines that begin with # are comments.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple

from course_lib.errors import unknown

# A fact, or something that gives one and may depend on what was said before.
Facts = Mapping[str, str | Callable[[Random], str]]


class Slot(NamedTuple):
    """Where a fact goes; marks: "^" and "&"."""

    name: str
    marks: str


# A pattern is a sequence of texts, slots, and choices between patterns.
Pattern = list["str | Slot | tuple[Pattern, ...]"]
_TOKEN = re.compile(r"\{(?P<name>\w+)(?P<marks>[&^]*)\}|(?P<mark>[(|)])|(?P<text>[^(){}|]+)")


def parse(text: str) -> Pattern:
    """A pattern from its text; raises ValueError where brackets do not match."""
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"This pattern has a stray {text[at]!r}: {text}")
        tokens.append(found)
        at = found.end()
    pattern, rest = _sequence(tokens)
    if rest:
        raise ValueError(f"This pattern has a {rest[0].group()!r} too many: {text}")
    return pattern


def _sequence(tokens: list[re.Match]) -> tuple[Pattern, list[re.Match]]:
    pattern: Pattern = []
    while tokens and tokens[0]["mark"] not in ("|", ")"):
        token, *tokens = tokens
        if token["name"]:
            pattern.append(Slot(token["name"], token["marks"]))
        elif token["mark"]:
            choice, tokens = _choice(tokens)
            pattern.append(choice)
        else:
            pattern.append(token["text"])
    return pattern, tokens


def _choice(tokens: list[re.Match]) -> tuple[tuple[Pattern, ...], list[re.Match]]:
    options = []
    while True:
        option, tokens = _sequence(tokens)
        options.append(option)
        if not tokens:
            raise ValueError("A pattern has a ( without its ).")
        token, *tokens = tokens
        if token["mark"] == ")":
            return tuple(options), tokens


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


class Grammar(dict[str, list[Pattern]]):
    """Rules by name, each a list of patterns."""

    @classmethod
    def read(cls, file: Path) -> "Grammar":
        """The rules of a file; raises ValueError for a pattern that cannot be read."""
        grammar, rule = cls(), ""
        for line in file.read_text(encoding="utf-8").splitlines():
            if found := re.fullmatch(r"\[([\w.]+)\]", line):
                rule = found.group(1)
                grammar[rule] = []
            elif line and not line.startswith("#"):
                grammar[rule].append(parse(line))
        return grammar

    def __missing__(self, rule: str) -> list[Pattern]:
        raise unknown("rule", rule, self)

    def say(self, rule: str, facts: Facts, draw: Random) -> str:
        """One of the rule's patterns, filled; raises ValueError for a rule or a fact that is not there."""
        return self.fill(draw.choice(self[rule]), facts, draw)

    def fill(self, pattern: Pattern, facts: Facts, draw: Random) -> str:
        """This very pattern, filled; raises ValueError for a fact that is not there."""
        return _tidy(self._fill(pattern, facts, draw))

    def _fill(self, pattern: Pattern, facts: Facts, draw: Random) -> str:
        parts = []
        for part in pattern:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Slot):
                parts.append(_fact(part, facts, draw))
            else:
                parts.append(self._fill(draw.choice(part), facts, draw))
        return "".join(parts)


def _fact(slot: Slot, facts: Facts, draw: Random) -> str:
    if slot.name not in facts:
        raise unknown("fact", slot.name, facts)
    value = facts[slot.name]
    text = value(draw) if callable(value) else value
    if "&" in slot.marks:
        text = article(text)
    return text[:1].upper() + text[1:] if "^" in slot.marks else text


def _tidy(text: str) -> str:
    """What empty choices left behind: spaces in a row, or before a stop."""
    text = re.sub(r" +", " ", text).strip()
    return re.sub(r" ([.,;:?!])", r"\1", text)


def skeletons(pattern: Pattern) -> int:
    """How many different sentences a pattern gives before its slots are filled."""
    count = 1
    for part in pattern:
        if isinstance(part, tuple) and not isinstance(part, Slot):
            count *= sum(map(skeletons, part))
    return count
