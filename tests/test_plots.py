"""Every figure is a PNG with words and numbers beside it, the same bytes every time."""

import base64
import struct

from course_lib import plots
from course_lib.methods import FAMILIES, METHODS, UNTRAINED
from course_lib.plots import Picture, human, human_bytes
from course_lib.widgets import Dialog, Explorer, Quiz

import ipywidgets
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

ALT = "What the figure shows, in words."
TEXT = {"title": "Title", "alt": ALT}
LONG = list(range(30))
LINE = {"one": ([1, 10, 100], [0.5, 0.7, 0.9])}
SEEDS = {"one": ([1, 2], [[0.5, 0.6], [0.7, 0.8]]), "two": ([1, 2], [[0.1, 0.3], [0.2, 0.2]])}
MEMORY = {"full": {"weights": 9e7, "gradients": 9e7}, "head": {"weights": 9e7, "activations": 1e6}}
POINTS = {
    "full": {"trainable parameters": 2.2e7, "memory (bytes)": 3.6e8},
    "head": {"trainable parameters": 1155, "memory (bytes)": 9e7},
}
SCORES = {"full": [0.8, 0.82], "head": [0.7, 0.74]}
MATRIX = np.array([[5, 1, 0], [2, 4, 1], [0, 0, 6]])
PICTURES = {
    "curves": (
        lambda: plots.curves(LINE, x="rate", y="accuracy", log_x=True, log_y=True, **TEXT),
        {"one": [[1, 10, 100], [0.5, 0.7, 0.9]]},
    ),
    "curves over seeds": (
        lambda: plots.curves(SEEDS, x="rate", y="accuracy", baseline=("dummy", 0.33), percent=True, **TEXT),
        {name: [xs, ys] for name, (xs, ys) in SEEDS.items()},
    ),
    "long curves": (lambda: plots.curves({"one": (LONG, LONG)}, x="step", y="loss", **TEXT), {"one": [LONG, LONG]}),
    "bars": (
        lambda: plots.bars({"full": 22_565_376, "head": 1155}, x="n", log=True, **TEXT),
        {"full": 22_565_376, "head": 1155},
    ),
    "levels": (
        lambda: plots.levels({"int2": [-1, 0, 1]}, x="value", sample=[-1, 0, 0, 1], **TEXT),
        {"int2": [-1.0, 0.0, 1.0], "sample": [1] + 49 * [0] + [2] + 48 * [0] + [1]},
    ),
    "levels alone": (lambda: plots.levels({"bits": [0, 1]}, x="value", **TEXT), {"bits": [0.0, 1.0]}),
    "memory_bars": (lambda: plots.memory_bars(MEMORY, limits={"4 GB": 4e9}, **TEXT), MEMORY),
    "tradeoff": (
        lambda: plots.tradeoff(POINTS, SCORES, y="accuracy", baseline=("dummy", 0.33), **TEXT),
        {name: POINTS[name] | {"scores": SCORES[name]} for name in POINTS},
    ),
    "maps": (
        lambda: plots.maps({"before": np.eye(2), "after": np.eye(2)}, ["a", "b"], **TEXT),
        {"before": [[1.0, 0.0], [0.0, 1.0]], "after": [[1.0, 0.0], [0.0, 1.0]]},
    ),
    "tokens": (
        lambda: plots.tokens(["a", " b\n", "c"], [False, False, True], **TEXT),
        {"tokens": ["a", " b\n", "c"], "trained": [False, False, True]},
    ),
    "ranked": (
        lambda: plots.ranked(SCORES, {"full": "all", "head": "some"}, x="accuracy", baseline=("dummy", 0.3), **TEXT),
        {"full": [0.8, 0.82], "head": [0.7, 0.74]},
    ),
    "pareto": (
        lambda: plots.pareto(
            {"full": 2e7, "head": 1e3}, SCORES, {"full": "all", "head": "some"}, ["head"], x="n", y="a", **TEXT
        ),
        {
            "full": {"cost": 2e7, "scores": [0.8, 0.82], "front": False},
            "head": {"cost": 1e3, "scores": [0.7, 0.74], "front": True},
        },
    ),
    "heatmap": (
        lambda: plots.heatmap(MATRIX / MATRIX.max(), rows=["a", "b", "c"], columns=["1", "2", "3"], x="head", **TEXT),
        {"values": (MATRIX / MATRIX.max()).tolist()},
    ),
    "confusion": (
        lambda: plots.confusion(MATRIX, ["negative", "mixed", "positive"], **TEXT),
        {"matrix": [[5, 1, 0], [2, 4, 1], [0, 0, 6]]},
    ),
}


def size(png: bytes) -> tuple[int, int]:
    """Width and height in a PNG's header."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PICTURES)
def test_picture_has_image_words_and_numbers(name):
    draw, data = PICTURES[name]
    picture = draw()
    assert size(picture.png)[0] == picture.width
    assert picture.alt == ALT
    assert picture.data == data
    assert draw() == picture


def test_lines_are_told_in_words():
    bundle = PICTURES["curves"][0]()._repr_mimebundle_()
    assert bundle["text/plain"] == f"{ALT} By rate: one: from 0.5 at 1, to 0.9 at 100."
    series = {"up and down": ([3, 1, 2, 4], [0.9, [0.1, 0.3], 0.0, 0.5])}
    picture = plots.curves(series, x="n", y="a", percent=True, baseline=("dummy", 0.33), **TEXT)
    assert (
        picture.more == "By n: up and down: from 20% at 1, highest 90% at 3, lowest 0% at 2, to 50% at 4; dummy: 33%."
    )


@pytest.mark.filterwarnings("error")
def test_family_tree_names_every_family_and_method():
    column = {"lora": "beside it"}
    picture, again = (plots.family_tree(METHODS, FAMILIES, UNTRAINED, column, "a heading") for _ in range(2))
    families, titles, texts = zip(*picture.data["rows"], strict=True)
    assert picture == again
    assert list(dict.fromkeys(families)) == list(FAMILIES)
    assert {*UNTRAINED, *(method.title for method in METHODS.values())} == set(titles)
    assert texts[titles.index("LoRA")] == "beside it" and "a heading" in picture.alt
    assert "LoRA beside it" in picture.more and all(f"{family}: " in picture.more for family in FAMILIES)
    assert size(picture.png)[0] == picture.width


def test_other_numbers_give_another_image():
    one, other = (plots.bars({"a": value, "b": 2}, x="n", **TEXT) for value in (1, 3))
    assert one.png != other.png


def test_picture_shows_image_and_words():
    bundle = PICTURES["bars"][0]()._repr_mimebundle_()
    assert set(bundle) == {"image/png", "text/plain"}
    assert size(base64.b64decode(bundle["image/png"]))
    assert bundle["text/plain"] == ALT


@pytest.mark.parametrize(
    ("value", "text", "in_bytes"),
    [
        (0, "0", "0 B"),
        (12, "12", "12 B"),
        (1155, "1.16K", "1.16 kB"),
        (22_565_376, "22.6M", "22.6 MB"),
        (90_276_904, "90.3M", "90.3 MB"),
        (1_235_814_400, "1.24B", "1.24 GB"),
        (2e12, "2T", "2 TB"),
        (-1155, "-1.16K", "-1.16 kB"),
    ],
)
def test_human(value, text, in_bytes):
    assert (human(value), human_bytes(value)) == (text, in_bytes)


@given(value=st.integers(0, 10**14))
@example(value=999_999)
def test_human_needs_no_exponent(value):
    assert "e" not in human(value) + human_bytes(value)


def drawn(n: int, scale: float = 1.0) -> Picture:
    return plots.bars({"n": n * scale, "one": 1}, x="value", title="Title", alt=f"{n} times {scale:g}.")


@pytest.fixture
def explorer():
    sliders = {"n": ipywidgets.IntSlider(2, min=1, max=9), "scale": ipywidgets.FloatSlider(1.0, min=0.5, max=4)}
    return Explorer(drawn, **sliders)


def test_explorer_redraws_when_a_slider_moves(explorer):
    assert explorer.values() == {"n": 2, "scale": 1.0}
    assert (explorer.image.value, explorer.caption.value) == (drawn(2).png, "2 times 1.")
    explorer.sliders["n"].value = 5
    assert (explorer.image.value, explorer.caption.value) == (drawn(5).png, "5 times 1.")
    explorer.sliders["scale"].value = 2.0
    assert (explorer.image.value, explorer.caption.value) == (drawn(5, 2.0).png, "5 times 2.")


def test_explorer_shows_a_static_picture_too(explorer):
    explorer.sliders["n"].value = 5
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert base64.b64decode(bundle["image/png"]) == drawn(2).png
    assert bundle["text/plain"] == "2 times 1."


def test_explorer_draws_when_the_handle_is_let_go(explorer):
    assert not any(slider.continuous_update for slider in explorer.sliders.values())


def test_error_in_the_first_drawing_is_raised():
    with pytest.raises(ZeroDivisionError):
        Explorer(lambda n: drawn(1 // n), n=ipywidgets.IntSlider(0, min=0, max=3))


def test_tokens_break_lines_where_they_must():
    texts = ["<user>", "How", " many", "?\n", "x" * 50, "y" * 50, "<end>"]
    picture = plots.tokens(texts, [False] * 4 + [True] * 3, title="t", alt="said", columns=60)
    other = plots.tokens(texts, [True] * 7, title="t", alt="said", columns=60)
    assert picture.data == {"tokens": texts, "trained": [False] * 4 + [True] * 3}
    assert picture.png != other.png and picture.alt == "said"
    longer = plots.tokens(texts, [True] * 7, title="t", alt="said", columns=200)
    assert longer.png != other.png


def test_a_dialog_answers_and_shows_its_first_answer_without_a_kernel():
    dialog = Dialog(lambda text: f"<b>{text.upper()}</b>", "is it open?")
    assert dialog._repr_mimebundle_()["text/plain"] == "is it open?\n\n<b>IS IT OPEN?</b>"
    assert "&lt;b&gt;IS IT OPEN?" in dialog.said.value
    dialog.text.value = "since when?"
    dialog.button.click()
    assert "SINCE WHEN?" in dialog.said.value


def test_a_dialog_shows_what_went_wrong():
    dialog = Dialog(lambda text: text[0], "why?")
    dialog.text.value = ""
    dialog.button.click()
    assert "IndexError" in dialog.said.value
    with pytest.raises(IndexError):
        Dialog(lambda text: text[0], "")


def test_a_quiz_says_what_is_right_once_it_is_chosen():
    quiz = Quiz("1 < 2?", {"yes": 1 < 2, "no": 1 >= 2}, "1 & 2 are ordered.")
    assert quiz.choice.index is None and not quiz.said.value
    quiz.choice.value = "no"
    assert "No." in quiz.said.value and "ordered" not in quiz.said.value
    quiz.choice.value = "yes"
    assert quiz.said.value == "Right. 1 &amp; 2 are ordered."


def test_a_quiz_without_a_kernel_folds_its_answer_away():
    bundle = Quiz("1 < 2?", {"yes": True, "no": False}, "So it is.")._repr_mimebundle_()
    assert bundle["text/plain"] == "1 < 2?\n  ○ yes\n  ○ no"
    asked, answer = bundle["text/html"].split("<details>")
    assert "<b>1 &lt; 2?</b>" in asked and "So it is." not in asked and "yes. So it is." in answer


@pytest.mark.parametrize("options", [{"a": True, "b": True}, {"a": False, "b": False}, {}])
def test_a_quiz_has_exactly_one_right_option(options):
    with pytest.raises(ValueError, match="Exactly one option"):
        Quiz("?", options, "!")
