"""TEXT NOTEBOOK: the draft of a lesson as a notebook, without outputs."""

import json
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

MAKE = {"md": new_markdown_cell, "code": new_code_cell}


def build(text: str):
    """`=== KIND ID {metadata}`, then the cell's source, and so on."""
    cells = []
    for part in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        head, _, source = part.partition("\n")
        kind, name, *metadata = head.split(" ", 2)
        cells.append(MAKE[kind](source.strip("\n"), id=name, metadata=json.loads("".join(metadata) or "{}")))
    return new_notebook(cells=cells)


if __name__ == "__main__":
    draft, notebook = map(Path, sys.argv[1:])
    nbformat.write(build(draft.read_text(encoding="utf-8")), notebook)
