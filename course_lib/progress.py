"""What the reader has solved, and a way back to a clean lesson.

Each solved exercise is an empty file in a folder of its lesson: nothing to lock, nothing to corrupt, and neither a new
kernel nor `make clean` takes it away.
"""

import datetime
import subprocess
from contextlib import suppress
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.paths import ROOT
from course_lib.paths import lesson as file_of

FOLDER, KEPT = ROOT / ".progress", ROOT / "mine"


def mark(lesson: str, exercise: str) -> None:
    """Remember that an exercise is solved."""
    # On a disk that cannot be written to, the answer is right all the same.
    with suppress(OSError):
        (FOLDER / lesson).mkdir(parents=True, exist_ok=True)
        (FOLDER / lesson / exercise).touch()


def solved(lesson: str) -> set[str]:
    """The lesson's exercises that are solved."""
    return {file.name for file in (FOLDER / lesson).glob("*")}


def reset(lesson: str) -> Path | None:
    """Put a lesson (see `paths.lesson`) back as it was published, and return where the reader's own copy is now; None
    if nothing differs. Raises CourseError where git, which has the published one, is not there."""
    file = file_of(lesson)
    asked = ["git", "-C", str(file.parent), "show", f"HEAD:./{file.name}"]
    try:
        clean = subprocess.run(asked, capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise CourseError(f"Only git has the published {file.name}, and it is not here: get the course anew.") from None
    if file.read_bytes() == clean:
        return None
    KEPT.mkdir(exist_ok=True)
    own = KEPT / f"{file.stem}-{datetime.datetime.now():%Y-%m-%d-%H%M%S}.ipynb"
    file.replace(own)
    file.write_bytes(clean)
    return own
