"""`course doctor`: what this machine has, what is missing, and what to do about it."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.paths import CACHE, ROOT
from course_lib.runs import RUNS, load

LOCK = ROOT / "constraints.txt"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` says what to do where it is not ok."""

    what: str
    found: str
    ok: bool = True
    advice: str = ""

    def __str__(self) -> str:
        mark = "ok " if self.ok else "!! "
        return f"{mark} {self.what}: {self.found}" + (f"\n    → {self.advice}" if not self.ok else "")


def locked() -> dict[str, str]:
    """Package → version, from constraints.txt."""
    lines = LOCK.read_text().splitlines()
    return dict(re.split(r"==", line.split(";")[0].strip(), maxsplit=1) for line in lines if "==" in line)


def wanted() -> list[str]:
    """The packages that pyproject.toml names, those for the tests left out."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [re.split(r"[=<>!~\[; ]", name)[0] for name in declared]


def packages() -> list[Finding]:
    """Each package that the course needs, against the lock; fast, and imports none of them."""
    versions = locked()
    return [_package(name, versions.get(name)) for name in wanted()]


def _package(name: str, expected: str | None) -> Finding:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", False, f"`make lab` mends the environment, or: pip install {name}=={expected}")
    if _half_removed(distribution):
        return Finding(name, "damaged", False, f"pip install --force-reinstall --no-deps {name}=={expected}")
    version = distribution.version.split("+")[0]
    if expected is not None and version != expected:
        advice = f"The lessons were checked with {expected}; outputs may differ. pip install {name}=={expected}"
        return Finding(name, f"{version}, the lock says {expected}", False, advice)
    return Finding(name, version)


def _half_removed(distribution) -> bool:
    """Whether the metadata are there without the files. (`distribution.files` leaves out what is missing.)"""
    record = distribution.read_text("RECORD") or ""
    modules = [line.split(",")[0].strip('"') for line in record.splitlines() if ".py," in line]
    return bool(modules) and not Path(distribution.locate_file(modules[0])).exists()


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding("Python", platform.python_version(), ok, "Install Python 3.11 or newer, then `make clean lab`.")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding("device", f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    if torch.backends.mps.is_available():
        return Finding("device", "Apple GPU (mps)")
    return Finding("device", f"no GPU; {os.cpu_count()} processor cores (every lesson runs on the CPU)")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available
    return Finding("memory", f"{free / 1e9:.1f} GB free", free > 3e9, "Close other programs: lessons use up to 3 GB.")


def _disk() -> Finding:
    free = shutil.disk_usage(ROOT).free
    return Finding(
        "disk", f"{free / 1e9:.1f} GB free", free > 1e9, "Free at least 1 GB: checkpoints are written while training."
    )


def _encoder() -> Finding:
    from course_lib import models

    try:
        models.encoder_folder()
    except CourseError as error:
        return Finding("encoder", "cannot be used", False, str(error))
    return Finding("encoder", "all-MiniLM-L6-v2, weights verified (SHA-256)")


def _language_model() -> Finding:
    from course_lib import models

    try:
        folder = models.lm_folder()
    except CourseError as error:
        return Finding("language model", "cannot be used", False, str(error))
    return Finding("language model", "town-lm" if folder == models.LM_FOLDER else models.LM_HUB[0])


def _writable() -> Finding:
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        ok = os.access(CACHE, os.W_OK)
    except OSError:
        ok = False
    return Finding(
        "cache folder", "writable" if ok else "not writable", ok, "Set COURSE_CACHE to a folder you may write to."
    )


def _recorded() -> Finding:
    names = sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir()) if RUNS.exists() else []
    devices = sorted({device for name in names for device in load(name)})
    return Finding(
        "recorded runs", ", ".join(devices) or "none", bool(devices), "`git checkout data/runs` restores them."
    )


def everything() -> list[Finding]:
    """All that `course doctor` looks at; a problem in one check does not hide the next."""
    findings = [_python(), *packages()]
    for check in (_device, _memory, _disk, _encoder, _language_model, _writable, _recorded):
        try:
            findings.append(check())
        except ImportError as error:
            name = check.__name__.strip("_")
            findings.append(Finding(name, f"not checked, {error.name} is missing", False, "See the packages above."))
    return findings
