"""The guides for instructors speak of the lessons as they are."""

import re

from course_lib.paths import NOTEBOOKS, ROOT

import nbformat
import pytest

GUIDE = (ROOT / "INSTRUCTOR.md").read_text(encoding="utf-8")
SYLLABUS = (ROOT / "SYLLABUS.md").read_text(encoding="utf-8")
LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))


def title(file) -> str:
    return nbformat.read(file, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")


@pytest.fixture(params=LESSONS, ids=lambda file: file.stem)
def lesson(request):
    return request.param


def test_the_guide_plans_a_lecture_of_sections_that_the_lesson_has(lesson):
    [part] = re.findall(rf"^## {re.escape(title(lesson))}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    plan = re.findall(r"^\| (?!section|---)(.+?) \| (\d+) \|$", part, re.MULTILINE)
    headings = [
        line.lstrip("# ")
        for cell in nbformat.read(lesson, as_version=4).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    order = [headings.index(name) for name, _ in plan]
    assert order == sorted(order) and sum(int(minutes) for _, minutes in plan) == 50
    assert all(f"**{what}" in part for what in ("Live", "Usually misunderstood", "Ask"))
    assert len(re.findall(r"^- \*.+?\?\*", part, re.MULTILINE)) >= 3, "three questions with their answers"


def test_the_guide_speaks_of_no_other_lesson():
    assert re.findall(r"^## (\d\d · .+)$", GUIDE, re.MULTILINE) == [title(file) for file in LESSONS]


def test_the_weeks_have_every_lesson_in_order():
    assert re.findall(r"^\| \d \| (\d\d · .+?) \|", SYLLABUS, re.MULTILINE) == [title(file) for file in LESSONS]
