"""The lessons as files: valid, executed, clean, in the agreed form; and what nbval does not compare is asserted."""

import ast
import copy
import itertools
import json
import re

from course_lib.cli import main
from course_lib.notebooks import METADATA, WIDGET_VIEW, execute, normalise, problems
from course_lib.paths import NOTEBOOKS

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
# nbval compares less of a cell with one of these; each may also stand in the source as a comment, in capitals.
NBVAL = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception"}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


# The form of a lesson: each function names the cells that break a rule.


def tags(cell) -> set[str]:
    comments = re.findall(r"^\s*#+\s*(\w+)\s*$", cell.source, re.MULTILINE)
    return {*cell.metadata.get("tags", []), *(comment.lower().replace("_", "-") for comment in comments)}


def tree(cell) -> ast.Module:
    """The syntax tree of a code cell, its magics and shell lines read as IPython reads them."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def calls(cell) -> list[str]:
    """The names that a code cell calls: `fit` for fit(…) and for model.fit(…)."""
    called = [node.func for node in ast.walk(tree(cell)) if isinstance(node, ast.Call)]
    return [name for f in called if (name := getattr(f, "attr", None) or getattr(f, "id", None))]


def asserts(cell) -> bool:
    """An assert statement, or a call such as torch.testing.assert_close."""
    statement = any(isinstance(node, ast.Assert) for node in ast.walk(tree(cell)))
    return statement or any(name.startswith("assert") for name in calls(cell))


def headings(cell) -> list[tuple[int, str]]:
    """(level, title) of the headings in a markdown cell; a # inside a code block is none."""
    if cell.cell_type != "markdown":
        return []
    text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.MULTILINE | re.DOTALL)
    return [(len(marks), title) for marks, title in re.findall(r"^(#{1,6})\s+(.+?)\s*#*$", text, re.MULTILINE)]


def unproven(notebook) -> list[str]:
    """Cells that are not compared and whose result nothing asserts.

    The rule: a code cell that calls fit(…), or that carries one of nbval's tags, is followed in its own section by at
    least one code cell that asserts and carries none of these tags. The section ends at the next heading of level
    one or two, or with the notebook. The setup cell is exempt: its one line names the reader's own machine.
    """
    found, waiting = [], []
    for cell in notebook.cells:
        if any(level <= 2 for level, _ in headings(cell)):
            found, waiting = found + waiting, []
        if cell.cell_type != "code":
            continue
        if asserts(cell) and not tags(cell) & NBVAL:
            waiting = []
        if ("fit" in calls(cell) or tags(cell) & NBVAL) and "setup" not in calls(cell):
            waiting.append(cell.id)
    return found + waiting


def setup_cells(notebook) -> list[int]:
    """Which code cells, counted from 0, call setup(…)."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [i for i, cell in enumerate(code) if "setup" in calls(cell)]


def without_hints(notebook) -> list[str]:
    """Cells with an exercise that lack two hints, each folded away."""
    hints = [f"<details><summary>{which} hint</summary>\n\n" for which in ("First", "Second")]
    exercises = [cell for cell in notebook.cells if re.search(r"^\*\*Exercise \d", cell.source, re.MULTILINE)]
    return [cell.id for cell in exercises if [cell.source.count(hint) for hint in hints] != [1, 1]]


def open_solutions(notebook) -> list[str]:
    """Solutions, and quizzes with their answers, that a reader would see before trying."""
    telling = [c for c in notebook.cells if "solution" in c.metadata.get("tags", []) or "widgets.Quiz(" in c.source]
    return [cell.id for cell in telling if cell.metadata.get("jupyter", {}).get("source_hidden") is not True]


def wordless(notebook) -> list[str]:
    """Cells with an image that no sentence of text stands for."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = str(data.get("text/plain", "")).strip()
            if "image/png" in data and (text.startswith("<") or not re.search(r"\w+\s+\w+.*[.!?]$", text, re.DOTALL)):
                found.append(cell.id)
    return found


def missing_parts(notebook) -> list[str]:
    """Headings that every lesson has, and an arXiv id after the words "further reading"."""
    titles = [title for cell in notebook.cells for _, title in headings(cell)]
    parts = ("Claims", "Check yourself", "Exercises", "Takeaways")
    found = [part for part in parts if not any(re.search(rf"\b{part}\b", title, re.IGNORECASE) for title in titles)]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    _, _, reading = prose.lower().rpartition("further reading")
    return found + ([] if re.search(r"arxiv[^\d\n]{0,20}\d{4}\.\d{4,5}\b", reading) else ["an arXiv id to read on"])


# The lessons.


@pytest.fixture(params=LESSONS, ids=lambda file: file.stem)
def file(request):
    return request.param


@pytest.fixture
def lesson(file):
    return nbformat.read(file, as_version=4)


@pytest.mark.filterwarnings("error")
def test_lesson_is_a_valid_notebook(file):
    # Not as nbformat.read gives it: that only logs what is invalid, and renames cells whose id is there twice.
    nbformat.validate(nbformat.from_dict(json.loads(file.read_text(encoding="utf-8"))))


def test_lesson_is_clean(lesson):
    assert not (found := problems(lesson)), "\n".join(found)


def test_lesson_is_as_execute_leaves_it(lesson):
    normalised = copy.deepcopy(lesson)
    normalise(normalised)
    assert normalised == lesson


def test_lesson_is_set_up_once_and_first(lesson):
    assert setup_cells(lesson) == [0]


def test_lesson_asserts_what_is_not_compared(lesson):
    assert not (found := unproven(lesson)), "\n".join(found)


def test_lesson_hides_its_solutions(lesson):
    assert not (found := open_solutions(lesson)), "\n".join(found)


def test_lesson_has_hints_for_its_exercises(lesson):
    assert not (found := without_hints(lesson)), "\n".join(found)


def test_lesson_says_every_image_in_words(lesson):
    assert not (found := wordless(lesson)), "\n".join(found)


def test_lesson_asks_three_questions(lesson):
    assert sum("widgets.Quiz(" in cell.source for cell in lesson.cells) >= 3


def test_lesson_has_its_parts(lesson):
    assert not (found := missing_parts(lesson)), "\n".join(found)


# The rules themselves, on notebooks small enough to see.


NUMBERS = itertools.count()


def code(source, id=None, *, outputs=(), count=1, tags=(), **metadata):
    metadata |= {"tags": list(tags)} if tags else {}
    id = id or f"cell-{next(NUMBERS)}"
    return new_code_cell(source, id=id, outputs=list(outputs), execution_count=count, metadata=metadata)


def text(source):
    return new_markdown_cell(source, id=f"text-{next(NUMBERS)}")


def book(*cells):
    return new_notebook(cells=list(cells), metadata=copy.deepcopy(METADATA))


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def shown(**data):
    return new_output("display_data", data={key.replace("_", "/"): value for key, value in data.items()})


IGNORED = code("time.time()", "timed", tags=["nbval-ignore-output"])
FIT = code("run = training.fit(model, task)", "fitted")
PROOF = code("assert run.score > 0.5\nprint('better than chance')", "proof")


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([IGNORED], ["timed"]),
        ([code("here = setup()", "setup", tags=["nbval-ignore-output"])], []),
        ([FIT], ["fitted"]),
        ([FIT, PROOF], []),
        ([IGNORED, FIT, text("Now look:"), text("### Closer"), code("1 + 1"), PROOF], []),
        ([PROOF, FIT], ["fitted"]),
        ([FIT, text("## Next"), PROOF], ["fitted"]),
        ([FIT, text("```python\n## no heading\n```"), PROOF], []),
        ([FIT, code("assert True", tags=["nbval-ignore-output"], id="lax")], ["fitted", "lax"]),
        ([FIT, code("assert True", tags=["raises-exception"], id="lax")], ["fitted", "lax"]),
        ([FIT, code("# assert nothing\n'assert'")], ["fitted"]),
        ([FIT, code("torch.testing.assert_close(a, b)")], []),
        ([FIT, code("assert fit(again).score", "again")], ["again"]),
        ([code("# NBVAL_IGNORE_OUTPUT\ntime.time()", "marked")], ["marked"]),
        ([code("!course doctor\n%timeit 1", "magic", tags=["nbval-skip"])], ["magic"]),
        ([code("def fit(x): ...\nprofit(1), fitting, 'fit()'")], []),
        ([code("for name in names:\n    runs[name] = fit(name)", "loop"), code("if runs:\n    assert runs")], []),
    ],
)
def test_what_is_not_compared_must_be_asserted(cells, names):
    assert unproven(book(*cells)) == names


def test_setup_is_found():
    assert setup_cells(book(text("# T"), code("import x\nsession = setup(seed=1)"), code("'setup()'"))) == [0]
    assert setup_cells(book(code("import x"), code("course_lib.setup()"), code("setup()"))) == [1, 2]
    assert setup_cells(book(code("from course_lib import setup"))) == []


def test_exercises_without_hints_are_found():
    hint = "<details><summary>{} hint</summary>\n\nThink.\n\n</details>"
    one, both = hint.format("First"), hint.format("First") + hint.format("Second")
    cells = [new_markdown_cell(f"**Exercise {i}** (easy). What?\n\n{hints}") for i, hints in enumerate(("", one, both))]
    assert without_hints(book(*cells)) == [cell.id for cell in cells[:2]]


def test_open_solutions_are_found():
    hidden = code("1", "closed", tags=["solution"], jupyter={"source_hidden": True})
    half = code("1", "half", tags=["solution"], jupyter={"source_hidden": False})
    quiz = code("widgets.Quiz()", "quiz")
    assert open_solutions(book(hidden, half, code("1", "open", tags=["solution"]), quiz)) == ["half", "open", "quiz"]


@pytest.mark.parametrize(
    ("data", "ok"),
    [
        ({"text_plain": "Accuracy rises with the rank."}, True),
        ({"text_plain": "<Figure size 640x480 with 1 Axes>"}, False),
        ({"text_plain": "figure"}, False),
        ({"text_plain": ""}, False),
        ({}, False),
    ],
)
def test_wordless_images_are_found(data, ok):
    assert wordless(book(code("picture", "drawn", outputs=[shown(image_png=PNG, **data)]))) == ([] if ok else ["drawn"])


def test_missing_parts_are_found():
    parts = ["## Claims, tested", "## Check yourself", "## Exercises", "## Takeaways"]
    parts.append("### Further reading\n- Hu, arXiv:2106.09685")
    assert missing_parts(book(*map(text, parts))) == []
    assert missing_parts(book(*map(text, parts[1:]))) == ["Claims"]
    assert missing_parts(book(*map(text, [*parts[:4], "arXiv:2106.09685\n### Further reading\n- Hu (2021)"]))) == [
        "an arXiv id to read on"
    ]


# normalise, problems and execute.


def test_a_clean_notebook_has_no_problem():
    assert problems(book(text("# T"), code("print(1)", outputs=[stream("1\n")]), code("2", "other", count=2))) == []


def error():
    return new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (code("1", count=None), "execution count None"),
        (code("1", count=7), "execution count 7"),
        (code("1", outputs=[stream("careful\n", "stderr")]), "stderr"),
        (code("1", outputs=[error()]), "error"),
        (code("1;"), "semicolon"),
        (code("1;\n\n"), "semicolon"),
        (code("\n".join("x" for _ in range(31))), "more than 30 lines"),
        (code("1", outputs=[stream("<function f at 0x7f3a00c0ffee>\n")]), "address"),
        (code("1", outputs=[shown(text_plain="<__main__.Thing object at 0x7f3a00c0ffee>")]), "address"),
        (code("1", outputs=[shown(**{WIDGET_VIEW: {"model_id": "1"}})]), "widget view"),
        (code("1", outputs=[stream("/home/ada/lib.py:3\n")]), "path"),
        (code("1", outputs=[stream("line\n/tmp/x/lib.py:3: warned\n")]), "path"),
        (code("open('/work/main/data.json')"), "path"),
        (code(r"open('C:\Users\ada\data.json')"), "path"),
        (text("See /Users/ada/notes."), "path"),
        (code("1", "Upper_Case"), "no slug"),
        (code("1", "0123abcd"), "no slug"),
    ],
)
def test_each_problem_is_found(cell, said):
    found = problems(book(cell))
    assert len(found) == 1 and said in found[0]


@pytest.mark.filterwarnings("ignore::nbformat.warnings.DuplicateCellId")
def test_duplicate_ids_and_widget_state_are_found():
    twice = book(code("1"), code("2", count=2))
    twice.cells[1].id = twice.cells[0].id
    assert problems(twice) == ["cell ids are not unique"]
    stored = book(code("1"))
    stored.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    assert problems(stored) == ["widget state is stored"]


def test_web_addresses_and_relative_paths_are_no_problem():
    links = text("[a](https://example.org/home/x) and [b](../data/tmp/x), `course_lib/opt/x`")
    assert problems(book(links, code("1", outputs=[stream("data/var/x\n")]))) == []


def untidy():
    """What an execution leaves: timings, widget state and views, cut streams, metadata of editors."""
    pieces = [stream("a"), stream("b\n"), stream("w\n", "stderr"), stream("c"), shown(text_plain="x"), stream("d")]
    view = shown(text_plain="A figure.", image_png=PNG, **{WIDGET_VIEW: {"model_id": "12"}})
    view.metadata = {"image/png": {"width": 3}}
    ran = code("1", outputs=[*pieces, view], tags=["solution"], jupyter={"source_hidden": True})
    ran.metadata |= {"execution": {"iopub.execute_input": "2026-01-01"}, "collapsed": False}
    notebook = book(text("# T"), ran)
    notebook.metadata |= {"widgets": {"state": {}}, "colab": {}, "course": {"minutes": 50}}
    notebook.metadata.language_info = {"name": "python", "version": "3.11.2"}
    return notebook


def test_normalise_keeps_what_is_seen_only():
    notebook = untidy()
    normalise(notebook)
    cell = notebook.cells[1]
    assert notebook.metadata == METADATA | {"course": {"minutes": 50}}
    assert cell.metadata == {"tags": ["solution"], "jupyter": {"source_hidden": True}}
    seen = [output.get("text") or output.data for output in cell.outputs]
    assert seen == [
        "ab\n",
        "w\n",
        "c",
        {"text/plain": "x"},
        "d",
        {"text/plain": "A figure.", "image/png": PNG},
    ]
    assert cell.outputs[-1].metadata == {}
    nbformat.validate(notebook)


def test_normalised_stays_as_it_is():
    notebook = untidy()
    normalise(notebook)
    once = nbformat.writes(notebook)
    normalise(notebook)
    assert nbformat.writes(notebook) == once
    again = nbformat.reads(once, as_version=4)
    normalise(again)
    assert nbformat.writes(again) == once


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """execute() sets TQDM_DISABLE for its process; IPython's history stays out of the home folder."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


SLOPE = """\
def draw(k):
    return curves({"line": ([0, 1], [0, k])}, x="x", y="y", title="Slope", alt=f"Slope {k}.")


Explorer(draw, k=ipywidgets.IntSlider(2, 1, 5))"""


def test_execute_twice_gives_the_same_bytes(tmp_path, kernel):
    file = tmp_path / "tiny.ipynb"
    cells = [
        code(
            "import ipywidgets\n\nfrom course_lib.plots import curves\nfrom course_lib.widgets import Explorer",
            "imports",
        ),
        code("print('a', end='', flush=True)\nimport time\n\ntime.sleep(0.3)\nprint('b', flush=True)", "cut", count=9),
        code(SLOPE, "slope", outputs=[stream("stale")]),
    ]
    nbformat.write(book(text("# T"), *cells), file)
    assert execute(file) > 0
    once = file.read_bytes()
    execute(file)
    assert file.read_bytes() == once

    notebook = nbformat.read(file, as_version=4)
    assert problems(notebook) == [] and wordless(notebook) == []
    assert notebook.cells[2].outputs == [stream("ab\n")]
    (figure,) = notebook.cells[3].outputs
    assert set(figure.data) == {"text/plain", "image/png"} and figure.data["text/plain"] == "Slope 2."


def test_the_command_says_what_the_tests_would_find(tmp_path, kernel, capsys):
    clean, long = tmp_path / "clean.ipynb", tmp_path / "long.ipynb"
    nbformat.write(book(code("print(1)", "short")), clean)
    nbformat.write(book(code("\n".join(["print(1)"] * 31), "endless")), long)
    assert main(["execute", str(clean)]) == 0
    assert capsys.readouterr().out.startswith("clean.ipynb: ")
    assert main(["execute", str(long), str(clean)]) == 1
    assert "\n  code cell 1 (endless) has more than 30 lines\n" in capsys.readouterr().out


def test_an_error_leaves_the_file_as_it_was(tmp_path, kernel):
    file = tmp_path / "broken.ipynb"
    nbformat.write(book(code("print(1)", "fine"), code("1 / 0", "broken", outputs=[stream("as it was\n")])), file)
    before = file.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(file)
    assert file.read_bytes() == before
