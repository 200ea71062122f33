"""`instructions`: an instruction, often with a text, and the answer: 29 kinds of task about places and trams.

See data/instructions/README.md, the data card.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import islice
from operator import add
from random import Random

from course_lib import town
from course_lib.errors import unknown
from course_lib.grammar import Grammar
from course_lib.paths import DATA
from course_lib.tasks import Pairs, WritingTask
from course_lib.town import Place

import numpy as np

# Ways of asking that are kept for testing, and kinds of task that are.
KEPT_WAYS = 2
KEPT_KINDS = ("kind", "number", "closes", "seats", "last_stop")
NEW_PLACES, NEW_WAYS, NEW_KINDS = "new places", "new phrasings", "new kinds"
# Further parts of the test: what the base model has read of the town, and what only fine-tuning tells.
TOWN, TAUGHT = "the town", "taught"
TRAIN, VALIDATION = 9600, 240
# Of each kind in a test split.
TEST_OF_KIND = {NEW_PLACES: 12, NEW_WAYS: 12, NEW_KINDS: 40}
# Places of the town that training, validation and test may ask about.
PARTS = (180, 40, 80)
# Facts that can be taught, see `by_heart`.
FACTS = 120
MISSING = "The text does not say."
# Characters of a letter, at most.
LONGEST = 700
# What texts about a place are.
STYLES = ("guide", "opinion", "notice")


@cache
def grammar() -> Grammar:
    """The ways of asking."""
    return Grammar.read(DATA / "instructions" / "grammar.txt")


@dataclass(frozen=True)
class Example:
    """An instruction, the text it is about (or nothing), and the answer."""

    kind: str
    instruction: str
    context: str
    output: str

    @property
    def prompt(self) -> str:
        """What the user says: the text, then the instruction."""
        return f"{self.context}\n\n{self.instruction}" if self.context else self.instruction


@dataclass
class World:
    """Where examples take their places from: strangers of names that no example had, and a part of the town.

    None is named after its owner: that would give an answer away.
    """

    draw: Random
    known: Sequence[Place]
    taken: set[str]

    def stranger(self) -> Place:
        """A made-up place; no other example has its name."""
        while (one := town.place(self.draw)).name in self.taken or _says_owner(one):
            pass
        self.taken.add(one.name)
        return one

    def townsman(self) -> Place:
        """A place of the town."""
        return self.draw.choice(self.known)


def _says_owner(one: Place) -> bool:
    return one.owner.last in one.name


# What an example is made of: facts that the instruction may name, the text, the answer.
Made = tuple[dict[str, str], str, str]
KINDS: dict[str, Callable[[World], Made]] = {}


def kind(make: Callable[[World], Made]) -> Callable[[World], Made]:
    """Register a kind of task under the function's name."""
    KINDS[make.__name__] = make
    return make


def prose(
    one: Place, topics: Sequence[str], draw: Random, needed: Sequence[str], others: Sequence[str] = town.TOPICS
) -> str:
    """A text about the place with these topics and up to three others, which has all that is needed word for word."""
    others = [topic for topic in others if topic not in topics]
    while True:
        chosen = [*topics, *draw.sample(others, draw.randrange(1, 4))]
        draw.shuffle(chosen)
        text = town.about(one, draw.choice(STYLES), chosen, draw)
        if all(value in text for value in needed):
            return text


def _without(*topics: str) -> list[str]:
    return [topic for topic in town.TOPICS if topic not in topics]


def extract(name: str, topic: str, answer: Callable[[Place], str], needed: Callable[[Place], Sequence[str]]) -> None:
    """Register the kind that asks for one topic of a text."""

    def make(world: World) -> Made:
        one = world.stranger()
        return {"name": one.name}, prose(one, [topic], world.draw, [one.name, *needed(one)]), answer(one)

    KINDS[name] = make


extract("owner", "owner", lambda p: p.owner.name, lambda p: [p.owner.name])
extract("hours", "hours", lambda p: f"{p.opens} to {p.closes}", lambda p: [p.opens, p.closes])
extract("since", "since", lambda p: str(p.since), lambda p: [str(p.since)])
extract("street", "where", lambda p: p.street, lambda p: [p.street])
extract("closed", "closed", lambda p: p.closed, lambda p: [p.closed])
extract("price", "price", lambda p: p.price, lambda p: [p.price])
extract("tram", "tram", lambda p: f"tram {p.line} to {p.stop}", lambda p: [p.stop, str(p.line)])
extract("district", "where", lambda p: p.district, lambda p: [p.district])
extract("seats", "seats", lambda p: str(p.seats), lambda p: [str(p.seats)])
extract("number", "where", lambda p: str(p.number), lambda p: [p.street, str(p.number)])
extract("closes", "hours", lambda p: p.closes, lambda p: [p.opens, p.closes])
extract("kind", "where", lambda p: p.kind, lambda p: [p.kind])


@kind
def offer(world: World) -> Made:
    """Ask for the one thing that the text says to be on offer."""
    one = world.stranger()
    while one.other in (text := prose(one, ["offer"], world.draw, [one.name, one.offer], _without("feature"))):
        pass
    return {"name": one.name}, text, one.offer


@kind
def is_closed(world: World) -> Made:
    """Yes or no."""
    one = world.stranger()
    other = world.draw.choice([day for day in town.lexicon()["days"] if day != one.closed])
    day = world.draw.choice((one.closed, other))
    text = prose(one, ["closed"], world.draw, [one.name, one.closed])
    return {"name": one.name, "day": day}, text, "Yes." if day == one.closed else "No."


@kind
def missing(world: World) -> Made:
    """A question about a text that does not say the answer, but for one time in three."""
    draw, one = world.draw, world.stranger()
    answers = {"owner": one.owner.name, "since": str(one.since), "closed": one.closed, "price": one.price}
    asked = draw.choice(list(answers))
    question = grammar().fill(draw.choice(_ways(asked, kept=False)), {"name": one.name}, draw)
    if draw.random() < 1 / 3:
        return {"question": question}, prose(one, [asked], draw, [one.name, answers[asked]]), answers[asked]
    while True:
        topics = draw.sample([topic for topic in town.TOPICS if topic != asked], draw.randrange(2, 5))
        text = town.about(one, draw.choice(STYLES), topics, draw)
        if answers[asked] not in text.replace(one.name, ""):
            return {"question": question}, text, MISSING


@kind
def group(world: World) -> Made:
    """Classify a place."""
    # A tailor's could be called craft as well as shopping.
    while (one := world.stranger()).kind == "tailor's":
        pass
    named = town.lexicon()["kinds"][one.kind]["group"]
    return {}, prose(one, ["offer"], world.draw, [one.kind, one.offer]), {"shop": "shopping"}.get(named, named)


def two(world: World, topic: str, value: Callable[[Place], str]) -> tuple[list[Place], str]:
    """Two places that differ in a value, and a text about each that says it."""
    places = [world.stranger(), world.stranger()]
    while value(places[0]) == value(places[1]):
        places[1] = world.stranger()
    return places, "\n\n".join(prose(one, [topic], world.draw, [one.name, value(one)]) for one in places)


@kind
def older(world: World) -> Made:
    """Compare years."""
    places, text = two(world, "since", lambda p: str(p.since))
    return {}, text, min(places, key=lambda p: p.since).name


def _some(world: World, few: int) -> tuple[list[str], str]:
    """The names of so many places or up to three, and a text about each, which speaks of no other, nor of seats, which
    are called places, too."""
    places = [world.stranger() for _ in range(world.draw.randrange(few, 4))]
    texts = [prose(one, [], world.draw, [one.name], _without("where", "seats")) for one in places]
    return [one.name for one in places], "\n\n".join(texts)


@kind
def count(world: World) -> Made:
    """Count."""
    names, text = _some(world, 1)
    return {}, text, str(len(names))


@kind
def offers(world: World) -> Made:
    """Make a list of two things that are in one text."""
    one = world.stranger()
    text = prose(one, ["offer"], world.draw, [one.name, one.offer, one.other], _without("feature"))
    return {"name": one.name}, text, "\n".join(f"- {it}" for it in sorted((one.offer, one.other), key=text.index))


@kind
def names(world: World) -> Made:
    """Make a list."""
    found, text = _some(world, 2)
    return {}, text, "\n".join(f"- {name}" for name in found)


def _timetable(world: World) -> tuple[list[str], str]:
    """The stops of a tram line, and its timetable."""
    line = town.tram(world.draw, world.draw.randrange(1, 100))
    _, *rows, _ = town.timetable(line, world.draw).split("\n")
    return [row.rsplit(" ", 1)[0] for row in rows], "\n".join([f"Tram {line.line}", *rows])


@kind
def first_stop(world: World) -> Made:
    """Look up a place in an order."""
    stops, text = _timetable(world)
    return {}, text, stops[0]


@kind
def last_stop(world: World) -> Made:
    """Look up a place in an order."""
    stops, text = _timetable(world)
    return {}, text, stops[-1]


@kind
def form(world: World) -> Made:
    """Fill in a form."""
    one = world.stranger()
    text = prose(one, ["owner"], world.draw, [one.name, one.kind, one.owner.name])
    return {}, text, f"Name: {one.name}\nKind: {one.kind}\nOwner: {one.owner.name}"


@kind
def table(world: World) -> Made:
    """Make a table."""
    one = world.stranger()
    text = prose(one, ["hours"], world.draw, [one.name, one.opens, one.closes])
    return {}, text, f"Name | Opens | Closes\n{one.name} | {one.opens} | {one.closes}"


def _statement(one: Place, draw: Random) -> tuple[str, str]:
    """A sentence about a place, and the question that belongs to it."""
    verb, rest, asks = draw.choice(
        (
            ("is", f"closed on {one.closed}s", "Is {}"),
            ("is", f"in {one.district}", "Is {}"),
            ("opens", f"at {one.opens}", "Does {} open"),
            ("has", one.feature, "Does {} have"),
            ("belongs", f"to {one.owner.name}", "Does {} belong"),
        )
    )
    return f"{one.name} {verb} {rest}.", f"{asks.format(one.name)} {rest}?"


@kind
def question(world: World) -> Made:
    """Rewrite as a question."""
    said, asked = _statement(world.stranger(), world.draw)
    return {"sentence": said}, "", asked


@kind
def short(world: World) -> Made:
    """Shorten."""
    one = world.stranger()
    return {}, prose(one, [], world.draw, [one.name, one.kind, one.district]), f"{one.name}: {one.kind}, {one.district}"


@kind
def writer(world: World) -> Made:
    """Find who signed."""
    while len(text := town.letter(world.stranger(), world.draw)) > LONGEST:
        pass
    return {}, text, text.split("\n")[-1].split()[-1]


def recall(name: str, answer: Callable[[Place], str]) -> None:
    """Register the kind that asks for a fact of the town, without a text."""

    def make(world: World) -> Made:
        one = world.townsman()
        return {"name": one.name, "kind": one.kind, "district": one.district}, "", answer(one)

    KINDS[name] = make


recall("recall_owner", lambda p: p.owner.name)
recall("recall_since", lambda p: str(p.since))

USUAL_KINDS = tuple(name for name in KINDS if name not in KEPT_KINDS)
# Of these, what is asked of a place from memory, and what is about a new place.
_FROM_MEMORY = ("recall_owner", "recall_since")
_READ_KINDS = tuple(name for name in USUAL_KINDS if name not in _FROM_MEMORY)


def _ways(name: str, kept: bool) -> Sequence:
    """The patterns that ask for a kind of task: those kept for testing, or the others."""
    return grammar()[name][-KEPT_WAYS:] if kept else grammar()[name][:-KEPT_WAYS]


def examples(world: World, kinds: Sequence[str], kept_ways: bool = False) -> Iterator[Example]:
    """Examples without end, one of each kind in turn, asked in the usual ways or in those that are kept for testing."""
    while True:
        for name in kinds:
            facts, context, output = KINDS[name](world)
            way = world.draw.choice(_ways(name, kept_ways))
            yield Example(name, grammar().fill(way, facts, world.draw), context, output)


def _pairs(made: Sequence[Example], split: str) -> Pairs:
    columns = {name: tuple(getattr(one, name) for one in made) for name in ("kind", "instruction", "context")}
    return Pairs(
        tuple(one.prompt for one in made), tuple(one.output for one in made), {**columns, "split": (split,) * len(made)}
    )


def _remembered(places: Sequence[Place], draw: Random, kept_ways: bool) -> list[Example]:
    """Every place asked about once, in each way of _FROM_MEMORY."""
    worlds = (World(draw, [one], set()) for one in places)
    return [one for world in worlds for one in islice(examples(world, _FROM_MEMORY, kept_ways), len(_FROM_MEMORY))]


@cache
def _townsmen() -> tuple[tuple[Place, ...], ...]:
    """The places of the town that training, validation and test may ask about; none is named after its owner."""
    here = [one for one in town.town().places if not _says_owner(one)]
    Random("townsmen").shuffle(here)
    return tuple(tuple(here.pop() for _ in range(size)) for size in PARTS)


@cache
def _taught() -> tuple[Place, ...]:
    """Made-up places with facts that no text has told."""
    world = World(Random("taught"), [], {one.name for one in town.town().places})
    return tuple(world.stranger() for _ in range(FACTS // len(_FROM_MEMORY)))


def by_heart(part: str, times: int) -> Pairs:
    """Training examples that ask from memory for FACTS facts, each `times` times: those of "taught", which the base
    model cannot know and the test asks for in other words; or of "the town", which it has read, and the test does not
    ask for. Raises ValueError for another part."""
    if part not in (TAUGHT, TOWN):
        raise unknown("part", part, (TAUGHT, TOWN))
    places = _taught() if part == TAUGHT else _townsmen()[0][: len(_taught())]
    draw = Random(f"by heart {part}")
    return _pairs([one for _ in range(times) for one in _remembered(places, draw, kept_ways=False)], "training")


def load() -> WritingTask:
    """The task; no place of one split is in another.

    `info` of each split: kind (of task), instruction, context, and split, which tells the parts of the test split:
    "new places", "new phrasings" and "new kinds", both about new places, too; and two of questions from memory, in the
    phrasings of the second: "the town", which the base model has read of, and "taught", see `by_heart`.
    """
    return _made()[0]


def of_new_kinds() -> Pairs:
    """Training examples of the kinds that are else kept for testing, about places of their own: to see what these
    kinds are like where they are trained."""
    return _made()[1]


@cache
def _made() -> tuple[WritingTask, Pairs]:
    draw, taken = Random("instructions"), {one.name for one in (*town.town().places, *_taught())}
    train, validation, test = (World(draw, places, taken) for places in _townsmen())
    tests = {
        NEW_PLACES: examples(test, _READ_KINDS), NEW_WAYS: examples(test, _READ_KINDS, kept_ways=True),
        NEW_KINDS: examples(test, KEPT_KINDS),
    }  # fmt: skip
    sizes = {name: TEST_OF_KIND[name] * len(KEPT_KINDS if name == NEW_KINDS else _READ_KINDS) for name in tests}
    parts = [_pairs(list(islice(stream, sizes[name])), name) for name, stream in tests.items()]
    parts += [
        _pairs(_remembered(places, draw, True), name) for name, places in ((TOWN, test.known), (TAUGHT, _taught()))
    ]
    task = WritingTask(
        "instructions",
        train=_pairs(list(islice(examples(train, USUAL_KINDS), TRAIN)), "training"),
        validation=_pairs(list(islice(examples(validation, USUAL_KINDS), VALIDATION)), "validation"),
        test=reduce(add, parts),
        metric=exact_match,
        dummy=most_frequent,
        chat=True,
    )
    per_kind = TRAIN // len(USUAL_KINDS)
    return task, _pairs(list(islice(examples(train, KEPT_KINDS), per_kind * len(KEPT_KINDS))), "training")


def hits(written: Sequence[str], split: Pairs) -> list[bool]:
    """Whether each answer is the right one, letter by letter but for spaces around it."""
    return [said.strip() == right for said, right in zip(written, split.labels, strict=True)]


def loose_hits(written: Sequence[str], split: Pairs) -> list[bool]:
    """The same for a model that nobody told how to answer: what it says after its first lines, as many as the right
    answer has, does not count, nor do "It says", a capital, and a final stop."""

    def bare(text: str) -> str:
        return re.sub(r"^(it says|the answer is) ", "", text.strip().lower()).rstrip(". ")

    return [
        bare("\n".join(said.strip().split("\n")[: len(right.split("\n"))])) == bare(right)
        for said, right in zip(written, split.labels, strict=True)
    ]


def exact_match(written: Sequence[str], split: Pairs) -> float:
    """Share of right answers."""
    return float(np.mean(hits(written, split)))


def by_kind(values: Sequence[float], split: Pairs) -> dict[str, float]:
    """The mean over each kind of task of values that belong to the split's rows."""
    found = defaultdict(list)
    for name, value in zip(split.info["kind"], values, strict=True):
        found[name].append(value)
    return {name: float(np.mean(rows)) for name, rows in found.items()}


def rouge(written: Sequence[str], split: Pairs) -> list[float]:
    """ROUGE-L of each answer (Lin, ACL Workshop 2004, section 3): F1 of the longest common subsequence of words."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [scorer.score(right, said)["rougeL"].fmeasure for said, right in zip(written, split.labels, strict=True)]


def most_frequent(split: Pairs) -> list[str]:
    """For each row the most frequent answer of its kind in training: what one says without having read anything."""
    train = load().train
    answers = defaultdict(Counter)
    for name, output in zip(train.info["kind"], train.labels, strict=True):
        answers[name][output] += 1
    return [answers[name].most_common(1)[0][0] if name in answers else "" for name in split.info["kind"]]
