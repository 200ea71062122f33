"""What is solved is remembered, and a lesson can be put back without losing the reader's own."""

import subprocess

from course_lib import check, paths, progress
from course_lib.check import lesson_00
from course_lib.cli import main
from course_lib.errors import CourseError

import pytest


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "FOLDER", tmp_path / "solved")
    return progress.FOLDER


def combined_loss(losses, sizes):
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def answered(name="combined_loss", module="__main__"):
    """A right answer to exercise 2 of lesson 00, as if it were defined there under this name."""

    def answer(losses, sizes):
        return combined_loss(losses, sizes)

    answer.__name__, answer.__module__ = name, module
    return answer


def test_a_solved_exercise_is_remembered(folder, capsys):
    assert "1 of 4 solved" in lesson_00.combined_loss(answered()).text
    assert "1 of 4 solved" in lesson_00.combined_loss(answered()).text
    assert main(["progress"]) == 0
    line, *others = capsys.readouterr().out.splitlines()
    assert line.split(maxsplit=1) == ["00_start_here", "1 of 4 solved.    Exercise 2"]
    assert len(others) >= 5 and all(" 0 of " in other for other in others)


@pytest.mark.parametrize("answer", [answered("combined_loss_solution"), answered(module="somewhere.else")])
def test_what_the_reader_did_not_write_does_not_count(folder, answer):
    assert lesson_00.combined_loss(answer).text == "Exercise 2: right."
    assert progress.solved("00") == set()


def test_a_wrong_answer_does_not_count(folder):
    def wrong(losses, sizes):
        return sum(losses)

    wrong.__module__ = "__main__"
    assert not lesson_00.combined_loss(wrong) and progress.solved("00") == set()


def test_an_answer_without_a_name_is_checked(folder):
    class Callable:
        def __call__(self, losses, sizes):
            return combined_loss(losses, sizes)

    assert lesson_00.combined_loss(Callable())


def test_a_disk_that_cannot_be_written_to_does_not_make_an_answer_wrong(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(progress, "FOLDER", tmp_path / "file")
    assert lesson_00.combined_loss(answered()).text == "Exercise 2: right. 0 of 4 solved."


def test_every_lesson_has_exercises_with_titles_of_their_own():
    assert all(len(set(titles)) == len(titles) >= 4 for titles in check.EXERCISES.values())


@pytest.fixture
def course(monkeypatch, tmp_path):
    """A course of two lessons under version control."""
    folder = tmp_path / "course" / "notebooks"
    folder.mkdir(parents=True)
    for name in ("00_start.ipynb", "01_next.ipynb"):
        (folder / name).write_text("clean")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run(git + command, check=True)
    monkeypatch.setattr(paths, "NOTEBOOKS", folder)
    monkeypatch.setattr(progress, "KEPT", tmp_path / "course" / "mine")
    return folder


@pytest.mark.parametrize("lesson", ["01", "01_next", "notebooks/01_next.ipynb"])
def test_a_lesson_is_put_back_and_the_own_one_kept(course, lesson, capsys):
    (course / "01_next.ipynb").write_text("with my answers")
    assert main(["reset", lesson]) == 0
    [own] = progress.KEPT.iterdir()
    assert (course / "01_next.ipynb").read_text() == "clean" and own.read_text() == "with my answers"
    assert str(own) in capsys.readouterr().out and own.name.startswith("01_next-")
    assert progress.reset("01") is None, "nothing differs any more"


@pytest.mark.parametrize("lesson", ["", "0", "07", "next"])
def test_an_unknown_lesson_is_named(course, lesson):
    with pytest.raises(ValueError, match="Known: 00_start, 01_next"):
        progress.reset(lesson)


def test_without_git_nothing_is_touched(course, monkeypatch):
    (course / "01_next.ipynb").write_text("with my answers")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CourseError, match="Only git"):
        progress.reset("01")
    assert (course / "01_next.ipynb").read_text() == "with my answers" and not progress.KEPT.exists()
