"""Runs and the run log: what was trained, what came out, on which machine; written as it happens.

A log is one JSON file a device, data/runs/<experiment>/<device>.json. Each run is written when it finishes, whole
or not at all, so that an interrupted recording keeps what it has and goes on where it stopped. Several processes may
write one log: each run is done by one of them.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.paths import CACHE, ROOT, RUNS

try:
    import fcntl
except ImportError:
    # Windows has none: one process a log.
    fcntl = None


@dataclass(kw_only=True)
class Run:
    """One training run, as plain data. Sizes are in bytes, times in seconds, accuracies in 0..1.

    A run that only measures speed has no accuracies, no validation and no predictions; one that trains nothing has no
    losses.

    spec: what was asked (task, method, learning rate, seed, …). losses, validation and validation_losses have one entry
    an epoch.
    predictions, labels: of each test row, the label index that was said and the right one, or the texts.
    counted_bytes and predicted_bytes: by part, see `course_lib.memory`. peak_bytes: torch's allocated peak, None where
    there is no CUDA device.
    """

    spec: dict
    precision: str
    losses: list[float] = field(default_factory=list)
    trainable: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    predicted_bytes: dict[str, int] = field(default_factory=dict)
    peak_bytes: int | None = None
    accuracy: float | None = None
    train_accuracy: float | None = None
    validation: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    predictions: list[int] | list[str] = field(default_factory=list)
    labels: list[int] | list[str] = field(default_factory=list)
    counted_bytes: dict[str, int] = field(default_factory=dict)
    resumed: bool = False
    kept_last: bool = False
    extra: dict = field(default_factory=dict)
    machine: dict = field(default_factory=dict)

    @property
    def hits(self) -> list[bool]:
        """Whether each test row was answered rightly."""
        return [said == right for said, right in zip(self.predictions, self.labels, strict=True)]

    @property
    def best_validation(self) -> float:
        """The validation accuracy of the epoch that was kept: the best, or for some methods the last."""
        return self.validation[-1] if self.kept_last else max(self.validation)


def device_name() -> str:
    """The device that training runs on here, in words: the GPU's name, or the processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


@cache
def machine() -> dict:
    """Device, library versions and git revision, as they are written beside every run."""
    import torch

    versions = {}
    for package in ("torch", "transformers", "peft", "bitsandbytes", "accelerate"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "revision": _revision(),
    }


def _revision() -> str | None:
    asked = ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:
        # A training machine may have no git; a finished run is not lost for that.
        return None


def slug(text: str) -> str:
    """Letters, digits and single dashes: a file name for a device."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def key(spec: dict) -> str:
    """One string for one spec, whatever the order of its entries."""
    return json.dumps(spec, sort_keys=True)


class OutOfTime(Exception):
    """The budget of a recording is spent."""


class RunLog:
    """The runs of one experiment on one device, in a file (or in memory, with file=None).

    deadline: on the clock of `time.monotonic`; no new run starts after it, `run` then raises OutOfTime. share: (which,
    of how many) processes that work on it side by side, each beginning elsewhere (see `order`).
    """

    def __init__(self, file: Path | None = None, deadline: float | None = None, share: tuple[int, int] = (0, 1)):
        self.file, self.deadline, self.share = file, deadline, share
        self.runs: dict[str, Run] = {}
        self._read()

    def order(self, settings: Sequence) -> list:
        """The settings (or other work) in the order in which this process should take them: from its own part on, then
        the others. Odd shares go backwards: two that walked the same way would wait for each other at every run."""
        which, of = self.share
        start = len(settings) * (which + which % 2) // of
        turned = [*settings[start:], *settings[:start]]
        return turned[::-1] if which % 2 else turned

    def run(self, spec: dict, train: Callable[[dict, Path | None], Run]) -> Run:
        """The logged run of `spec`, or else `train(spec, folder)`, logged at once.

        folder: where an interrupted run of this very spec left its checkpoints; None for a log in memory.
        """
        if key(spec) in self.runs:
            return self.runs[key(spec)]
        if self.file is None:
            return self._train(spec, train, None)
        # Another log is another recording: its checkpoints are not ours.
        folder = _place(f"{self.file.resolve()} {key(spec)}")
        with _alone(folder):
            # Another process may have done it in the meantime.
            self._read()
            if key(spec) in self.runs:
                return self.runs[key(spec)]
            run = self._train(spec, train, folder)
            with _alone(_place(str(self.file.resolve()))):
                self._read()
                self._write()
            shutil.rmtree(folder, ignore_errors=True)
        return run

    def _train(self, spec: dict, train: Callable[[dict, Path | None], Run], folder: Path | None) -> Run:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime
        run = train(spec, folder)
        run.machine = machine() | {"date": datetime.date.today().isoformat()}
        self.runs[key(spec)] = run
        return run

    def _read(self) -> None:
        """Take in what is in the file."""
        if self.file is not None and self.file.exists():
            self.runs = {key(run.spec): run for run in read(self.file)} | self.runs

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_suffix(".draft")
        rows = ",\n".join(json.dumps(asdict(run)) for run in self.runs.values())
        draft.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
        draft.replace(self.file)


def _place(what: str) -> Path:
    """Where that which belongs to `what` is kept for a while."""
    return CACHE / "checkpoints" / hashlib.sha256(what.encode()).hexdigest()[:16]


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Only one process at a time; the lock of one that dies is free again."""
    if fcntl is None:
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read(file: Path) -> list[Run]:
    """The runs in a log file; raises CourseError if it is not one."""
    try:
        return [Run(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise CourseError(
            f"{file.name} in {file.parent.name} is not a run log ({error}). Restore it from git."
        ) from error


def load(experiment: str, root: Path = RUNS) -> dict[str, list[Run]]:
    """What was recorded of an experiment, by device; empty where nothing was."""
    logs = (read(file) for file in sorted((root / experiment).glob("*.json")))
    return {runs[0].machine["device"]: runs for runs in logs if runs}


def apart(recorded: Iterable[str]) -> dict[str, str]:
    """Device → what tells it from the others at the end of a line: nothing where it is the only one."""
    devices = list(recorded)
    return {device: f", {device}" if len(devices) > 1 else "" for device in devices}


def select(runs: list[Run], **wanted) -> list[Run]:
    """The runs whose spec has these values, e.g. select(runs, task="reviews", method="full")."""
    return [run for run in runs if all(run.spec.get(k) == v for k, v in wanted.items())]
