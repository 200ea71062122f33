"""Installing into a foreign environment leaves torch alone, and whatever is good enough."""

import importlib.metadata

from course_lib import hosted
from course_lib.diagnosis import locked, wanted
from course_lib.errors import CourseError
from course_lib.paths import ROOT

import pytest


@pytest.fixture
def installed(monkeypatch):
    """The versions that packages are said to have: at first those of the lock; change or delete some."""
    versions = {name: locked()[name] for name in wanted()}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


@pytest.fixture
def commands(monkeypatch):
    """What would have been run; each command ends well."""
    called = []
    monkeypatch.setattr(
        hosted.subprocess, "run", lambda command, check: called.append(command) or type("Done", (), {"returncode": 0})
    )
    return called


def test_nothing_is_installed_where_all_is_there(installed, commands):
    assert hosted.install() == [] and commands == []


def test_what_is_absent_or_of_another_major_version_is_installed(installed, commands, capsys):
    del installed["peft"]
    installed["transformers"] = "4.57.1"
    installed["numpy"] = locked()["numpy"].split(".")[0] + ".99.0"
    assert hosted.install() == [f"peft=={locked()['peft']}", f"transformers=={locked()['transformers']}"]
    assert commands[0][-2:] == hosted.missing() and f"torch=={locked()['torch']}" in commands[0]
    assert "restart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "locked_one", "fits"),
    [("2.1.0", "2.4.6", False), ("2.4.0", "2.4.6", True), ("2.9", "2.4.6", True), ("3.0", "2.4.6", False),
     ("0.15.2", "0.21.2", False), ("0.21.0", "0.21.2", True), ("0.22.0", "0.21.2", False), ("3.0rc1", "3.0", True)],
)  # fmt: skip
def test_what_is_near_enough(monkeypatch, found, locked_one, fits):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    assert hosted._fits("some", locked_one) == fits


def test_torch_is_never_installed(installed, commands):
    installed["torch"] = "1.0"
    del installed["jupyterlab"]
    assert hosted.install() == []
    del installed["torch"]
    assert not any("torch==" in one for one in hosted.missing())
    with pytest.raises(CourseError, match=r"pytorch\.org"):
        hosted.install()
    assert commands == []


def test_a_failure_of_pip_is_said(installed, monkeypatch):
    del installed["peft"]
    monkeypatch.setattr(hosted.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 1}))
    with pytest.raises(CourseError, match="could not install"):
        hosted.install()


def test_binder_installs_what_is_locked():
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    constraint = next(line.split()[1] for line in lines if line.startswith("--constraint"))
    assert (ROOT / ".binder" / constraint).resolve() == ROOT / "constraints.txt" and "--editable ." in lines
