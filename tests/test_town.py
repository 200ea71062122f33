"""The town: its facts are fixed, its texts say them, and no text is drawn twice."""

import itertools
import re
from collections import Counter
from dataclasses import replace
from random import Random

from course_lib import town
from course_lib.grammar import Grammar, Slot, article, parse, skeletons

import pytest

SAMPLE = [town.document(0, index) for index in range(4000)]


def test_the_town_is_the_same_every_time_and_another_with_another_seed():
    here = town.town()
    town.town.cache_clear()
    assert town.town() == here != town.town(1)
    assert (len(here.places), len(here.people), len(here.events)) == (town.PLACES, town.PEOPLE, town.EVENTS)
    assert len({place.name for place in here.places}) == town.PLACES
    owners = {person.name for person in here.people}
    assert {place.owner.name for place in here.places} <= owners


def test_a_text_depends_on_its_number_alone():
    assert SAMPLE[17] == town.document(0, 17) != town.document(1, 17)
    assert list(itertools.islice(town.corpus(0, start=5), 3)) == SAMPLE[5:8]


def test_no_text_is_drawn_twice():
    assert len(set(SAMPLE)) > 0.999 * len(SAMPLE)
    timetables = {"known": 1.0, "kinds": ("timetable",)}
    again = [town.document(0, index, **timetables) for index in range(500)]
    drawn = list(itertools.islice(town.corpus(0, **timetables), 400))
    assert len(set(again)) < 500
    assert len(set(drawn)) == 400


def test_texts_are_clean():
    for text in SAMPLE:
        assert not re.search(r"[{}\[\]|^&]|  | [.,;:?!]|\.\.|,,|\n\n\n", text), text
        assert text == text.strip() and text


@pytest.mark.parametrize("kind", town.TEXTS)
def test_every_kind_of_text_is_drawn_about_the_town_and_about_strangers(kind):
    names = {place.name for place in town.town().places}
    for known in (0.0, 1.0):
        texts = [town.document(3, index, known=known, kinds=(kind,)) for index in range(20)]
        assert len(set(texts)) > 15
        about_it = [any(name in text for name in names) for text in texts]
        if kind not in ("timetable", "reading") and known:
            assert all(about_it)


def test_kinds_are_drawn_as_often_as_asked():
    heads = Counter(text.split("\n")[0].split(":")[0] == "Q" for text in SAMPLE)
    assert heads[False] == len(SAMPLE)
    forms = sum("\n" in town.document(0, index, kinds=("form", "guide")) for index in range(600))
    assert forms / 600 == pytest.approx(town.TEXTS["form"] / (town.TEXTS["form"] + town.TEXTS["guide"]), abs=0.06)


def test_what_is_said_of_the_towns_places_is_true():
    """Names are followed by their own facts: hours, years and tram lines never belong to another place."""
    draw = Random(0)
    for place in town.town().places[:150]:
        told = town.facts(place)
        told["it"].known = True
        for topic in town.TOPICS:
            said = town._topic("answer", topic, told, draw)
            facts = {
                "where": [str(place.number), place.street], "owner": [place.owner.name], "since": [str(place.since)],
                "hours": [place.opens, place.closes], "closed": [place.closed], "price": [place.price],
                "tram": [str(place.line), place.stop], "seats": [str(place.seats)],
            }.get(topic, [])  # fmt: skip
            assert all(fact.lower() in said.lower() for fact in facts), said


def test_a_form_restates_its_facts():
    for index in range(200):
        text = town.document(5, index, known=0.0, kinds=("form",))
        name = re.split("[;,]", re.search(r"(?:Name|name|Place)(?:: | - | = )(.+)", text).group(1))[0]
        assert text.count(name) >= 2


def _known_by_number(one: town.Place) -> dict[str, str]:
    """Values that every text about their topic says, and which no other value of the place equals."""
    return {"since": str(one.since), "hours": one.opens, "seats": str(one.seats)}


@pytest.mark.parametrize("kind", ["form", "listing"])
def test_what_is_told_again_is_all_of_it_and_nothing_else(kind):
    """A model learns from these texts to say everything once."""
    for index in range(200):
        draw = Random(index)
        one = replace(town.place(draw), line=1000, number=2000)
        text = getattr(town, kind)(one, draw)
        times = {
            topic: len(re.findall(rf"(?<![\w:]){value}(?![\w:])", text))
            for topic, value in _known_by_number(one).items()
        }
        assert all(found == 0 or found >= 2 for found in times.values()), text


@pytest.mark.parametrize("index", range(60))
def test_questions_name_what_they_ask_for_and_the_answer_stands_in_the_text(index):
    draw = Random(index)
    one = town.place(draw)
    text = town.guide(one, draw)
    for several in ((), ("", "")):
        for question, answer in town._asked_of_place(one, text, draw, several):
            assert question.endswith(("?", "."))
            parts = answer.removeprefix("tram ").split(" to ") if answer not in ("Yes.", "No.") else []
            assert all(part in text for part in parts)
            assert not several or one.name in question


def test_what_is_called_missing_is_not_told():
    """Every pattern of these topics says the value itself, so that a text without the value does not tell it."""
    topics = {name: topic for topic in town.TOPICS for name in (topic,)} | {
        "street": "where", "opens": "hours", "closes": "hours", "line": "tram", "stop": "tram"
    }  # fmt: skip

    def said(pattern) -> set[str]:
        found = set()
        for part in pattern:
            if isinstance(part, Slot):
                found.add(part.name)
            elif isinstance(part, tuple):
                found |= set.intersection(*map(said, part))
        return found

    for name in town.ASKED:
        if name in topics and name not in town._IMPLIED:
            for style in ("guide", "opinion", "notice"):
                for pattern in town.grammar()[f"{style}.{topics[name]}"]:
                    assert set(town.ASKED[name][1]) <= said(pattern), (style, name)


def test_a_day_in_the_plural_is_found():
    draw = Random(0)
    one = town.place(draw)
    text = f"{one.name} is closed on {one.closed}s."
    for _ in range(20):
        answers = [answer for question, answer in town._asked_of_place(one, text, draw) if "not" not in question]
        assert one.closed in answers or "Yes." in answers or "No." in answers


def test_whether_something_is_so():
    draw = Random(1)
    for _ in range(100):
        one = town.place(draw)
        question, answer = town._check(one, "closed", town.facts(one) | {"it": one.name}, draw)
        assert (answer == "Yes.") == (one.closed in question)


def test_two_texts_are_compared():
    draw = Random(2)
    for _ in range(30):
        one, other = town.place(draw), town.place(draw)
        text = f"{one.since} {one.closes} {one.seats} {other.since} {other.closes} {other.seats}"
        answers = [answer for _, answer in town._compared(one, other, (text, text), draw)]
        assert answers[0] == (one if one.since < other.since else other).name
        assert answers[-1] == (one if one.seats > other.seats else other).name


def test_questions_on_a_timetable_are_answered_by_it():
    line = town.tram(Random(3), 7)
    text = town.timetable(line, Random(3))
    rows = dict(row.rsplit(" ", 1) for row in text.split("\n")[1:-1])
    after = dict(zip(line.stops, line.stops[1:], strict=False))
    whole = (", ".join(line.stops), str(len(line.stops)), line.stops[-1])
    for question, answer in town._asked_of_line(text, Random(0)):
        stop = next((stop for stop in rows if stop in question), None)
        assert answer in ((rows[stop], after[stop]) if stop else whole)


def test_the_town_is_remembered_without_a_text():
    here = {place.name: place for place in town.town().places}
    for index in range(50):
        text = town.document(6, index, kinds=("memory",))
        assert any(name in text for name in here) and len(text.split("\n")) % 2


def test_some_questions_have_no_answer():
    texts = [town.document(4, index, kinds=("reading",)) for index in range(400)]
    none = town.grammar()["reading.none"]
    said = {town.grammar().fill(pattern, {}, Random(seed)) for pattern in none for seed in range(5)}
    unanswered = sum(any(words in text for words in said) for text in texts)
    assert 0.1 < unanswered / len(texts) < 0.6


@pytest.mark.parametrize("style", ["guide", "opinion", "notice", "answer"])
def test_every_style_has_every_topic_and_every_pattern_can_be_said(style):
    draw = Random(1)
    for topic in town.TOPICS:
        assert len(town.grammar()[f"{style}.{topic}"]) >= 2
    for place in (town.place(draw) for _ in range(30)):
        for topic in town.TOPICS:
            assert town._topic(style, topic, town.facts(place), draw)


def test_there_is_more_text_than_anyone_needs():
    """Sentences before their slots are filled, and places to fill them with."""
    assert sum(skeletons(pattern) for patterns in town.grammar().values() for pattern in patterns) > 800
    words = town.lexicon()
    assert len(words["place adjectives"]) * len(words["place nouns"]) * len(words["surnames"]) > 1_000_000


def test_patterns():
    draw = Random(0)
    grammar = Grammar({"rule": [parse("(A|The) {thing}( (very|quite) {how}|) is {thing&}.")]})
    said = {grammar.say("rule", {"thing": "owl", "how": "old"}, draw) for _ in range(200)}
    assert len(said) == skeletons(grammar["rule"][0]) == 6
    assert "The owl is an owl." in said and "A owl very old is an owl." in said
    assert grammar["rule"] and article("inn") == "an inn" and article("café") == "a café"


@pytest.mark.parametrize("text", ["(a|b", "a|b)", "{a", "a}"])
def test_broken_patterns_are_refused(text):
    with pytest.raises(ValueError, match="pattern"):
        parse(text)


def test_unknown_rules_and_facts_are_named():
    with pytest.raises(ValueError, match=r"Unknown rule 'guide\.hour'.*guide\.hours"):
        town.grammar().say("guide.hour", {}, Random(0))
    with pytest.raises(ValueError, match="Unknown fact 'owner'"):
        Grammar({"rule": [parse("{owner}")]}).say("rule", {"opens": "7:00"}, Random(0))
