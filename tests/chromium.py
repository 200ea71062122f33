"""Chromium, where it is installed, and what a page in it complains of."""

import importlib.util
import re
import shutil
from dataclasses import dataclass, field

import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
needs_chromium = [
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed: `apt-get install chromium` installs it."),
    pytest.mark.skipif(
        not importlib.util.find_spec("playwright"), reason="playwright is not installed: `pip install playwright`."
    ),
]


@dataclass
class Complaints:
    """Errors of the page's console, and exceptions that nothing in the page caught."""

    said: list[str] = field(default_factory=list)

    def listen(self, page) -> None:
        page.on("console", lambda line: line.type == "error" and self.said.append(f"{line.text} {line.location}"))
        page.on("pageerror", lambda error: self.said.append(f"{error.message}\n{error.stack}"))

    def about_widgets(self) -> list[str]:
        return [line for line in self.said if re.search(r"widget|jupyter-js|jupyter\.widget|\bcomm\b", line, re.I)]
