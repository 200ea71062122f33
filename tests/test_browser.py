"""In a real browser: every slider of every lesson moves its figure in JupyterLab, and every slide is whole.

Of a lesson's code only what its Explorers need is run: nbval runs the whole.
"""

import ast
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import symtable
import sys
import time
import urllib.request
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from course_lib import slides
from course_lib.notebooks import WIDGET_VIEW
from course_lib.paths import NOTEBOOKS

import nbformat
import pytest
from chromium import Complaints, needs_chromium
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

pytestmark = needs_chromium
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
STAND_IN = "stand_in.ipynb"
START, CELL, DRAW = 120, 300, 60  # seconds that the server, one cell and one figure may take on a busy machine


def stand_in() -> nbformat.NotebookNode:
    """The smallest notebook that has what the lessons have: prose, two Explorers, one of them far down, and a Quiz."""
    explorer = """\
def draw(slope, kind):
    ys = [slope * x**2 if kind == "square" else slope * x for x in range(5)]
    return curves({kind: (range(5), ys)}, x="x", y="y", title="Slope", alt=f"The {kind} rises to {ys[-1]}.")


Explorer(
    draw,
    slope=ipywidgets.IntSlider(%d, 1, 5, description="slope"),
    kind=ipywidgets.SelectionSlider(options=["line", "square"], description="kind"),
)"""
    imports = "import ipywidgets\n\nfrom course_lib.plots import curves\nfrom course_lib.widgets import Explorer, Quiz"
    cells = [
        new_markdown_cell("# A stand-in for a lesson"),
        new_code_cell(imports),
        new_code_cell(explorer % 2),
        new_markdown_cell("\n\n".join(f"Line {i} of a long text." for i in range(120))),
        new_code_cell(explorer % 5),
        new_code_cell("Quiz('1 + 1?', {'1': False, '2': True}, 'Count.')"),
        new_code_cell("print('the end')"),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"display_name": "Python 3", "name": "python3"}})


def names(source: str) -> tuple[set[str], set[str]]:
    """(names that a cell needs from cells before it, names that it defines)."""
    needed, defined = set(), set()
    follow(ast.parse(source).body, needed, defined)
    return needed, defined


def follow(statements: list[ast.stmt], needed: set[str], defined: set[str]) -> None:
    """Add what statements need and define, in their order: what they define themselves first, they do not need."""
    for statement in statements:
        blocks = [] if isinstance(statement, ast.FunctionDef | ast.ClassDef) else ["body", "orelse", "finalbody"]
        inner = {block: body for block in blocks if (body := getattr(statement, block, None))}
        for block in inner:
            setattr(statement, block, [ast.Pass()])
        bound = {name.id for part in bindings(statement) for name in ast.walk(part) if isinstance(name, ast.Name)}
        used, made = looked_up(symtable.symtable(ast.unparse(statement), "cell", "exec"))
        needed |= used - bound - defined
        defined |= made
        for body in inner.values():
            follow(body, needed, defined)


def bindings(statement: ast.stmt) -> list[ast.expr]:
    """What a statement binds before its body runs."""
    if isinstance(statement, ast.For):
        return [statement.target]
    items = statement.items if isinstance(statement, ast.With) else []
    return [item.optional_vars for item in items if item.optional_vars]


def looked_up(table: symtable.SymbolTable) -> tuple[set[str], set[str]]:
    """Global names that code uses, in whatever scope, and those that it defines."""
    symbols = [one for one in table.get_symbols() if table.get_type() == "module" or one.is_global()]
    used = {one.get_name() for one in symbols if one.is_referenced()}
    for inner in table.get_children():
        used |= looked_up(inner)[0]
    return used, {one.get_name() for one in symbols if one.is_assigned() or one.is_imported()}


def test_a_cell_needs_what_it_does_not_define_itself():
    source = """
for x, y in pairs:
    z = x + offset
    for w in [v * z for v in y]:
        total = total + w
try:
    z = one
finally:
    done = [lambda a: a + outer for b in range(3)]
def f(n, m=default):
    return n + other + x
"""
    needed, defined = names(source)
    assert needed - {"range"} == {"pairs", "offset", "total", "one", "outer", "default", "other"}
    assert defined == {"x", "y", "z", "w", "total", "done", "f"}


def for_explorers(notebook: nbformat.NotebookNode) -> set[str]:
    """The ids of the code cells with Explorers, and of those that define what they need."""
    kept, needed = set(), set()
    for cell in reversed([cell for cell in notebook.cells if cell.cell_type == "code"]):
        used, defined = names(cell.source)
        if "Explorer(" in cell.source or defined & needed:
            kept.add(cell.id)
            needed = needed - defined | used
    return kept


# The server and the browser: whatever is started here is stopped here.


@dataclass(frozen=True)
class Server:
    """JupyterLab on loopback, for whoever has the token."""

    url: str
    token: str

    def ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def jupyterlab(folder: Path, home: Path):
    """JupyterLab on a folder, with no settings of whoever runs the tests; yields a Server."""
    token, port = secrets.token_hex(16), free_port()
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    places = {name: str(home / name.lower()) for name in names}
    news = home / "jupyter_config_dir/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')  # else JupyterLab asks, over the page, whether it may
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    log = home / "jupyterlab.log"
    with log.open("w") as output:
        # The token goes through the environment, where other users of the machine cannot read it.
        settings = os.environ | places | {"JUPYTER_TOKEN": token}
        process = subprocess.Popen(command, env=settings, stdout=output, stderr=subprocess.STDOUT)
    server = Server(f"http://127.0.0.1:{port}", token)
    try:
        wait_until(lambda: process.poll() is not None or answers(server), START, "JupyterLab does not answer")
        assert process.poll() is None, f"JupyterLab ended at once:\n{log.read_text()[-2000:]}"
        yield server
    finally:
        process.terminate()  # a server that is asked to end ends its kernels first
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(server: Server) -> bool:
    try:
        return "started" in server.ask("status")
    except OSError:
        return False


def wait_until(true, seconds: float, otherwise: str, pause: float = 0.25):
    """The first truthy value of true(); fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, f"{otherwise} (waited {seconds:.0f} s)"
        time.sleep(pause)
    return value


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on a copy of the lessons and the stand-in, their outputs removed: what is seen was made now."""
    folder = tmp_path_factory.mktemp("notebooks")
    for file in LESSONS:
        notebook = nbformat.read(file, as_version=4)
        needed = for_explorers(notebook)
        notebook.cells = [cell for cell in notebook.cells if cell.cell_type != "code" or cell.id in needed]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / file.name)
    nbformat.write(stand_in(), folder / STAND_IN)
    with jupyterlab(folder, tmp_path_factory.mktemp("jupyter")) as running:
        yield running


@pytest.fixture(scope="module")
def page(browser, server):
    """JupyterLab in a page, and a kernel, for all notebooks: to load these two takes longer than most lessons' cells.

    JupyterLab draws a cell only near the window's view, so the window is tall.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    page.set_default_timeout(START * 1000)  # of playwright's own waiting; 30 s are too few on a busy machine
    page.complaints = Complaints()
    page.complaints.listen(page)
    page.kernel = server.ask("kernels", "POST")["id"]
    try:
        page.goto(f"{server.url}/lab/workspaces/test?reset&token={server.token}")
        page.wait_for_function("() => window.jupyterapp?.restored")
        yield page
    finally:
        page.close()


# What is done in the page.

OPEN = """async ([path, id]) => {
    const app = window.jupyterapp;
    await app.restored;
    for (const old of [...app.shell.widgets('main')].filter(widget => widget.sessionContext)) {
        await old.sessionContext.session.kernel.requestExecute({code: FORGET}).done;
        old.dispose();
    }
    const panel = await app.commands.execute('docmanager:open', {path, kernel: {id}});
    app.shell.activateById(panel.id);
    await panel.context.ready;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
    window.courseStatus = new Set();
    panel.sessionContext.statusChanged.connect((_, status) => window.courseStatus.add(status));
}""".replace("FORGET", json.dumps("import ipywidgets\nipywidgets.Widget.close_all()\n%reset -f"))
DIALOG = "() => document.querySelector('.jp-Dialog')?.innerText"
STATE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const cells = panel.content.model.cells, waiting = [], errors = [], explorers = [];
    for (let i = 0; i < cells.length; i++) {
        const cell = cells.get(i);
        if (cell.type !== 'code' || !cell.sharedModel.getSource().trim()) continue;
        if (cell.sharedModel.execution_count === null) waiting.push(cell.id);
        for (const output of cell.outputs.toJSON()) {
            if (output.output_type === 'error') errors.push(`${cell.id}:\\n${output.traceback.join('\\n')}`);
            if (VIEW in (output.data ?? {}) && 'image/png' in output.data) explorers.push(i);
        }
    }
    const died = ['dead', 'restarting', 'autorestarting'].some(status => window.courseStatus.has(status));
    const idle = panel.sessionContext.session?.kernel?.status === 'idle';
    return {died, done: idle && !waiting.length, waiting, errors, explorers};
}""".replace("VIEW", json.dumps(WIDGET_VIEW))
SHOW = """async (i) => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    await notebook.scrollToItem(i, 'start');
    notebook.widgets[i].node.setAttribute('data-course-cell', i);
}"""
BYTES = """async (image) => [...new Uint8Array(await (await fetch(image.src)).arrayBuffer())]"""


def open_and_run(page, name: str) -> list[int]:
    """Open a notebook, and it alone, and run all its cells; returns the positions of the cells with an Explorer.

    The kernel forgets the names and widgets of the notebook before.
    """
    page.complaints.said.clear()
    # Without waiting for this, running all cells hangs; and it never comes while JupyterLab asks something.
    then = "(what) => { window.courseReady = false; (OPEN)(what).then(() => window.courseReady = true); }"
    page.evaluate(then.replace("OPEN", OPEN), [name, page.kernel])
    ready = "() => window.courseReady || document.querySelector('.jp-Dialog')"
    page.wait_for_function(ready)
    assert not (asked := page.evaluate(DIALOG)), f"JupyterLab asks: {asked}"
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    state = page.evaluate(STATE)
    while not (state["errors"] or state["died"] or state["done"]):
        left = state["waiting"]
        stuck = f"{name} stands still at {left[:1]}"
        state = wait_until(lambda left=left: moved_on(page, left), CELL, stuck, pause=1)
    assert not state["errors"], re.sub(r"\x1b\[[\d;]*m", "", "\n".join(state["errors"]))
    assert not state["died"], f"the kernel died, not run: {state['waiting']}"
    return state["explorers"]


def moved_on(page, left: list[str]) -> dict | None:
    """The notebook's state once it is over, or once fewer cells are left to run."""
    state = page.evaluate(STATE)
    over = state["errors"] or state["died"] or state["done"]
    return state if over or len(state["waiting"]) < len(left) else None


def digest(image) -> str:
    """Of the picture's bytes: a new address alone is no new picture."""
    return hashlib.sha256(bytes(image.evaluate(BYTES))).hexdigest()


def move_every_slider(page, position: int) -> int:
    """Move each control of the Explorer in that cell by one step, see its picture change; returns how many."""
    page.evaluate(SHOW, position)
    cell = page.locator(f"[data-course-cell='{position}']")
    explorer = cell.locator(".widget-vbox", has=page.locator("img.widget-image")).last
    image = explorer.locator("img.widget-image")
    image.wait_for(timeout=DRAW * 1000)
    wait_until(lambda: image.evaluate("image => image.naturalWidth") > 100, DRAW, "no picture is drawn")
    controls = explorer.locator(".noUi-handle, select, input[type=checkbox]")
    for i in range(controls.count()):
        control, before = controls.nth(i), digest(image)
        control.scroll_into_view_if_needed()
        control.focus()
        for key in keys(control):
            page.keyboard.press(key)
        wait_until(lambda before=before: digest(image) != before, DRAW, f"cell {position}: control {i} changes nothing")
    return controls.count()


def keys(control) -> list[str]:
    """What moves a control by one step: up, or down where it stands at its end."""
    role = control.evaluate("node => node.getAttribute('type') ?? node.tagName")
    if role == "checkbox":
        return ["Space"]
    if role == "SELECT":
        at_end = control.evaluate("node => node.selectedIndex === node.options.length - 1")
        return ["ArrowUp" if at_end else "ArrowDown"]
    now, highest = (float(control.get_attribute(name)) for name in ("aria-valuenow", "aria-valuemax"))
    return ["ArrowLeft" if now >= highest else "ArrowRight"]


def run_and_move(page, name: str) -> list[int]:
    """All of it for one notebook; returns how many controls each Explorer has."""
    explorers = open_and_run(page, name)
    moved = [move_every_slider(page, position) for position in explorers]
    assert all(moved), f"an Explorer without a slider: cells {explorers}, sliders {moved}"
    assert page.complaints.about_widgets() == []
    return moved


# The tests.


def test_cells_that_explorers_need():
    sources = ["import a", "x = 1", "y = 2", "def f():\n    return x + a.b", "print(y)", "Explorer(f)", "z = f()"]
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    kept = for_explorers(notebook)
    assert [cell.source for cell in notebook.cells if cell.id in kept] == [sources[i] for i in (0, 1, 3, 5)]


def test_stand_in_runs_and_its_sliders_move(page):
    assert run_and_move(page, STAND_IN) == [2, 2]


def test_a_quiz_is_answered_with_the_keyboard(page):
    open_and_run(page, STAND_IN)
    page.evaluate(SHOW, next(i for i, cell in enumerate(stand_in().cells) if cell.source.startswith("Quiz(")))
    page.locator(".widget-toggle-button").first.focus()
    for key in ("Tab", "Space"):
        page.keyboard.press(key)
    page.get_by_text("Right. Count.").wait_for()


@pytest.mark.parametrize("file", LESSONS, ids=lambda file: file.stem)
def test_sliders_of_the_lesson_move(page, file):
    moved = run_and_move(page, file.name)
    sources = [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    assert len(moved) >= sum("Explorer(" in source for source in sources)


# Of every slide: what stands beyond its edge, pictures that are not there, and formulas that were not set.
WRONG_SLIDES = """() => {
    const wrong = [];
    for (let i = 0; i < Reveal.getTotalSlides(); i++, Reveal.next()) {
        const slide = Reveal.getCurrentSlide();
        if (slide.scrollHeight > 800 || slide.scrollWidth > 1280) wrong.push(`${i}: too large`);
        for (const image of slide.querySelectorAll('img'))
            if (!image.naturalWidth) wrong.push(`${i}: no picture`);
        const prose = [...slide.querySelectorAll('.jp-RenderedMarkdown p')].map(p => p.innerText).join(' ');
        if (/\\$[^$]+\\$/.test(prose)) wrong.push(`${i}: ${prose}`);
    }
    return wrong;
}"""


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    return slides.build(LESSONS, tmp_path_factory.mktemp("slides"))


def test_slides_are_whole_and_need_no_network(browser, decks):
    complaints, asked = Complaints(), []
    for deck in decks:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        complaints.listen(page)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(deck.as_uri())
        page.wait_for_function("() => window.Reveal?.isReady()", timeout=START * 1000)
        assert page.evaluate("() => Reveal.getTotalSlides()") > 25
        assert page.evaluate(WRONG_SLIDES) == [], deck.name
        page.close()
    assert complaints.said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}


def test_the_speaker_reads_the_notes_in_a_second_window(browser, decks):
    complaints, page = Complaints(), browser.new_page()
    complaints.listen(page)
    page.goto(decks[0].as_uri())
    page.wait_for_function("() => window.Reveal?.isReady()", timeout=START * 1000)
    with page.expect_popup() as opened:
        page.keyboard.press("s")
    speaker = opened.value
    speaker.wait_for_function("() => document.querySelector('.speaker-controls-notes .value')?.innerText.length > 100")
    notes = speaker.inner_text(".speaker-controls-notes .value")
    assert page.inner_text("section.present h1").strip() in notes and "¶" not in notes
    speaker.keyboard.press("ArrowRight")
    page.wait_for_function("() => Reveal.getIndices().h === 1")
    page.close()
    assert complaints.said == []
