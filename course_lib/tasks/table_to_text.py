"""`table_to_text`: a table of attributes of a place into sentences that say all of it, and nothing else.

See data/table_to_text/README.md, the data card.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import combinations
from random import Random

from course_lib import town
from course_lib.grammar import Grammar, article
from course_lib.paths import DATA
from course_lib.tasks import Pairs, WritingTask

Table = tuple[tuple[str, str], ...]

# What may be told beside name and kind: the topic, and the attributes that it brings along.
TOPICS = {
    "district": ("district",), "address": ("address",), "near": ("near",), "owner": ("owner",), "since": ("since",),
    "hours": ("opens", "closes"), "closed": ("closed",), "price": ("price",), "offer": ("offer",),
    "feature": ("feature",), "tram": ("tram", "stop"), "seats": ("seats",),
}  # fmt: skip
FEWEST, MOST = 2, 4
# Topics that never meet in training: the test split's "new combinations" have at least one of these pairs.
APART = (
    {"owner", "tram"}, {"hours", "feature"}, {"since", "seats"}, {"near", "closed"}, {"district", "price"},
    {"address", "offer"},
)  # fmt: skip
TRAIN, VALIDATION, TEST, REFERENCES = 2400, 200, 100, 6
NEW_PLACES, NEW_COMBINATIONS = "new places", "new combinations"


# What the prompt calls the attributes: the names that the town's forms have, which are laid out otherwise.
CALLED = {
    "name": "Name", "kind": "Kind", "district": "District", "address": "Address", "near": "Near", "owner": "Owner",
    "since": "Since", "opens": "Opens", "closes": "Closes", "closed": "Closed on", "price": "Prices",
    "offer": "Offers", "feature": "Has", "tram": "Tram", "stop": "Stop", "seats": "Seats",
}  # fmt: skip
ARROW, BETWEEN = " -> ", "; "
# What stands between table and text: words that the language model has learned to tell a form after.
ASK = "\nIn words:\n"


@cache
def grammar() -> Grammar:
    """The patterns of the sentences."""
    return Grammar.read(DATA / "table_to_text" / "grammar.txt")


def prompt(table: Table) -> str:
    """The table as the model reads it, in a line: "Name -> The Fern and Bee; Kind -> gallery" and so on; and ASK."""
    return BETWEEN.join(f"{CALLED[key]}{ARROW}{value}" for key, value in table) + ASK


def _values(one: town.Place) -> dict[str, str]:
    return {
        "name": one.name, "kind": one.kind, "district": one.district, "address": f"{one.number} {one.street}",
        "near": one.near, "owner": one.owner.name, "since": str(one.since), "opens": one.opens, "closes": one.closes,
        "closed": one.closed, "price": one.price, "offer": one.offer, "feature": one.feature, "tram": str(one.line),
        "stop": one.stop, "seats": str(one.seats),
    }  # fmt: skip


def tabulate(one: town.Place, topics: Sequence[str]) -> Table:
    """The table of a place: name, kind, and the attributes of these topics."""
    values = _values(one)
    keys = ["name", "kind", *(key for topic in TOPICS if topic in topics for key in TOPICS[topic])]
    return tuple((key, values[key]) for key in keys)


def tell(table: Table, draw: Random) -> str:
    """One of the many texts that say what the table says, in its order."""
    told = dict(table)
    told["it"] = lambda draw: grammar().say("it", told, draw)
    topics = [topic for topic, keys in TOPICS.items() if keys[0] in told]
    return " ".join(grammar().say(rule, told, draw) for rule in ("open", *topics))


def meets(topics: Sequence[str]) -> bool:
    """Whether two topics are among them that never meet in training."""
    return any(pair <= set(topics) for pair in APART)


def _tables(draw: Random, new_combinations: bool, known: set[str]) -> Iterator[Table]:
    """Tables of made-up places without end; no name twice, and none that is known."""
    choices = [
        topics
        for size in range(FEWEST, MOST + 1)
        for topics in combinations(TOPICS, size)
        if meets(topics) == new_combinations
    ]
    by_size = {size: [topics for topics in choices if len(topics) == size] for size in range(FEWEST, MOST + 1)}
    while True:
        one = town.place(draw)
        if {one.name, one.near, one.owner.name} & known or one.feature.endswith(one.kind):
            # A garden that has a garden: no one could tell whether a text says both.
            continue
        known |= {one.name, one.near, one.owner.name}
        # Every size as often: else the long tables, of which there are most, would be nearly all.
        yield tabulate(one, draw.choice(by_size[draw.randrange(FEWEST, MOST + 1)]))


def _pairs(tables: Sequence[Table], kinds: Sequence[str], draw: Random, references: int = 1) -> Pairs:
    texts = [tuple(tell(table, draw) for _ in range(references)) for table in tables]
    info = {"table": tuple(tables), "references": tuple(texts), "kind": tuple(kinds)}
    return Pairs(tuple(map(prompt, tables)), tuple(said[0] for said in texts), info)


@cache
def load() -> WritingTask:
    """The task; the places of its three splits differ.

    `info` of each split: table; references, all texts that BLEU compares with; and kind, which tells in the test split
    "new places" from "new combinations".
    """
    draw, known = Random("table_to_text"), {place.name for place in town.town().places}
    usual, unusual = _tables(draw, False, known), _tables(draw, True, known)

    def take(tables, n):
        return [next(tables) for _ in range(n)]

    test = take(usual, TEST) + take(unusual, TEST)
    validation, train = take(usual, VALIDATION), take(usual, TRAIN)
    return WritingTask(
        "table_to_text",
        train=_pairs(train, ["training"] * TRAIN, draw),
        validation=_pairs(validation, ["validation"] * VALIDATION, draw, REFERENCES),
        test=_pairs(test, [NEW_PLACES] * TEST + [NEW_COMBINATIONS] * TEST, draw, REFERENCES),
        metric=slot_accuracy,
        dummy=lambda split: [template(table) for table in split.info["table"]],
    )


# What a text says and what the table says.

# Attributes whose values could be mistaken for one another are of one class; all others are names.
_CLASSES = {"kind": "thing", "feature": "thing", "since": "number", "tram": "number", "seats": "number",
            "opens": "time", "closes": "time", "closed": "day", "price": "price", "offer": "offer"}  # fmt: skip
# What a text may say as often as it likes.
_FREE = ("name", "kind")


def _either(values: Iterable[str]) -> str:
    return "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))


@cache
def _speaks() -> re.Pattern:
    """Finds every value that a text mentions, the longest where there are several; a group a class."""
    words = town.lexicon()
    kinds = words["kinds"]
    word = f"(?:{_either(town.names())})"
    title = _either(kind.removesuffix("'s").title() for kind in kinds)
    # Two words or more, or one with 's: a single one may just begin a sentence.
    more = rf"(?: (?:and )?(?:{word}|{title})(?!\w)(?:'s)?)"
    name = rf"(?:\d+ )?(?:The )?{word}(?:'s{more}*|{more}+)|(?:{_either(words['districts'])})"
    things = {_bare(feature) for feature in words["features"]} | set(kinds)
    closed = {"offer": [offer for kind in kinds.values() for offer in kind["offers"]], "thing": things,
              "price": words["prices"]}  # fmt: skip
    groups = [f"(?P<name>{name})", *(f"(?P<{group}>(?i:{_either(values)}))" for group, values in closed.items())]
    groups += [f"(?P<day>{_either(words['days'])})", r"(?P<time>\d+:\d+)", r"(?P<number>\d+)"]
    return re.compile(rf"(?<!\w)(?:{'|'.join(groups)})s?(?!\w)")


def _bare(value: str) -> str:
    """A value as it may be mentioned: without the article, or the 's of an owner."""
    return value.removeprefix("a ").removesuffix("'s")


def mentions(text: str) -> Counter:
    """(class, value) → how often a text mentions it."""
    found = ((match.lastgroup, match.group(match.lastgroup)) for match in _speaks().finditer(text))
    return Counter((kind, _bare(value if kind in ("name", "day") else value.lower())) for kind, value in found)


def errors(table: Table, text: str) -> int:
    """Slot errors of one text: values that are missing, or too many (invented, or said once more; name and kind may be
    said again). A value in place of another of its class counts once; Wen et al. (arXiv 1508.01745, section 5.1), whose
    measure this is, count it twice. In a text with arrows, which copies the table, every value is wrong.
    """
    if ARROW.strip() in text:
        return len(table)
    asked = Counter((_CLASSES.get(key, "name"), _bare(value)) for key, value in table)
    said = mentions(text)
    for key, value in table:
        if key in _FREE:
            slot = (_CLASSES.get(key, "name"), _bare(value))
            said[slot] = min(said[slot], asked[slot])
    missing, extra = asked - said, said - asked
    classes = {kind for kind, _ in missing | extra}

    def total(slots: Counter, kind: str) -> int:
        return sum(times for (other, _), times in slots.items() if other == kind)

    return sum(max(total(missing, kind), total(extra, kind)) for kind in classes)


def slot_error_rate(written: Sequence[str], split: Pairs) -> float:
    """All slot errors by all slots; 0 is best, and more than 1 is possible."""
    tables = split.info["table"]
    wrong = sum(errors(table, text) for table, text in zip(tables, written, strict=True))
    return wrong / sum(map(len, tables))


def slot_accuracy(written: Sequence[str], split: Pairs) -> float:
    """1 − slot error rate."""
    return 1 - slot_error_rate(written, split)


def bleu(written: Sequence[str], split: Pairs) -> float:
    """BLEU (Papineni et al., ACL 2002) of all texts against all references, 0 to 100: sacrebleu's default."""
    from sacrebleu import corpus_bleu

    return corpus_bleu(list(written), [list(texts) for texts in zip(*split.info["references"], strict=True)]).score


def template(table: Table) -> str:
    """The table read out: what a program without any model says."""
    told = dict(table)
    rest = [f"Its {key} is {value}." for key, value in table if key not in ("name", "kind")]
    return " ".join([f"{told['name']} is {article(told['kind'])}.", *rest])
