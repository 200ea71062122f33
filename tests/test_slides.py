"""Lessons as lectures: what stands on slides, what in the notes, and where the JavaScript comes from."""

import re

from course_lib import javascript, slides
from course_lib.cli import main
from course_lib.errors import CourseError
from course_lib.paths import NOTEBOOKS
from course_lib.widgets import Quiz

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def printed(text):
    return new_output("stream", text=text)


def picture():
    return new_output("display_data", {"image/png": PNG, "text/plain": "A dot.", slides.WIDGET_VIEW: {"model_id": "x"}})


def code(source, *outputs, name=None, **metadata):
    cell = new_code_cell(source, outputs=list(outputs), metadata=metadata)
    return cell | {"id": name} if name else cell


def deck(*cells):
    return [
        (cell.metadata.slideshow.slide_type, cell.source, cell.get("outputs", []))
        for cell in slides.lecture(new_notebook(cells=[nbformat.from_dict(cell) for cell in cells])).cells
    ]


def test_a_heading_begins_a_slide_and_all_of_its_text_is_in_the_notes():
    long = "## One\n\nThe first sentence says what it is about, and it does so in more than ten words. " + "More. " * 80
    found = deck(new_markdown_cell(f"Before.\n{long}\n\n**Predict**: what? And why?"))
    kinds, texts = [kind for kind, *_ in found], [text for _, text, _ in found]
    assert kinds == ["subslide", "notes", "slide", "notes"]
    assert texts[0] == texts[1] == "Before."
    assert texts[2].endswith("than ten words.\n\n**Predict**: what? And why?") and texts[3].count("More.") == 80


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Short.", "Short."),
        ("As Hu et al. found in 2021. More follows here.", "As Hu et al. found in 2021."),
        ("It is 0.5, e.g. here. Then more.", "It is 0.5, e.g. here."),
        ("1. One. And more.\n2. Two (2 of them). And more.", "1. One.\n2. Two (2 of them)."),
        ("(An aside.)", ""),
        ("$$x = 1.5. y$$", "$$x = 1.5. y$$"),
        ("**Further reading**: many. Papers.", ""),
        ("<details><summary>Answer</summary>\n\nNo.\n\n</details>", ""),
    ],
)
def test_the_beginning_of_a_text_is_shown(monkeypatch, text, wanted):
    monkeypatch.setattr(slides, "WORDS", 1)
    monkeypatch.setattr(slides, "ENOUGH", 1)
    assert slides.shortened(text) == wanted


def test_what_is_too_long_for_a_slide_goes_on_on_the_next(monkeypatch):
    monkeypatch.setattr(slides, "ROOM", 6)
    found = deck(new_markdown_cell("## Long\n\n- one two three\n- four five six\n- seven"))
    assert [text for kind, text, _ in found if kind != "notes"] == [
        "## Long\n\n- one two three",
        "<p class='section'>Long</p>\n\n- four five six\n\n- seven",
    ]


def test_code_and_what_it_prints_stand_together_where_they_fit():
    short, long = "print('a')", "def f():\n" + "    x = 1\n" * 20
    found = deck(new_markdown_cell("## Here"), code(short, printed("a\n")), code(long, printed("b\n" * 10)))
    shown = [(text, [one.text for one in outputs]) for kind, text, outputs in found if kind == "-"]
    assert shown == [(short, ["a"]), (long.rstrip(), []), (long, ["\n".join("b" * 10)])]
    assert {text for kind, text, _ in found if kind == "subslide"} == {"<p class='section'>Here</p>"}


def test_a_figure_is_shown_without_its_code_and_without_its_sliders():
    made = slides.lecture(new_notebook(cells=[nbformat.from_dict(code("plot()", picture()))])).cells[-1]
    assert made.metadata.tags == [slides.OUTPUT_ONLY] and set(made.outputs[0].data) == {"image/png", "text/plain"}


def test_tables_are_shown_without_the_code_that_prints_them():
    found = deck(code("print(1)\n" * 20, printed("a table")), code("judge()", printed("→ holds"), name="claim-one"))
    assert [[one.text for one in outputs] for kind, _, outputs in found if kind == "-"] == [["a table"], ["→ holds"]]


@pytest.mark.parametrize(
    "cell",
    [
        code("setup()", name="setup"),
        code("guess = 1", name="my-guess"),
        code("assert True", printed("It holds."), name="train-checked"),
        code("def f(): ...", tags=["solution"]),
    ],
)
def test_what_is_for_readers_alone_is_left_out(cell):
    assert deck(cell) == []


def test_a_quiz_is_a_question_with_its_answer_in_the_notes():
    data = Quiz("What is 1 + 1?", {"1": False, "2": True}, "Count.")._repr_mimebundle_()
    shown = {kind: data[kind] for kind in ("text/plain", "text/html")}
    cell = code("widgets.Quiz(...)", new_output("execute_result", shown), name="quiz-sum")
    (slide, question, _), (notes, answer, _) = deck(cell)
    assert (slide, notes) == ("subslide", "notes") and question.endswith("**What is 1 + 1?**\n\n- 1\n- 2")
    assert answer == "2. Count."


def test_exercises_are_left_out_and_takeaways_are_not():
    cells = [new_markdown_cell(text) for text in ("## Exercises\n\nTry.", "**Exercise 1**. Do.", "## Takeaways\n\nSo.")]
    assert [text for _, text, _ in deck(*cells)] == ["## Takeaways\n\nSo."] * 2


def test_a_slide_type_of_its_own_counts():
    cell = code("x = 1", printed("1"), name="setup", slideshow={"slide_type": "fragment"})
    assert deck(cell) == [("fragment", "x = 1", [printed("1")])]


@pytest.mark.parametrize("file", LESSONS, ids=lambda file: file.stem)
def test_no_figure_and_no_text_of_a_lesson_is_lost(file):
    notebook = nbformat.read(file, as_version=4)
    made = slides.lecture(nbformat.read(file, as_version=4)).cells
    drawn = [
        o.data["image/png"]
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert [
        o.data["image/png"] for cell in made for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
    ] == drawn
    notes = "\n".join(cell.source for cell in made if cell.metadata.slideshow.slide_type == "notes")
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not re.search(r"\*\*Exercise \d", cell.source):
            assert cell.source in notes
    assert 25 < sum(cell.metadata.slideshow.slide_type in ("slide", "subslide") for cell in made) < 120


def test_without_a_network_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(javascript, "WHEELS", tmp_path)
    monkeypatch.setattr(javascript, "CARRIERS", {"no-such-package-of-ours": ("1.0", "0" * 64, "", "")})
    with pytest.raises(CourseError, match="a download once"):
        slides.build([])


def test_an_unknown_lesson_is_named(capsys):
    assert main(["slides", "99"]) == 2 and "Known: 00_start_here" in capsys.readouterr().err
