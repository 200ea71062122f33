"""The tasks hold what their data cards say, and nothing in them helps to cheat."""

import importlib.metadata
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from itertools import combinations

from course_lib import tasks
from course_lib.errors import CourseError
from course_lib.tasks import Split, Task, docs_topic, docstrings, reviews
from course_lib.tasks.docstrings import first_sentence

import pytest
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("train", "validation", "test")
KINDS = {
    "plain",
    "sarcasm",
    "negation",
    "praise_and_anger",
    "praise_after_complaint",
    "complaint_after_praise",
    "faint_praise",
    "expectation",
}
LABELLED = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def splits(task: Task) -> dict[str, Split]:
    return {name: getattr(task, name) for name in NAMES}


def all_texts(task: Task) -> list[str]:
    return [text for split in splits(task).values() for text in split.texts]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def phrases(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def nearest(texts: list[str], n: int = 3) -> tuple[float, str, str]:
    """The largest Jaccard similarity of the word n-grams of two texts, and the two."""
    of = [phrases(text, n) for text in texts]
    holders = defaultdict(list)
    for i, grams in enumerate(of):
        for gram in grams:
            holders[gram].append(i)
    shared = Counter(pair for holding in holders.values() for pair in combinations(holding, 2))
    worst = max(shared, key=lambda pair: shared[pair] / len(of[pair[0]] | of[pair[1]]))
    i, j = worst
    return shared[worst] / len(of[i] | of[j]), texts[i], texts[j]


def toy(labels, start: int = 0) -> Split:
    numbers = tuple(range(start, start + len(labels)))
    return Split(tuple(f"text {n}" for n in numbers), tuple(labels), {"number": numbers})


@pytest.fixture(scope="module")
def written() -> Task:
    return tasks.load("reviews")


@pytest.fixture(scope="module")
def read() -> Task:
    return tasks.load("docs_topic")


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """`docs_topic` read anew from the installed packages, and the folder that it was cached in."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings, "CACHE", folder)
        return docs_topic.load.__wrapped__(), folder


@pytest.mark.parametrize(("name", "size"), [("train", 1500), ("validation", 300), ("test", 600)])
def test_reviews_sizes_balance_and_kinds(written, name, size):
    split = getattr(written, name)
    assert Counter(split.labels) == dict.fromkeys(range(3), size // 3)
    assert set(split.info) == {"place", "kind"}
    assert set(split.info["kind"]) == KINDS
    assert all(split.info["place"])


def test_reviews_are_clean_text_of_10_to_60_words(written):
    for text in all_texts(written):
        assert 10 <= len(text.split()) <= 60, text
        assert unicodedata.is_normalized("NFC", text), text
        assert not [c for c in text if unicodedata.category(c)[0] == "C"], text
        assert text == text.strip()


def test_reviews_files_are_utf8_without_a_mark():
    for name in NAMES:
        data = (reviews.DATA / "reviews" / f"{name}.csv").read_bytes()
        assert not data.startswith(b"\xef\xbb\xbf")
        assert "\ufffd" not in data.decode("utf-8")


def test_no_review_is_nearly_another(written):
    texts = all_texts(written)
    assert len({" ".join(words(text)) for text in texts}) == len(texts)
    similarity, *pair = nearest(texts)
    assert similarity < 0.3, pair


def test_no_phrase_and_no_opening_is_worn_out(written):
    texts = all_texts(written)
    repeated = Counter(phrase for text in texts for phrase in phrases(text, 6))
    openings = Counter(tuple(words(text)[:3]) for text in texts)
    assert repeated.most_common(1)[0][1] <= 3
    assert openings.most_common(1)[0][1] <= 6


def test_no_single_word_tells_the_label(written):
    rows = [row for split in splits(written).values() for row in zip(split.texts, split.labels, strict=True)]
    total = Counter(label for _, label in rows)
    with_word = defaultdict(Counter)
    for text, label in rows:
        for word in set(words(text)):
            with_word[word][label] += 1
    stumps = {w: max(c.values()) + max((total - c).values(), default=0) for w, c in with_word.items()}
    best = max(stumps, key=stumps.get)
    assert stumps[best] / len(rows) < 0.45, best


def test_missing_reviews_say_how_to_restore_them(monkeypatch, tmp_path):
    monkeypatch.setattr(reviews, "DATA", tmp_path)
    with pytest.raises(CourseError, match=r"git checkout data/reviews"):
        reviews.read("train")


@pytest.mark.parametrize("name", NAMES)
def test_docs_topic_sizes_and_balance(read, name):
    each = docs_topic.PER_AREA[name]
    assert Counter(getattr(read, name).labels) == dict.fromkeys(range(len(read.labels)), each)


def test_docs_topic_splits_share_nothing(read):
    modules = {name: set(split.info["module"]) for name, split in splits(read).items()}
    for one, other in combinations(NAMES, 2):
        assert not modules[one] & modules[other]
    lowered = [text.lower() for text in all_texts(read)]
    assert len(set(lowered)) == len(lowered)


def test_docs_topic_area_is_no_echo_of_a_module(read):
    for split in splits(read).values():
        assert max(Counter(split.info["module"]).values()) <= docs_topic.PER_MODULE
        for module, label in zip(split.info["module"], split.labels, strict=True):
            assert module.startswith(docs_topic.AREAS[read.labels[label]])


def test_docs_topic_texts_are_first_sentences(read):
    assert all(first_sentence(text) == text for text in all_texts(read))


def test_docs_topic_is_the_same_whether_read_or_cached(read, collected):
    anew, folder = collected
    assert splits(anew) == splits(read)
    assert [file.suffix for file in folder.iterdir()] == [".json"]


def test_docs_topic_cache_is_reused(collected, monkeypatch):
    anew, folder = collected
    monkeypatch.setattr(docstrings, "CACHE", folder)
    monkeypatch.setattr(docs_topic, "_collect", pytest.fail)
    assert splits(docs_topic.load.__wrapped__()) == splits(anew)


@pytest.fixture
def without_sympy(monkeypatch, tmp_path):
    """A machine on which sympy is not installed, with an empty cache folder."""
    version = importlib.metadata.version

    def missing(name):
        if name == "sympy":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(docstrings, "CACHE", tmp_path)
    return tmp_path


def test_docs_topic_names_a_missing_package(without_sympy):
    with pytest.raises(CourseError, match=r"docstrings of sympy, which is not installed\. Run `make lab`"):
        docs_topic.load.__wrapped__()


def test_docs_topic_takes_the_newest_file_brought_along(without_sympy, read):
    def rows(name):
        split = getattr(read, name).rows(range(3))
        return [
            {"text": text, "area": read.labels[label], "module": module}
            for text, label, module in zip(split.texts, split.labels, split.info["module"], strict=True)
        ]

    for age, names in ((10, NAMES), (100, ())):
        file = without_sympy / f"docs_topic-{age}.json"
        file.write_text(json.dumps({name: rows(name) for name in names}))
        os.utime(file, (1e9 - age, 1e9 - age))
    found = docs_topic.load.__wrapped__()
    assert found.test == read.test.rows(range(3))


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum of all the values given here.", "Return the sum of all the values given here."),
        ("  Return the sum\n  of all the values\tgiven here.  ", "Return the sum of all the values given here."),
        ("Return the sum of all the values given here. And more.", "Return the sum of all the values given here."),
        ("Return the sum of all the values given here.\n\nMore text.", "Return the sum of all the values given here."),
        ("Is the sum of the two given values small?", "Is the sum of the two given values small?"),
        ("Return the sum of all the values given here", None),
        ("Return the sum of all the values.", None),
        ("Return the sum\n\nof all the values given here.", None),
        (f"Return the sum of {'very ' * 40}many values.", None),
        ("Return {the sum} of all the values given here.", None),
        ("See https://example.org for the sum of all values.", None),
        (">>> add(1, 2) is the sum of all values here.", None),
        ("1 2 3 4 5 6 7 8 9 10 11 12.", None),
        ("", None),
        (" \n\n ", None),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize("short", ["e.g.", "i.e.", "cf.", "Fig.", "w.r.t."])
def test_first_sentence_does_not_end_in_an_abbreviation(short):
    text = f"Return the sum of all the values given, {short} the total amount."
    assert first_sentence(text + " It is a float.") == text


@given(
    text=st.text()
    | st.lists(st.sampled_from(["the", "sum", "of", "it.", "Is", "it?", "\n", "\n\n", "{"])).map(" ".join)
)
def test_first_sentence_is_one_sentence_on_one_line(text):
    found = first_sentence(text)
    if found is not None:
        assert 8 <= len(found.split()) <= 40
        assert found == " ".join(found.split())
        assert found[-1] in ".!?"
        assert not re.search(r"[.!?]\s", found)
        assert first_sentence(found) == found


@given(labels=LABELLED, data=st.data())
def test_take_is_balanced(labels, data):
    split = toy(labels)
    n = data.draw(st.integers(1, len(split)))
    taken = split.take(n, data.draw(st.integers(0, 5)))
    had, got = Counter(labels), Counter(taken.labels)
    assert len(taken) == n
    assert all(got[label] >= min(had[label], max(got.values()) - 1) for label in had)


@given(labels=LABELLED, n=st.integers(1, 60), seed=st.integers(0, 5))
def test_take_draws_rows_by_seed(labels, n, seed):
    split = toy(labels)
    n = min(n, len(split))
    taken = split.take(n, seed)
    assert taken == split.take(n, seed)
    assert len(set(taken.texts)) == n
    assert taken == split.rows(taken.info["number"])


def test_take_differs_by_seed():
    split = toy([0, 1] * 50)
    assert split.take(20, seed=0) != split.take(20, seed=1)


@given(labels=LABELLED, n=st.integers(-70, 70))
def test_take_refuses_what_is_not_there(labels, n):
    split = toy(labels)
    if not 1 <= n <= len(split):
        with pytest.raises(ValueError, match=f"between 1 and {len(split)}.*got {n}"):
            split.take(n)


def test_columns_must_be_as_long_as_the_texts():
    with pytest.raises(ValueError, match="'labels' has 1 rows, texts have 2"):
        Split(("a", "b"), (0,))
    with pytest.raises(ValueError, match="'module' has 3 rows, texts have 2"):
        Split(("a", "b"), (0, 1), {"module": (1, 2, 3)})


def test_smaller_cuts_only_the_splits_that_are_named(written):
    small = written.smaller(train=30, test=10_000, seed=1)
    assert Counter(small.train.labels) == {0: 10, 1: 10, 2: 10}
    assert small.train == written.train.take(30, seed=1)
    assert (small.validation, small.test) == (written.validation, written.test)
    assert (small.name, small.labels, small.metric) == (written.name, written.labels, written.metric)


def test_baseline_answers_the_most_frequent_training_label(written, read):
    lopsided = Task("toy", ("a", "b"), toy([0, 1, 1]), toy([0, 1]), toy([1, 1, 1, 0]))
    assert lopsided.baseline() == 0.75
    assert written.baseline() == pytest.approx(1 / 3)
    assert read.baseline() == pytest.approx(1 / 10)


@given(pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1))
def test_accuracy_is_the_share_of_equal_entries(pairs):
    predicted, labels = zip(*pairs, strict=True)
    assert tasks.accuracy(predicted, labels) == pytest.approx(sum(p == y for p, y in pairs) / len(pairs))


def test_unknown_task_names_the_near_ones():
    with pytest.raises(
        ValueError,
        match=r"Unknown task 'review'\. Did you mean 'reviews'\? Known: docs_search, docs_topic, instructions, reviews",
    ):
        tasks.load("review")


def test_as_dataset_has_the_same_rows(written):
    from datasets import Dataset

    split = written.validation
    dataset = split.as_dataset()
    assert isinstance(dataset, Dataset)
    assert dataset.column_names == ["text", "label", "place", "kind"]
    for name, column in {"text": split.texts, "label": split.labels, **split.info}.items():
        assert tuple(dataset[name]) == column
