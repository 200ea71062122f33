"""Installing the course into an environment that somebody else has made, such as a Colab runtime: only what is missing,
and never torch, which such places have built for their own GPUs."""

import importlib.metadata
import subprocess
import sys

from course_lib.diagnosis import locked, wanted
from course_lib.errors import CourseError


def missing() -> list[str]:
    """Requirements (name==locked version) for packages that are absent or of another major version; torch left out."""
    versions = locked()
    return [f"{name}=={versions[name]}" for name in wanted() if name != "torch" and not _fits(name, versions[name])]


def _fits(name: str, version: str) -> bool:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return found.split(".")[0] == version.split(".")[0]


def install() -> list[str]:
    """Install what is missing with pip; returns it. Raises CourseError if there is no torch, or if pip fails.

    To be called before other libraries are imported: Python keeps the version of a package that it has imported.
    """
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise CourseError(
            "There is no torch here. Install it as pytorch.org says for this machine, then again."
        ) from None
    wanting = missing()
    if (
        wanting
        and subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanting], check=False).returncode
    ):
        raise CourseError("pip could not install all packages, see above.")
    return wanting
