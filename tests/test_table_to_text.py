"""`table_to_text` asks what its data card says, and its measures count what they say."""

import re
from itertools import combinations

from course_lib import tasks, town
from course_lib.tasks import Pairs, text_to_table
from course_lib.tasks import table_to_text as task_of

import pytest
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("train", "validation", "test")
OTHER = {
    "name": "The Amber Zebra", "kind": "lighthouse", "district": "Lakeview", "address": "7 Acre Lane",
    "near": "The Dusty Comet", "owner": "Ada Abbot", "since": "1799", "opens": "3:33", "closes": "4:44",
    "closed": "Monday", "price": "cheap", "offer": "kites", "feature": "a terrace", "tram": "77", "stop": "Acre Row",
    "seats": "777",
}  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return tasks.load("table_to_text")


def splits(task):
    return {name: getattr(task, name) for name in NAMES}


def topics(table):
    keys = dict(table)
    return [topic for topic, (first, *_) in task_of.TOPICS.items() if first in keys]


ROWS = st.integers(0, task_of.TRAIN - 1)


def row(number: int):
    """Table and text of a training row."""
    train = tasks.load("table_to_text").train
    return train.info["table"][number], train.labels[number]


def test_sizes(task):
    sizes = {name: len(split) for name, split in splits(task).items()}
    assert sizes == {"train": task_of.TRAIN, "validation": task_of.VALIDATION, "test": 2 * task_of.TEST}
    assert all(len(texts) == task_of.REFERENCES for texts in task.test.info["references"])


def test_all_texts_say_what_their_tables_say(task):
    for name, split in splits(task).items():
        for table, texts in zip(split.info["table"], split.info["references"], strict=True):
            assert all(task_of.errors(table, text) == 0 for text in texts), (name, table)


def test_splits_share_no_place(task):
    def known(split):
        return {
            dict(table)[key] for table in split.info["table"] for key in ("name", "near", "owner") if key in dict(table)
        }

    for one, other in combinations(splits(task).values(), 2):
        assert not known(one) & known(other)
    real = {place.name for place in town.town().places}
    assert not any({dict(table)["name"] for table in split.info["table"]} & real for split in splits(task).values())


def test_new_combinations_are_new(task):
    trained = {frozenset(pair) for table in task.train.info["table"] for pair in combinations(topics(table), 2)}
    assert len(trained) == 12 * 11 // 2 - len(task_of.APART), "every other pair occurs"
    for table, kind in zip(task.test.info["table"], task.test.info["kind"], strict=True):
        new = any(frozenset(pair) not in trained for pair in combinations(topics(table), 2))
        assert new == (kind == task_of.NEW_COMBINATIONS)


def test_language_model_has_not_seen_the_format():
    known = [town.document(0, index) for index in range(2000)]
    assert not any(f"{called}{task_of.ARROW}" in text for called in task_of.CALLED.values() for text in known)


def test_texts_are_the_same_in_every_process(task):
    assert task.train.texts[0].startswith("Name -> ") and task.train.texts[0].endswith(task_of.ASK)
    table = task.train.info["table"][0]
    assert task_of.tell(table, task_of.Random(1)) == task_of.tell(table, task_of.Random(1))


@given(ROWS, st.data())
def test_a_missing_value_is_an_error(number, data):
    table, text = row(number)
    _, value = data.draw(st.sampled_from(table))
    # The 3 of tram 3, and not that of 6:30.
    without = re.sub(rf"(?<![\w:]){re.escape(value)}(?=s?(?!\w|:\d))", "something", text)
    lost = {other for other, said in table if said in value or value in said}
    assert 1 <= task_of.errors(table, without) <= len(lost)


@given(ROWS, st.data())
def test_an_invented_value_is_an_error(number, data):
    table, text = row(number)
    key = data.draw(st.sampled_from([key for key in OTHER if key not in dict(table) and key not in ("name", "kind")]))
    assert task_of.errors(table, f"{text} There is {OTHER[key]}.") == 1


@given(ROWS, st.data())
def test_a_value_said_again_is_an_error_but_for_name_and_kind(number, data):
    table, text = row(number)
    key, value = data.draw(st.sampled_from(table))
    assert task_of.errors(table, f"{text} There is {value}.") == (0 if key in ("name", "kind") else 1)


@given(ROWS, st.data())
def test_a_wrong_value_counts_once(number, data):
    table, text = row(number)
    keys = [key for key in dict(table) if key in ("district", "since", "opens", "closed", "price", "offer", "feature")]
    if not keys:
        return
    key = data.draw(st.sampled_from(keys))
    value = dict(table)[key]
    others = [said for other, said in table if other != key]
    if value == OTHER[key] or any(value in said for said in others) or OTHER[key] in others:
        return
    assert task_of.errors(table, text.replace(value, OTHER[key])) == 1


TABLE = (("name", "The Red Fox"), ("kind", "inn"), ("opens", "7:30"), ("tram", "7"))
SAID = {
    "The Red Fox is an inn on tram 7, open from 7:30.": 0,
    "An inn called The Red Fox. The Red Fox, the inn on tram 7, opens at 7:30.": 0,
    "The Red Fox is an inn, open from 7:30.": 1,  # the 7 of 7:30 is no tram
    "The Red Fox is an inn on tram 8, open from 7:30.": 1,
    "The Red Fox, a bakery on tram 7, opens at 8:00.": 2,
    "The Red Fox is an inn on tram 7, open from 7:30 to 8:00, closed on Mondays.": 2,
    "The Red Owl is an inn on tram 7, near The Red Fox, open from 7:30.": 1,
    "The Red Fox Inn is an inn on tram 7, open from 7:30.": 1,
    "The Red Fox is an inn on tram 7 7 7, open from 7:30.": 2,
    "The Red Fox is an inn on tram 7, open from 7:30. It has a garden.": 1,
    "Kind guests say that The Red Fox is an inn on tram 7, open from 7:30.": 0,
    "Name -> The Red Fox; Kind -> inn; Opens -> 7:30; Tram -> 7": 4,
    "The Red Fox is an inn on tram 7, open from 7:300.": 1,
    "": 4,
}


@pytest.mark.parametrize("text", SAID)
def test_errors_by_hand(text):
    assert task_of.errors(TABLE, text) == SAID[text]


def test_thing_that_is_kind_or_feature():
    table = (("name", "The Red Fox"), ("kind", "inn"), ("feature", "a garden"))
    for said in ("has a garden", "has its own garden", "has gardens"):
        assert task_of.errors(table, f"The Red Fox is an inn and {said}.") == 0
    assert task_of.errors(table, "The Red Fox is a garden.") == 1
    other = (("name", "The Red Fox"), ("kind", "garden"), ("offer", "pottery"))
    assert task_of.errors(other, "The Red Fox is a garden with pottery.") == 0
    assert task_of.errors(other, "The Red Fox is a garden with pottery courses.") == 1


def test_value_that_stands_twice_must_be_said_twice():
    table = (("name", "The Red Fox"), ("kind", "inn"), ("tram", "7"), ("seats", "7"))
    assert task_of.errors(table, "The Red Fox is an inn with 7 seats on tram 7.") == 0
    assert task_of.errors(table, "The Red Fox is an inn with 7 seats.") == 1


def test_every_rule_is_used(monkeypatch):
    used, say = set(), type(task_of.grammar()).say
    monkeypatch.setattr(
        type(task_of.grammar()), "say", lambda self, rule, *rest: used.add(rule) or say(self, rule, *rest)
    )
    train = tasks.load("table_to_text").train
    for number, table in enumerate(train.info["table"][:300]):
        task_of.tell(table, task_of.Random(number))
    assert used == set(task_of.grammar())


def test_rates(task):
    test = task.test
    assert task_of.slot_error_rate(test.labels, test) == 0 and task.metric(test.labels, test) == 1
    assert task_of.slot_error_rate([""] * len(test), test) == 1
    assert task_of.bleu(test.labels, test) == pytest.approx(100)
    assert task_of.bleu(["no"] * len(test), test) == pytest.approx(0, abs=1e-3)


def test_template_makes_no_error_but_sounds_otherwise(task):
    assert task.baseline() == 1
    assert task_of.bleu(task.dummy(task.test), task.test) < 40


def test_a_smaller_task_keeps_tables_and_texts_together(task):
    small = task.smaller(train=7, test=5, seed=3)
    assert [len(getattr(small, name)) for name in NAMES] == [7, task_of.VALIDATION, 5]
    assert isinstance(small.test, Pairs) and small.metric(small.test.labels, small.test) == 1
    with pytest.raises(ValueError, match="n must be between 1 and 7"):
        small.train.take(8)


def test_as_dataset(task):
    rows = task.smaller(test=3).test.as_dataset()
    assert {"prompt", "completion", "table"} <= set(rows.column_names) and len(rows) == 3


def test_text_to_table_is_the_task_turned_around(task):
    back = tasks.load("text_to_table")
    for name, split in splits(back).items():
        there = getattr(task, name)
        assert [text.strip() for text in split.texts] == list(there.labels)
        assert [task_of.prompt(table) for table in split.info["table"]] == [
            f"{table}{task_of.ASK}" for table in split.labels
        ]
        assert all(
            text_to_table.read(label) == set(t) for label, t in zip(split.labels, split.info["table"], strict=True)
        )
    assert back.metric(back.test.labels, back.test) == 1 and back.baseline() == 0


def test_f1_by_hand():
    table = (("since", "1"), ("tram", "2"))
    split = Pairs(("a\n",), (task_of.prompt(table),), {"table": (table,)})
    said = {
        "Since -> 1; Tram -> 2": 1.0, "Since -> 1": 2 / 3, "Since -> 1; Tram -> 3": 0.5, "Tram -> 1 -> 2": 0.0,
        "Since -> 1; Tram -> 2; Seats -> 3": 0.8, "Since -> 1; Tram -> 2; Doors -> 3": 0.8, "nothing": 0.0,
    }  # fmt: skip
    assert {text: text_to_table.slot_f1([text], split) for text in said} == pytest.approx(said)
