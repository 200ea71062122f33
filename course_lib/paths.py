"""Where things are: the repository's own folders, and one cache folder outside version control."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
RUNS = DATA / "runs"
CACHE = Path(os.environ.get("COURSE_CACHE", ROOT / ".cache"))
