"""Where things are: the repository's own folders, and one cache folder outside version control."""

import os
from pathlib import Path

from course_lib.errors import unknown

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
RUNS = DATA / "runs"
CACHE = Path(os.environ.get("COURSE_CACHE", ROOT / ".cache"))


def lesson(name: str) -> Path:
    """The notebook of a lesson, by its number, name or file; raises ValueError for an unknown one."""
    files = {file.stem: file for file in sorted(NOTEBOOKS.glob("*.ipynb"))}
    stem = Path(name).stem
    found = [file for known, file in files.items() if stem and known.startswith(stem)]
    if len(found) != 1:
        raise unknown("lesson", name, files)
    return found[0]
