"""`instructions` asks what its data card says: what is called new is new, and the answers are right."""

from collections import Counter
from itertools import islice
from random import Random

from course_lib import tasks, town
from course_lib.grammar import Slot
from course_lib.tasks import instructions as task_of

import pytest


@pytest.fixture(scope="module")
def task():
    return tasks.load("instructions")


@pytest.fixture
def world():
    return task_of.World(Random(1), town.town().places[:50], set())


def rows(split, *names):
    return list(zip(split.texts, split.labels, *(split.info[name] for name in names), strict=True))


def made(world, kind, n=60):
    """Facts of the instruction, text and answer of so many examples of a kind."""
    return [task_of.KINDS[kind](world) for _ in range(n)]


def test_sizes(task):
    kinds, kept = len(task_of.USUAL_KINDS), len(task_of.KEPT_KINDS)
    assert (kinds, kept) == (24, 5)
    assert (len(task.train), len(task.validation)) == (task_of.TRAIN, task_of.VALIDATION)
    # What is asked from memory is about the town's places, which have a part of their own.
    sizes = {name: n * (kept if name == task_of.NEW_KINDS else kinds - 2) for name, n in task_of.TEST_OF_KIND.items()}
    assert Counter(task.test.info["split"]) == sizes | {
        task_of.TOWN: 2 * task_of.PARTS[2],
        task_of.TAUGHT: task_of.FACTS,
    }
    assert set(Counter(task.train.info["kind"]).values()) == {task_of.TRAIN // kinds}
    assert task.chat


def test_every_kind_is_asked_in_ten_ways():
    assert set(task_of.grammar()) == set(task_of.KINDS)
    for kind, ways in task_of.grammar().items():
        assert len(ways) == 10 and len({str(way) for way in ways}) == 10, kind


def test_kept_kinds_and_kept_ways_are_in_no_training(task):
    def slots(kind):
        return any(isinstance(part, Slot) for way in task_of.grammar()[kind] for part in way)

    assert not set(task.train.info["kind"]) & set(task_of.KEPT_KINDS)
    trained = set(task.train.info["instruction"]) | set(task.validation.info["instruction"])
    new = [
        said
        for said, kind, split in zip(*(task.test.info[name] for name in ("instruction", "kind", "split")), strict=True)
        if split == task_of.NEW_WAYS and not slots(kind)
    ]
    assert len(set(new)) > 15 and not set(new) & trained


def test_splits_share_no_place(task):
    """Outside of the town every name is asked about once; the places of the town are in one split each."""
    here = {place.name: place for place in town.town().places}
    asked = {}
    for name in ("train", "validation", "test"):
        split = getattr(task, name)
        told = {"training", "validation", task_of.NEW_PLACES, task_of.NEW_WAYS, task_of.NEW_KINDS, task_of.TOWN}
        split = split.where("split", told)
        recalled = [said for _, _, said, kind in rows(split, "instruction", "kind") if kind.startswith("recall")]
        asked[name] = {max((known for known in here if known in said), key=len) for said in recalled}
        texts = [text for text in split.info["context"] if text]
        assert len(set(texts)) == len(texts)
    assert not asked["train"] & asked["test"] and not asked["train"] & asked["validation"]
    assert not any(here[name].owner.last in name for names in asked.values() for name in names)


@pytest.mark.parametrize(
    "kind",
    ["owner", "street", "since", "closed", "price", "offer", "district", "first_stop", "writer", *task_of.KEPT_KINDS],
)
def test_what_is_to_be_found_stands_in_the_text(kind, world):
    for _, text, answer in made(world, kind):
        assert answer in text and answer


def test_hours_and_trams_are_written_in_a_form_of_their_own(world):
    for _, text, answer in made(world, "hours"):
        assert all(time in text for time in answer.split(" to "))
    for _, text, answer in made(world, "tram"):
        line, stop = answer.removeprefix("tram ").split(" to ")
        assert line in text and stop in text


def test_what_is_missing_is_not_in_the_text(world):
    answers = Counter()
    for facts, text, answer in made(world, "missing", 200):
        answers[answer == task_of.MISSING] += 1
        assert facts["question"].endswith(("?", ".")) and (answer == task_of.MISSING or answer in text)
    assert 0.5 < answers[True] / 200 < 0.8


def test_how_a_text_is_written_does_not_tell_what_is_missing(world):
    """Notices alone have lines."""
    lines = {True: [], False: []}
    for _, text, answer in made(world, "missing", 300):
        lines[answer == task_of.MISSING].append("\n" in text)
    assert abs(sum(lines[True]) / len(lines[True]) - sum(lines[False]) / len(lines[False])) < 0.15


def test_yes_and_no(world):
    said = Counter()
    for facts, text, answer in made(world, "is_closed", 200):
        said[answer] += 1
        assert (answer == "Yes.") == (facts["day"] in text)
    assert set(said) == {"Yes.", "No."} and min(said.values()) > 60


def test_comparisons_are_right(world, monkeypatch):
    places, stranger = [], world.stranger

    def remembered():
        places.append(stranger())
        return places[-1]

    monkeypatch.setattr(world, "stranger", remembered)
    first = 0
    for _ in range(60):
        places.clear()
        [(_, text, answer)] = made(world, "older", 1)
        assert answer == min((places[0], places[-1]), key=lambda p: p.since).name
        first += text.index(answer) < len(text) / 2
    assert 10 < first < 50, "the answer is not always in the same text"


def test_what_is_listed_stands_in_the_text_in_this_order(world):
    for _, text, answer in made(world, "offers"):
        first, second = (row.removeprefix("- ") for row in answer.split("\n"))
        assert 0 <= text.index(first) < text.index(second)


def test_new_kinds_can_be_trained_on_texts_of_their_own(task):
    more = task_of.of_new_kinds()
    assert Counter(more.info["kind"]) == dict.fromkeys(task_of.KEPT_KINDS, 400)
    others = {text for split in (task.train, task.validation, task.test) for text in split.info["context"]}
    assert not others & set(more.info["context"]) and len(set(more.texts)) == len(more)


def test_places_are_counted_and_listed(world):
    sizes = Counter()
    for kind in ("count", "names"):
        for _, text, answer in made(world, kind):
            parts = text.split("\n\n")
            listed = [row.removeprefix("- ") for row in answer.split("\n")]
            assert answer == str(len(parts)) if kind == "count" else all(map(str.__contains__, parts, listed))
            assert kind == "count" or len(listed) == len(parts)
            sizes[kind, len(parts)] += 1
    assert set(sizes) == {("count", 1), ("count", 2), ("count", 3), ("names", 2), ("names", 3)}


def test_one_thing_is_on_offer(world, monkeypatch):
    places, stranger = [], world.stranger
    monkeypatch.setattr(world, "stranger", lambda: places.append(stranger()) or places[-1])
    for (_, text, answer), one in zip(made(world, "offer"), places, strict=True):
        assert answer == one.offer and one.other not in text


def test_timetables_begin_and_end(world):
    for kind, row in (("first_stop", 1), ("last_stop", -1)):
        for _, text, answer in made(world, kind):
            assert text.split("\n")[row].rsplit(" ", 1)[0] == answer


def test_rewritten_sentences(world):
    for facts, text, answer in made(world, "question"):
        assert not text and answer.endswith("?") and facts["sentence"].endswith(".")


def test_memory_is_asked_for_the_towns_facts(world):
    here = {place.name: place for place in town.town().places}
    for facts, text, answer in made(world, "recall_owner"):
        assert not text and answer == here[facts["name"]].owner.name
    for facts, _, answer in made(world, "recall_since"):
        assert answer == str(here[facts["name"]].since)


def test_the_whole_test_part_of_the_town_is_asked_about(task):
    asked = task.test.where("split", [task_of.TOWN])
    here = {place.name: place for place in town.town().places}
    about = Counter(max((known for known in here if known in said), key=len) for said in asked.texts)
    assert len(about) == task_of.PARTS[2] and set(about.values()) == {2}


def test_taught_facts_are_new_and_asked_for_in_other_words(task):
    asked = task.test.where("split", [task_of.TAUGHT])
    taught, known = (task_of.by_heart(part, 3) for part in (task_of.TAUGHT, task_of.TOWN))
    assert len(taught) == len(known) == 3 * task_of.FACTS and len(asked) == task_of.FACTS
    assert Counter(taught.labels) == Counter(list(asked.labels) * 3) and not set(taught.texts) & set(asked.texts)
    here = {place.name: place for place in town.town().places}
    assert not any(name in text for name in here for text in asked.texts)
    assert all(any(name in text for name in here) for text in known.texts)
    of_town = task.test.where("split", [task_of.TOWN])
    assert not {text for text in of_town.texts} & set(known.texts)
    with pytest.raises(ValueError, match="Unknown part 'towns'"):
        task_of.by_heart("towns", 1)


def test_a_loose_hit_is_the_answer_in_another_dress(task):
    rows = task.test.rows([task.test.info["kind"].index(kind) for kind in ("owner", "table", "is_closed")])
    loose = [f"It says {rows.labels[0]}.\nAnd more.", f"{rows.labels[1].lower()}\nmore", rows.labels[2].rstrip(".")]
    assert task_of.loose_hits(loose, rows) == [True] * 3 and task_of.hits(loose, rows) == [False] * 3
    assert task_of.loose_hits(["no one", "", "Perhaps"], rows) == [False] * 3


def test_a_text_has_all_that_was_asked_for(world):
    for kind in ("form", "table", "short"):
        for _, text, answer in made(world, kind):
            values = answer.replace("\n", " | ").replace(", ", " | ").replace(": ", " | ").split(" | ")
            found = [value in text for value in values if value not in ("Name", "Kind", "Owner", "Opens", "Closes")]
            assert all(found)


def test_texts_are_short(task):
    assert max(map(len, task.train.info["context"])) < 3 * task_of.LONGEST


def test_the_same_every_time(task):
    task_of._made.cache_clear()
    assert task_of.load().train.texts == task.train.texts


def test_measures(task):
    labels = list(task.test.labels)
    assert task_of.exact_match(labels, task.test) == 1
    assert task_of.hits([f" {labels[0]}\n", *[""] * (len(labels) - 1)], task.test) == [True] + [False] * (
        len(labels) - 1
    )
    assert set(task_of.rouge(labels, task.test)) == {1.0}
    half = task.test.rows([task.test.info["kind"].index("form")])
    assert 0 < task_of.rouge([half.labels[0].split("\n")[0]], half)[0] < 1
    by_kind = task_of.by_kind(task_of.hits(labels, task.test), task.test)
    assert set(by_kind) == set(task_of.KINDS) and set(by_kind.values()) == {1.0}


def test_the_dummy_has_read_nothing(task):
    said = task.dummy(task.test)
    assert len(set(zip(task.test.info["kind"], said, strict=True))) == len(task_of.KINDS)
    assert 0.03 < task.baseline() < 0.15


def test_examples_take_turns(world):
    kinds = ("owner", "hours")
    assert [one.kind for one in islice(task_of.examples(world, kinds), 4)] == ["owner", "hours"] * 2
