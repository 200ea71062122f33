"""The files around the library agree with one another."""

import re

from course_lib import environment, notebooks
from course_lib.diagnosis import locked, wanted
from course_lib.paths import NOTEBOOKS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_environment_yml_is_as_generated():
    assert environment.FILE.read_text() == environment.text(), "Run: make environment.yml"


def test_lock_has_every_package_and_none_of_one_platform():
    versions = locked()
    assert versions["torch"] == "2.13.0" and set(wanted()) <= set(versions)
    assert not [name for name in versions if re.match(r"nvidia-|cuda-|triton", name)]


def test_readme_lists_every_lesson():
    linked = set(re.findall(r"\(notebooks/(\w+\.ipynb)\)", README))
    assert linked == {file.name for file in NOTEBOOKS.glob("*.ipynb")}


def test_readme_links_lead_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets and not [target for target in targets if not (ROOT / target).exists()]


def test_readme_figures_are_those_of_the_lessons():
    for name, (lesson, cell) in notebooks.README_FIGURES.items():
        assert (notebooks.FIGURES / name).read_bytes() == notebooks.figure(NOTEBOOKS / lesson, cell), (
            "Run: course execute"
        )
