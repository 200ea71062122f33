"""A small fictional town, and as much text about it as one likes: the world that the lessons on language models share.

Every fact is known. The town itself is fixed; most texts are about strangers, places that are made up for one text and
restate their facts within it, so that a model trained on them learns to use what it reads, and not only to remember.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import count, pairwise
from random import Random

from course_lib.grammar import Facts, Grammar
from course_lib.paths import DATA

TOWN = "Brindlemouth"
PLACES, PEOPLE, EVENTS, LINES = 400, 240, 80, 9
LAST_CLOSING = 23 * 60 + 30
# What is told of a place, beside its name, kind and district.
TOPICS = ("where", "owner", "since", "hours", "closed", "price", "offer", "feature", "tram", "seats")


@dataclass(frozen=True)
class Person:
    """Somebody: `she` says which pronouns."""

    first: str
    last: str
    she: bool
    job: str
    home: str
    hobby: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    def pronouns(self, role: str) -> dict[str, str]:
        """The facts `role`_subject, `role`_object and the like."""
        subject, other, possessive = ("she", "her", "her") if self.she else ("he", "him", "his")
        return {
            f"{role}_subject": subject, f"{role}_object": other, f"{role}_pronoun": other,
            f"{role}_possessive": possessive,
        }  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Somewhere. Times are "7:30", since a year, seats a number of people; near and stop are names."""

    name: str
    kind: str
    district: str
    street: str
    number: int
    near: str
    owner: Person
    since: int
    opens: str
    closes: str
    closed: str
    price: str
    offer: str
    other: str
    feature: str
    line: int
    stop: str
    seats: int


@dataclass(frozen=True)
class Event:
    """Something that happens at a place on a day of the year."""

    event: str
    topic: str
    place: Place
    date: int
    month: str
    starts: str
    ticket: int


@dataclass(frozen=True)
class Line:
    """A tram line: its stops in order, when it first leaves, the minutes between two stops and between two trams."""

    line: int
    stops: tuple[str, ...]
    start: int
    ride: int
    every: int


@dataclass(frozen=True)
class Town:
    """All that is fixed."""

    places: tuple[Place, ...]
    people: tuple[Person, ...]
    events: tuple[Event, ...]
    lines: tuple[Line, ...]


@cache
def lexicon() -> dict:
    """The words and names that everything is made of."""
    return json.loads((DATA / "town" / "lexicon.json").read_text(encoding="utf-8"))


@cache
def grammar() -> Grammar:
    """The patterns of the texts."""
    return Grammar.read(DATA / "town" / "grammar.txt")


def names() -> list[str]:
    """Every word that names are made of."""
    kinds = ("place adjectives", "place nouns", "surnames", "she", "he", "street stems", "street types", "districts")
    return sorted({word for kind in kinds for entry in lexicon()[kind] for word in entry.split()})


def _clock(minutes: int) -> str:
    return f"{minutes // 60}:{minutes % 60:02}"


def _street(draw: Random) -> str:
    return f"{draw.choice(lexicon()['street stems'])} {draw.choice(lexicon()['street types'])}"


def _place_name(draw: Random, kind: str, owner: Person) -> str:
    words = lexicon()
    adjective, noun = draw.choice(words["place adjectives"]), draw.choice(words["place nouns"])
    first, second = draw.sample(words["place nouns"], 2)
    title = kind.removesuffix("'s").title()
    names = (
        f"The {adjective} {noun}",
        f"The {adjective} {noun}",
        f"{first} and {second}",
        f"The {first} and {second}",
        f"{owner.last}'s",
        f"{owner.first} {owner.last}'s {title}",
        f"{adjective} {noun} {title}",
        f"{noun} {title}",
    )
    return draw.choice(names)


def person(draw: Random) -> Person:
    """Somebody made up."""
    words = lexicon()
    she = draw.random() < 0.5
    return Person(
        draw.choice(words["she" if she else "he"]), draw.choice(words["surnames"]), she, draw.choice(words["jobs"]),
        draw.choice(words["districts"]), draw.choice(words["hobbies"]),
    )  # fmt: skip


def place(
    draw: Random, owner: Person | None = None, near: str | None = None, stop: tuple[int, str] | None = None
) -> Place:
    """A place made up, but for what is given."""
    words, owner = lexicon(), owner or person(draw)
    kind = draw.choice(list(words["kinds"]))
    offer, other = draw.sample(words["kinds"][kind]["offers"], 2)
    opens = draw.randrange(12, 24) * 30
    line, at = stop or (draw.randrange(1, LINES + 1), _street(draw))
    return Place(
        name=_place_name(draw, kind, owner), kind=kind, district=draw.choice(words["districts"]), street=_street(draw),
        number=draw.randrange(1, 100), near=near or _place_name(draw, draw.choice(list(words["kinds"])), person(draw)),
        owner=owner, since=draw.randrange(1820, 2024), opens=_clock(opens),
        closes=_clock(min(opens + draw.randrange(12, 27) * 30, LAST_CLOSING)), closed=draw.choice(words["days"]),
        price=draw.choice(words["prices"]), offer=offer, other=other, feature=draw.choice(list(words["features"])),
        line=line, stop=at, seats=draw.randrange(8, 400),
    )  # fmt: skip


def event(draw: Random, at: Place) -> Event:
    """Something made up that happens there."""
    kinds = lexicon()["event kinds"]
    kind = draw.choice(list(kinds))
    return Event(
        kind, draw.choice(kinds[kind]), at, draw.randrange(1, 29), draw.choice(lexicon()["months"]),
        _clock(draw.randrange(18, 42) * 30), draw.randrange(1, 31),
    )  # fmt: skip


def tram(draw: Random, number: int) -> Line:
    """A tram line made up."""
    stops = tuple(dict.fromkeys(_street(draw) for _ in range(draw.randrange(4, 9))))
    return Line(number, stops, draw.randrange(10, 16) * 30, draw.randrange(2, 8), draw.choice((5, 10, 12, 15, 20)))


@cache
def town(seed: int = 0) -> Town:
    """The town that a seed gives; the course's is that of seed 0."""
    draw = Random(f"town {seed}")
    lines = tuple(tram(draw, number) for number in range(1, LINES + 1))
    people: dict[str, Person] = {}
    while len(people) < PEOPLE:
        one = person(draw)
        people.setdefault(one.name, one)
    places: dict[str, Place] = {}
    while len(places) < PLACES:
        line = draw.choice(lines)
        near = draw.choice(list(places)) if places else None
        owner = draw.choice(list(people.values()))
        one = place(draw, owner, near, (line.line, draw.choice(line.stops)))
        places.setdefault(one.name, one)
    events = tuple(event(draw, draw.choice(list(places.values()))) for _ in range(EVENTS))
    return Town(tuple(places.values()), tuple(people.values()), events, lines)


class Reference:
    """The place as a text speaks of it: by name first, then by name, kind or pronoun, but never "it" after a break."""

    def __init__(self, name: str, kind: str):
        self.name, self.kind, self.known = name, kind, False

    def __call__(self, draw: Random) -> str:
        if not self.known:
            self.known = True
            return self.name
        return draw.choice(("it", "it", "it", f"the {self.kind}", self.name))

    def possessive(self, draw: Random) -> str:
        """The same, as an owner."""
        said = self(draw)
        return "its" if said == "it" else f"{said}'" if said.endswith("s") else f"{said}'s"


def facts(one: Place) -> dict[str, str | Reference]:
    """What the patterns may say of a place."""
    known = {field.name: str(getattr(one, field.name)) for field in fields(one) if field.name != "owner"}
    it = Reference(one.name, one.kind)
    feature = lexicon()["features"][one.feature]
    return known | one.owner.pronouns("owner") | {
        "owner": one.owner.name, "it": it, "its": it.possessive, "feature_sentence": feature, "town": TOWN,
        "is": "are" if _plural(one.offer) else "is",
    }  # fmt: skip


def _plural(offer: str) -> bool:
    """Whether what a place offers is many things: "lessons for beginners" are, "gymnastics" is."""
    head = offer.split(" for ")[0].split()[-1]
    return head.endswith("s") and head not in ("gymnastics", "tennis", "glass")


def _told(style: str, told: Facts, topics: Sequence[str], draw: Random) -> list[str]:
    """An introduction and these topics, a sentence each."""
    return [grammar().say(f"{style}.intro", told, draw), *(_topic(style, topic, told, draw) for topic in topics)]


def _topic(style: str, topic: str, told: Facts, draw: Random) -> str:
    return _sentence(grammar().say(f"{style}.{topic}", told, draw))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def about(one: Place, style: str, topics: Sequence[str], draw: Random) -> str:
    """An introduction to a place and these of TOPICS in this order, in the style of a guide, an opinion or a notice."""
    told = facts(one)
    told["it"].known = style == "guide"
    return ("\n" if style == "notice" else " ").join(_told(style, told, topics, draw))


def guide(one: Place, draw: Random) -> str:
    """An entry of a guidebook."""
    return about(one, "guide", draw.sample(TOPICS, draw.randrange(3, len(TOPICS) + 1)), draw)


def opinion(one: Place, draw: Random) -> str:
    """Somebody's opinion."""
    return about(one, "opinion", draw.sample(TOPICS, draw.randrange(2, 8)), draw)


def notice(one: Place, draw: Random) -> str:
    """What a place says of itself, in lines."""
    return about(one, "notice", draw.sample(TOPICS, draw.randrange(3, 9)), draw)


# The names of the entries of a form: each line one way.
KEYS = (
    ("Name", "Kind", "District", "Street", "Number", "Near", "Owner", "Since", "Opens", "Closes", "Closed on", "Prices",
     "Offers", "Also", "Has", "Tram", "Stop", "Seats"),
    ("name", "what", "quarter", "street", "house", "next to", "run by", "founded", "from", "until", "day off", "price",
     "known for", "and", "extra", "line", "tram stop", "room for"),
    ("Place", "Type", "Part of town", "Address", "No.", "Close to", "Keeper", "Year", "Opening", "Closing", "Rest day",
     "Price level", "Speciality", "Second", "Feature", "Tram line", "Get off at", "Capacity"),
)  # fmt: skip
# What stands between the name of an entry and its value.
_COLONS = (": ", " - ", " = ", ": ")
# The entries that belong to each topic, as attributes of a place.
_ENTRIES = {
    "where": ("street", "number", "near"), "owner": ("owner",), "since": ("since",), "hours": ("opens", "closes"),
    "closed": ("closed",), "price": ("price",), "offer": ("offer", "other"), "feature": ("feature",),
    "tram": ("line", "stop"), "seats": ("seats",),
}  # fmt: skip
_VALUES = ("name", "kind", "district", *(value for topic in TOPICS for value in _ENTRIES[topic]))


def entries(one: Place, topics: Sequence[str], draw: Random) -> list[tuple[str, str]]:
    """Entries of a form: name, kind, district, and those of the topics."""
    keys, told = dict(zip(_VALUES, draw.choice(KEYS), strict=True)), facts(one)
    return [(keys[it], str(told[it])) for it in (*_VALUES[:3], *(it for topic in topics for it in _ENTRIES[topic]))]


def lay_out(entries: list[tuple[str, str]], mark: str, between: str) -> str:
    """Entries as text; what stands between two of them also stands in front, if it does more than separate them."""
    return between.lstrip("\n;, ") + between.join(f"{key}{mark}{value}" for key, value in entries)


def _some_topics(draw: Random) -> list[str]:
    """A few topics more often than many, half of the time in their usual order."""
    topics = draw.sample(TOPICS, 1 + min(draw.randrange(len(TOPICS)), draw.randrange(len(TOPICS))))
    return topics if draw.random() < 0.5 else sorted(topics, key=TOPICS.index)


def _retold(one: Place, styles: Sequence[str], topics: Sequence[str], draw: Random) -> str:
    """These topics, every one of them and no other; mostly in their order."""
    return about(one, draw.choice(styles), topics if draw.random() < 0.7 else draw.sample(topics, len(topics)), draw)


def form(one: Place, draw: Random) -> str:
    """A form, and the same facts once more: as a copy, in another layout, or told."""
    say, told, topics = grammar().say, {**facts(one), "page": str(draw.randrange(1, 1000))}, _some_topics(draw)
    rows = entries(one, topics, draw)
    parts = [say("form.head", told, draw), lay_out(rows, draw.choice(_COLONS), draw.choice(("\n", "\n", ", ")))]
    for _ in range(draw.choice((1, 1, 2))):
        if draw.random() < 0.4:
            shuffled = rows[:1] + draw.sample(rows[1:], len(rows) - 1) if draw.random() < 0.4 else rows
            other = lay_out(shuffled, draw.choice(_COLONS), draw.choice(("\n", "; ", "\n* ", ", ")))
            parts += [say("form.again", told, draw), other]
        else:
            parts += [say("form.told", told, draw), _retold(one, ("guide", "guide", "opinion", "notice"), topics, draw)]
    return "\n".join(parts)


def listing(one: Place, draw: Random) -> str:
    """A list of points, and the same as prose, in either order."""
    told, topics = facts(one), _some_topics(draw)
    told["it"].known = True
    points = "\n".join(f"- {_topic('notice', topic, told, draw)}" for topic in topics)
    parts = [f"{grammar().say('list.head', told, draw)}\n{points}", _retold(one, ("guide", "opinion"), topics, draw)]
    return "\n\n".join(draw.sample(parts, 2))


def letter(one: Place, draw: Random) -> str:
    """A letter to a friend."""
    say, writer = grammar().say, person(draw)
    told = {**facts(one), "friend": person(draw).first, "writer": writer.first}
    body = [
        say("letter.start", told, draw),
        *_told(draw.choice(("guide", "opinion")), told, draw.sample(TOPICS, draw.randrange(2, 7)), draw),
    ]
    ending = [say("letter.close", told, draw), say("letter.sign", told, draw)]
    return "\n".join([say("letter.open", told, draw), " ".join(body), *ending])


def talk(one: Place, draw: Random) -> str:
    """Two people: questions and answers."""
    say, names = grammar().say, [person(draw).first for _ in range(2)]
    told = {**facts(one), "a": names[0], "b": names[1]}
    lines = [say("talk.open", told, draw), say("talk.first", told, draw)]
    for topic in draw.sample(TOPICS, draw.randrange(2, 8)):
        lines += [
            f"{names[0]}: {say(f'ask.{topic}', told, draw)}",
            f"{names[1]}: {_topic('answer', topic, told, draw)}",
        ]
    return "\n".join([*lines, say("talk.thanks", told, draw), say("talk.bye", told, draw)])


def directions(one: Place, draw: Random) -> str:
    """The way to a place."""
    say, told = grammar().say, {**facts(one), "from": _street(draw)}
    steps = []
    for _ in range(draw.randrange(2, 6)):
        told["way"] = draw.choice((_street(draw), one.street))
        steps.append(say("directions.step", told, draw))
    if draw.random() < 0.5:
        steps.insert(draw.randrange(2), say("directions.tram", told, draw))
    return "\n".join([say("directions.open", told, draw), " ".join([*steps, say("directions.end", told, draw)])])


def comparison(one: Place, other: Place, draw: Random) -> str:
    """Two places, and what follows from their facts."""
    say = grammar().say
    old, young = sorted((one, other), key=lambda at: at.since)
    small, big = sorted((one, other), key=lambda at: at.seats)
    told = {
        **facts(one), "name2": other.name, "closes2": other.closes, "old": old.name, "old_since": str(old.since),
        "young": young.name, "young_since": str(young.since), "big": big.name, "big_seats": str(big.seats),
        "small": small.name, "small_seats": str(small.seats),
    }  # fmt: skip
    parts = [guide(at, draw) for at in (one, other)]
    judged = [_sentence(say(rule, told, draw)) for rule in ("compare.older", "compare.bigger", "compare.hours")]
    return "\n".join([say("compare.open", told, draw), *parts, " ".join(draw.sample(judged, draw.randrange(1, 4)))])


def portrait(who: Person, at: Place, draw: Random) -> str:
    """Somebody, and a place that they own or go to."""
    say = grammar().say
    told = {**facts(at), **who.pronouns("who"), **who.pronouns("owner"), "who": who.name}
    told |= {"who_pronoun": told["who_subject"], "job": who.job, "home": who.home, "hobby": who.hobby}
    rules = ["person.hobby", "person.owns" if at.owner == who else "person.place"]
    told_of = [_sentence(say(rule, told, draw)) for rule in draw.sample(rules, 2)]
    more = [_topic("guide", topic, told, draw) for topic in draw.sample(TOPICS[2:], draw.randrange(3))]
    return " ".join([_sentence(say("person.life", told, draw)), *told_of, *more])


def announcement(one: Event, draw: Random) -> str:
    """Something that will happen."""
    say = grammar().say
    told = facts(one.place) | {
        name: str(getattr(one, name)) for name in ("event", "topic", "date", "month", "starts", "ticket")
    }
    rules = draw.sample(("event.time", "event.cost", "event.host", "event.end"), draw.randrange(2, 5))
    lines = [say("event.when", told, draw), *(say(rule, told, draw) for rule in rules)]
    if draw.random() < 0.5:
        lines += [_topic("guide", topic, told, draw) for topic in draw.sample(TOPICS, 2)]
    return " ".join(map(_sentence, lines))


def timetable(one: Line, draw: Random) -> str:
    """The stops of a tram and its times, and what they say."""
    say, start = grammar().say, one.start + draw.randrange(0, 20) * one.every
    times = [_clock(start + i * one.ride) for i in range(len(one.stops))]
    told = {
        "line": str(one.line), "first": one.stops[0], "last": one.stops[-1], "start": times[0], "end": times[-1],
        "minutes": str(one.ride * (len(one.stops) - 1)), "stops": str(len(one.stops) - 2), "every": str(one.every),
    }  # fmt: skip
    rows = [f"{stop} {time}" for stop, time in zip(one.stops, times, strict=True)]
    said = {say("timetable.text", told, draw): None for _ in range(draw.randrange(1, 4))}
    return "\n".join([say("timetable.head", told, draw), *rows, " ".join(said)])


def quiz(places: list[Place], draw: Random) -> str:
    """Questions about places, with their answers; the facts of strangers come first."""
    say, lines = grammar().say, []
    for one in places:
        told = facts(one)
        told["it"].known = True
        topic = draw.choice(TOPICS)
        lines.append(f"Q: {one.name}, the {one.kind} in {one.district}. {say(f'ask.{topic}', told, draw)}")
        lines.append(f"A: {_topic('answer', topic, told, draw)}")
    return "\n".join([say("quiz.head", {}, draw), *lines])


# What begins a question and its answer.
_MARKS = (("Q: ", "A: "), ("Question: ", "Answer: "), ("- ", "-> "), ("? ", "= "), ("", ""), ("Pupil: ", "Teacher: "))
# So many questions on one text are too many; how often one asks for what is not there, and whether something is so.
_MOST, _ABSENT, _CHECKED = 6, 0.2, 0.15
# What a text may tell without saying the value.
_IMPLIED = ("number", "near", "feature")
# What is asked of a place: how it is answered, and the values that the text must hold.
ASKED = {name: ("{" + name + "}", (name,)) for name in _VALUES if name not in ("name", "other")}
ASKED |= {"hours": ("{opens} to {closes}", ("opens", "closes")), "tram": ("tram {line} to {stop}", ("line", "stop"))}


def reading(draw: Random) -> str:
    """A text, or two, about strangers or a tram, and questions that it answers: behind the text, or in front of it."""
    say, told = grammar().say, {"page": str(draw.randrange(1, 1000))}
    if draw.random() < 0.3:
        line = tram(draw, draw.randrange(1, 100))
        texts, told["name"] = [timetable(line, draw)], f"Tram {line.line}"
        asked = _asked_of_line(texts[0], draw)
    else:
        places = [place(draw) for _ in range(draw.choice((1, 1, 2)))]
        styles = [draw.choice((guide, guide, opinion, notice, letter, _only_form)) for _ in places]
        texts = [style(one, draw) for style, one in zip(styles, places, strict=True)]
        asked = [
            pair for one, text in zip(places, texts, strict=True) for pair in _asked_of_place(one, text, draw, texts)
        ]
        if len(places) == 2:
            asked += _compared(*places, texts, draw)
        elif styles[0] is letter:
            asked.append((say("read.writer", {}, draw), texts[0].split()[-1]))
        draw.shuffle(asked)
        told["name"] = places[0].name
    answers = _answers(asked[: draw.randrange(1, _MOST)], draw)
    return "\n".join(draw.choice((_behind, _behind, _in_front, _in_front, _in_front))(texts, answers, told, draw))


def memory(places: Sequence[Place], draw: Random) -> str:
    """Questions about places of the town, without a text."""
    asked, (before, after) = [], draw.choice(_MARKS)
    for one in places:
        told = facts(one) | {"it": one.name}
        question, answer = _question(one, draw.choice(list(ASKED)), told, draw, several=True)
        if draw.random() < 0.4:
            question = f"{grammar().say('memory.place', told, draw)} {question}"
        asked.append((question, answer))
    lines = [f"{before}{question}\n{after}{answer}" for question, answer in _answers(asked, draw)]
    return "\n".join([grammar().say("memory.head", {}, draw), *lines])


def _answers(asked: Sequence[tuple[str, str]], draw: Random) -> list[tuple[str, str]]:
    """The questions with what is said to them: all in one style, and in words where there is no answer."""
    say, style = grammar().say, draw.choice(grammar()["reading.answer"])

    def said(value: str) -> str:
        if value in ("Yes.", "No."):
            return value
        return grammar().fill(style, {"value": value}, draw) if value else say("reading.none", {}, draw)

    return [(question, said(value)) for question, value in asked]


def _only_form(one: Place, draw: Random) -> str:
    topics = draw.sample(TOPICS, draw.randrange(3, len(TOPICS) + 1))
    return lay_out(entries(one, topics, draw), draw.choice(_COLONS), draw.choice(("\n", "; ")))


def _question(one: Place, name: str, told: Facts, draw: Random, several: bool) -> tuple[str, str]:
    """A question of ASKED with its answer; one that names the place, if there are several of which one could speak."""
    question = grammar().say(f"read.{name}", told, draw)
    while several and one.name not in question:
        question = grammar().say(f"read.{name}", told, draw)
    return question, ASKED[name][0].format_map({key: str(value) for key, value in told.items()})


def _check(one: Place, name: str, told: Facts, draw: Random) -> tuple[str, str]:
    """Whether something is so: of the place, or of another."""
    so = draw.random() < 0.5
    value = str(told[name]) if so else str(facts(place(draw))[name])
    question = grammar().say(f"check.{name}", told | {"value": value}, draw)
    while one.name not in question:
        question = grammar().say(f"check.{name}", told | {"value": value}, draw)
    return question, "Yes." if value == str(told[name]) else "No."


def _asked_of_place(one: Place, text: str, draw: Random, texts: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Questions with their answers; "" where the text has none. Where there are several texts, each names the place."""
    told, asked = facts(one) | {"it": one.name}, []
    for name in draw.sample(list(ASKED), len(ASKED)):
        # A number inside a time is not there; a day is, in the plural.
        values = [re.escape(str(told[value])) for value in ASKED[name][1]]
        there = all(re.search(rf"(?<![\w:]){value}s?(?![\w:])", text, re.I) for value in values)
        if there and f"check.{name}" in grammar() and draw.random() < _CHECKED:
            asked.append(_check(one, name, told, draw))
        elif there or (name not in _IMPLIED and draw.random() < _ABSENT):
            question, answer = _question(one, name, told, draw, len(texts) > 1)
            asked.append((question, answer if there else ""))
    return asked


def _compared(one: Place, other: Place, texts: Sequence[str], draw: Random) -> list[tuple[str, str]]:
    """Questions that need both texts."""
    rules = {"older": (lambda at: -at.since, "since"), "later": (lambda at: int(at.closes.replace(":", "")), "closes"),
             "larger": (lambda at: at.seats, "seats")}  # fmt: skip
    asked = []
    for rule, (worth, name) in rules.items():
        there = all(str(getattr(at, name)) in text for at, text in zip((one, other), texts, strict=True))
        if there and worth(one) != worth(other):
            asked.append((grammar().say(f"read.{rule}", {}, draw), max((one, other), key=worth).name))
    return asked


def _asked_of_line(text: str, draw: Random) -> list[tuple[str, str]]:
    say, rows = grammar().say, [row.rsplit(" ", 1) for row in text.split("\n")[1:-1]]
    asked = [
        (say("read.stops", {}, draw), ", ".join(stop for stop, _ in rows)),
        (say("read.count", {}, draw), str(len(rows))),
        (say("read.end", {}, draw), rows[-1][0]),
    ]
    for (stop, time), (after, _) in pairwise(rows):
        told = {"stop": stop}
        asked += [(say("read.time", told, draw), time), (say("read.next", told, draw), after)]
    draw.shuffle(asked)
    return asked


def _behind(texts: list[str], asked: list[tuple[str, str]], told: Facts, draw: Random) -> list[str]:
    before, after = draw.choice(_MARKS)
    lines = [f"{before}{question}\n{after}{answer}" for question, answer in asked]
    return [grammar().say("reading.head", told, draw), *texts, grammar().say("reading.questions", told, draw), *lines]


def _in_front(texts: list[str], asked: list[tuple[str, str]], told: Facts, draw: Random) -> list[str]:
    question, answer = draw.choice(asked)
    lines = [grammar().say("reading.asks", {"question": question}, draw)]
    if draw.random() < 0.5:
        lines.append(grammar().say("reading.text", told, draw))
    lines += ["", "\n\n".join(texts), ""] if draw.random() < 0.5 else texts
    return [*lines, f"{draw.choice(_MARKS)[1]}{answer}"]


# The kinds of texts and how often each is drawn.
STATEMENTS = {
    "form": 12, "listing": 6, "guide": 4, "letter": 3, "talk": 3, "opinion": 2, "notice": 2, "comparison": 2,
    "directions": 1, "portrait": 2, "announcement": 1, "timetable": 1, "quiz": 1,
}  # fmt: skip
TEXTS = {**STATEMENTS, "reading": 12, "memory": 4}


def document(seed: int, index: int, *, known: float = 0.4, kinds: tuple[str, ...] = tuple(TEXTS)) -> str:
    """Text number `index` of the stream that a seed gives; known: the share of texts about the town itself.

    kinds: of TEXTS. The same numbers give the same text, whatever was drawn before.
    """
    draw, here = Random(f"{seed} {index}"), town()
    kind = draw.choices(kinds, [TEXTS[name] for name in kinds])[0]
    real = draw.random() < known

    def some_place() -> Place:
        return draw.choice(here.places) if real else place(draw)

    if kind == "portrait":
        if not real:
            who = person(draw)
            return portrait(who, place(draw, who if draw.random() < 0.5 else None), draw)
        at = draw.choice(here.places)
        return portrait(at.owner if draw.random() < 0.5 else draw.choice(here.people), at, draw)
    if kind == "announcement":
        return announcement(draw.choice(here.events) if real else event(draw, place(draw)), draw)
    if kind == "timetable":
        return timetable(draw.choice(here.lines) if real else tram(draw, draw.randrange(1, 100)), draw)
    if kind == "comparison":
        return comparison(some_place(), some_place(), draw)
    if kind == "reading":
        # Never about the town: what can be known need not be read.
        return reading(draw)
    if kind == "memory":
        return memory(draw.sample(here.places, draw.randrange(2, 9)), draw)
    if kind == "quiz":
        # Only what can be known is asked.
        return quiz(draw.sample(here.places, draw.randrange(2, 7)), draw)
    return {"form": form, "listing": listing, "guide": guide, "letter": letter, "talk": talk, "opinion": opinion,
            "notice": notice, "directions": directions}[kind](some_place(), draw)  # fmt: skip


def corpus(seed: int = 0, start: int = 0, **options) -> Iterator[str]:
    """Texts without end, from number `start` on, none of them twice; options: see `document`.

    The few that were drawn before (short ones about the town itself) are left out.
    """
    seen: set[int] = set()
    for index in count(start):
        text = document(seed, index, **options)
        if hash(text) not in seen:
            seen.add(hash(text))
            yield text
