"""Lessons as lectures: reveal.js decks made of the notebooks' own cells and stored outputs, which open from disk and
need no network.

What is shown follows from the cells: headings, the first sentence of each paragraph (all of it is in the speaker's
notes, key S), predictions in full, code, outputs, figures without the code that draws them. Left out are the set-up,
checks, and exercises. Where a cell's metadata has a slide_type of its own, that is taken instead.
"""

import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from course_lib import javascript
from course_lib.notebooks import WIDGET_VIEW
from course_lib.paths import ROOT

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

FOLDER = ROOT / "build" / "slides"
# What fits on a slide of 1280 × 800: lines of code and of output, and words of prose that need no shortening; else so
# many words of each paragraph, and the rest of the sentence; and words in all.
LINES, WORDS, ENOUGH, ROOM = 22, 75, 14, 110
# Lines more than LINES that are not worth a slide of their own.
SPARE = 4
# Code that defines nothing is shown up to so many lines: longer code prints tables.
FEW = 12
OUTPUT_ONLY = "output-only"
TEMPLATE = Path(__file__).with_name("slides.html.j2")


def build(files: list[Path], folder: Path = FOLDER) -> list[Path]:
    """Make a deck of every notebook; returns the HTML files, which need the folder `assets` beside them."""
    from nbconvert import SlidesExporter
    from traitlets.config import Config

    javascript.unpack(folder / "assets", *javascript.CARRIERS)
    settings = {"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {OUTPUT_ONLY}}}
    exporter = SlidesExporter(raw_template=TEMPLATE.read_text(encoding="utf-8"), config=Config(settings))
    exporter.reveal_url_prefix, exporter.reveal_theme = "assets/reveal", "white"
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = exporter.exclude_anchor_links = True
    made = []
    for file in files:
        deck = lecture(nbformat.read(file, as_version=4))
        body, _ = exporter.from_notebook_node(deck, {"metadata": {"name": file.stem}})
        made.append(folder / f"{file.stem}.html")
        made[-1].write_text(body, encoding="utf-8")
    return made


# From a notebook to a deck.


def lecture(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook's cells as slides, each with its slide_type; the given one stays as it is."""
    made, section, skipping = [], "", False
    for cell in notebook.cells:
        if heading := re.match(r"(#{1,2}) (.+)", cell.source if cell.cell_type == "markdown" else ""):
            section, skipping = heading[2], heading[2] == "Exercises"
        if own := cell.metadata.get("slideshow", {}).get("slide_type"):
            made.append(_cell(cell, own))
        elif not skipping:
            made += _prose(cell, section) if cell.cell_type == "markdown" else _code(cell, section)
    return new_notebook(cells=made, metadata=notebook.metadata)


def _cell(cell, slide_type: str, tags: Sequence[str] = (), **changed) -> nbformat.NotebookNode:
    metadata = {"slideshow": {"slide_type": slide_type}, "tags": list(tags)}
    return nbformat.from_dict({**cell, **changed, "metadata": metadata, "id": uuid.uuid4().hex[:8]})


def _prose(cell, section: str) -> Iterator[nbformat.NotebookNode]:
    """Slides for each heading, with what is short enough to be read there, and the speaker's notes with all of it."""
    for part in re.split(r"\n(?=#{1,3} )", cell.source):
        first, *others = _filled(shortened(part))
        yield _cell(cell, "slide" if re.match("##? ", part) else "subslide", source=first)
        yield _cell(cell, "notes", source=part)
        for other in others:
            yield _cell(cell, "subslide", source=f"<p class='section'>{section}</p>\n\n{other}")


def _filled(text: str) -> list[str]:
    """The text in pieces of whole paragraphs and list items that fit on a slide each."""
    pieces = [""]
    for part in re.split(r"\n\n+|\n(?=(?:[-*]|\d+\.) )", text.strip()):
        if pieces[-1] and len(f"{pieces[-1]} {part}".split()) > ROOM:
            pieces.append("")
        pieces[-1] = f"{pieces[-1]}\n\n{part}".strip()
    return pieces


def shortened(text: str) -> str:
    """A text for a slide: of each paragraph and list item the beginning, unless all is short."""
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    if len(text.split()) <= WORDS:
        return text
    return "\n\n".join(filter(None, map(_short, re.split(r"\n\n+", text.strip()))))


def _short(paragraph: str) -> str:
    if paragraph.startswith(("#", "$$", "```", "|")) or "**Predict**" in paragraph:
        return paragraph
    if re.match(r"([-*]|\d+\.) ", paragraph):
        return "\n".join(_beginning(item, 1) for item in re.split(r"\n(?=(?:[-*]|\d+\.) )", paragraph))
    # What stands in brackets is an aside, and a list of papers is not read from a wall.
    return "" if paragraph.startswith(("(", "**Further reading")) else _beginning(paragraph, ENOUGH)


def _beginning(text: str, words: int) -> str:
    """As many whole sentences as make so many words; a full stop after these abbreviations or a number ends none."""
    end = re.compile(r"(?<!\bal)(?<!e\.g)(?<!i\.e)(?<!vs)(?<!\s\d)(?<!^\d)[.!?][)”*]*(?=\s|$)")
    ends = (found.end() for found in end.finditer(text))
    return next((text[:at] for at in ends if len(text[:at].split()) >= words), text)


def _code(cell, section: str) -> Iterator[nbformat.NotebookNode]:
    """Slides with a cell's code and outputs, together where they fit, under the section's title."""
    if cell.id == "setup" or cell.id.startswith(("my-", "exercise")) or cell.id.endswith("-checked"):
        return
    if "solution" in cell.metadata.get("tags", []):
        return
    if cell.id.startswith("quiz"):
        yield from _quiz(cell, section)
        return
    pictures, texts = _outputs(cell)
    printed = [text for output in texts for text in _pieces(output.text)]
    where = new_markdown_cell(f"<p class='section'>{section}</p>")
    lines = cell.source.splitlines()
    defines = any(line.startswith(("def ", "class ", "@")) for line in lines)
    if not (pictures or cell.id.startswith("claim")) and (defines or len(lines) <= FEW or not printed):
        *parts, last = _pieces(cell.source)
        for part in parts:
            yield from (_cell(where, "subslide"), _cell(cell, "-", source=part, outputs=[]))
        together = printed and len(last.splitlines()) + len(printed[0].splitlines()) <= LINES - 2
        shown = [_stream(printed.pop(0))] if together else []
        yield from (_cell(where, "subslide"), _cell(cell, "-", source=last, outputs=shown))
    for output in [_stream(text) for text in printed] + pictures:
        yield _cell(where, "subslide")
        yield _cell(cell, "-", [OUTPUT_ONLY], outputs=[output])


def _quiz(cell, section: str) -> Iterator[nbformat.NotebookNode]:
    """A slide with the question and its options; the answer is in the notes."""
    data = cell.outputs[0].data
    question, *options = data["text/plain"].split("\n")
    asked = "\n".join(f"- {option.strip(' ○')}" for option in options)
    yield _cell(new_markdown_cell(f"<p class='section'>{section}</p>\n\n**{question}**\n\n{asked}"), "subslide")
    yield _cell(new_markdown_cell(data["text/html"].split("</summary>")[1].removesuffix("</details>")), "notes")


def _outputs(cell) -> tuple[list, list]:
    """A cell's pictures, without the widgets that need a kernel, and what it printed."""
    data = [output for output in cell.outputs if "data" in output]
    for output in data:
        output.data.pop(WIDGET_VIEW, None)
    pictures = [output for output in data if "image/png" in output.data]
    said = [_stream(str(output.data["text/plain"])) for output in data if "image/png" not in output.data]
    return pictures, [output for output in cell.outputs if output.output_type == "stream"] + said


def _stream(text: str):
    return nbformat.v4.new_output("stream", text=text)


def _pieces(text: str) -> list[str]:
    """The text in pieces of about LINES lines, cut at an empty line where there is one in the second half."""
    lines, found = text.rstrip().split("\n"), []
    while len(lines) > LINES + SPARE:
        cut = next((i for i in range(LINES, LINES // 2, -1) if not lines[i].strip()), LINES)
        found.append("\n".join(lines[:cut]).rstrip())
        lines = lines[cut:]
        while lines and not lines[0].strip():
            lines = lines[1:]
    return [*found, "\n".join(lines)]
