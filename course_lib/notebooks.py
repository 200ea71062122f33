"""Running and normalising the lessons: the committed notebook is the executed one, the same bytes every time."""

import base64
import os
import re
import time
from pathlib import Path

from course_lib.paths import DATA, NOTEBOOKS

import nbformat
from nbclient import NotebookClient

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FIGURES = DATA / "figures"
README_FIGURES = {
    "tradeoff.png": ("01_full_vs_feature_based.ipynb", "tradeoff"),
    "memory-figure.png": ("01_full_vs_feature_based.ipynb", "memory-figure"),
}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|opt|var)/|[A-Z]:\\\\Users")


def execute(file: Path, timeout: int = 600) -> float:
    """Run a notebook in a fresh kernel, normalise it and write it back; returns the seconds it took.

    A cell that raises stops the execution with its error, and the file stays as it was.
    """
    notebook = nbformat.read(file, as_version=4)
    # Progress bars are for people who wait; in a stored output they are noise.
    os.environ["TQDM_DISABLE"] = "1"
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(file.parent)}},
    )
    started = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - started
    normalise(notebook)
    nbformat.write(notebook, file)
    return seconds


def export_figures() -> None:
    """Write the figures that README.md shows, from the stored outputs of the lessons."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, (lesson, cell) in README_FIGURES.items():
        (FIGURES / name).write_bytes(figure(NOTEBOOKS / lesson, cell))


def figure(file: Path, cell_id: str) -> bytes:
    """The PNG in the stored output of a cell; raises KeyError if there is no such cell or picture."""
    for cell in nbformat.read(file, as_version=4).cells:
        if cell.get("id") == cell_id:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    raise KeyError(f"{file.name} has no picture in a cell {cell_id!r}")


def normalise(notebook) -> None:
    """Leave what a reader sees, drop what differs from run to run: timings, widget state, split streams."""
    notebook.metadata = nbformat.from_dict(METADATA | {k: v for k, v in notebook.metadata.items() if k == "course"})
    for cell in notebook.cells:
        kept = {k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter", "slideshow")}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGET_VIEW, None)
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
        cell.outputs = _merged(cell.outputs)


def _merged(outputs: list) -> list:
    """Consecutive pieces of one stream as one: where a stream is cut depends on timing."""
    merged = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def problems(notebook) -> list[str]:
    """What keeps a notebook from being committed, one sentence each; empty for a clean one."""
    found = []
    ids = [cell.get("id", "") for cell in notebook.cells]
    if len(set(ids)) != len(ids):
        found.append("cell ids are not unique")
    found += [f"cell id {i!r} is no slug" for i in ids if not re.fullmatch(r"[a-z][a-z0-9-]{2,63}", i)]
    if "widgets" in notebook.metadata:
        found.append("widget state is stored")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        at = f"code cell {number} ({cell.get('id')})"
        if cell.execution_count != number:
            found.append(f"{at} has execution count {cell.execution_count}: run `course execute`")
        if len(cell.source.splitlines()) > 30:
            found.append(f"{at} has more than 30 lines")
        if cell.source.rstrip().endswith(";"):
            found.append(f"{at} ends in a semicolon: nbval would compare nothing")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{at} ended in an error")
            if output.get("name") == "stderr":
                found.append(f"{at} wrote to stderr")
            text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            if re.search(r" at 0x[0-9a-f]+>", text):
                found.append(f"{at} shows an object's address")
            if WIDGET_VIEW in output.get("data", {}):
                found.append(f"{at} stores a widget view")
    if MACHINE_PATH.search(nbformat.writes(notebook)):
        found.append("holds a path of somebody's machine")
    return found
