"""Installing the course into an environment that somebody else has made, such as a Colab runtime: only what is missing,
and never torch, which such places have built for their own GPUs."""

import importlib.metadata
import re
import subprocess
import sys

from course_lib.diagnosis import locked, wanted
from course_lib.errors import CourseError

# Left alone: a hosted notebook has its own torch and its own JupyterLab, and nothing is built there.
OWN = ("torch", "jupyterlab", "nbclient", "nbformat")


def missing() -> list[str]:
    """Requirements (name==locked version) for packages that are absent, or too far from the version of the lock."""
    versions = locked()
    return [f"{name}=={versions[name]}" for name in wanted() if name not in OWN and not _fits(name, versions[name])]


def _fits(name: str, version: str) -> bool:
    """Whether a package is there, of the same major version and not older; before 1.0, of the same minor version."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    have, want = ([int(number) for number in re.findall(r"\d+", text)[:2]] for text in (found, version))
    return have == want if want[0] == 0 else have[0] == want[0] and have >= want


def install() -> list[str]:
    """Install what is missing with pip, and say that the kernel must be restarted if anything was; returns it.

    Raises CourseError if there is no torch, or if pip fails.
    """
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise CourseError(
            "There is no torch here. Install it as pytorch.org says for this machine, then run this again."
        ) from None
    wanting = missing()
    if not wanting:
        print("All packages are there.")
        return []
    # The torch that is there is named, too, so that no package brings another one.
    command = [sys.executable, "-m", "pip", "install", "--quiet", f"torch=={torch}", *wanting]
    if subprocess.run(command, check=False).returncode:
        raise CourseError("pip could not install all packages, see above.")
    print(
        "Installed:", ", ".join(wanting), "\nNow restart the session (its menu is called Runtime or Kernel), and go on."
    )
    return wanting
