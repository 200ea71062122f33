"""The run log: written whole or not at all, resumed, read back, and searched."""

import json
import random
import re
import threading
import time
from dataclasses import asdict

from course_lib import runs
from course_lib.errors import CourseError
from course_lib.runs import OutOfTime, Run, RunLog, key, load, machine, read, select, slug

import pytest
from hypothesis import given
from hypothesis import strategies as st

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | st.integers() | FINITE | st.text()
SPECS = st.dictionaries(st.text(), PLAIN | st.dictionaries(st.text(), PLAIN, max_size=3), max_size=6)
BYTES = st.dictionaries(st.text(), st.integers(0), max_size=4)
RUNS = st.builds(
    Run,
    spec=SPECS,
    accuracy=FINITE,
    train_accuracy=FINITE,
    validation=st.lists(FINITE),
    losses=st.lists(FINITE),
    predictions=st.lists(st.integers(0)),
    trainable=st.integers(0),
    seconds=FINITE,
    tokens_per_second=FINITE,
    counted_bytes=BYTES,
    predicted_bytes=BYTES,
    peak_bytes=st.none() | st.integers(0),
    precision=st.text(),
    resumed=st.booleans(),
    extra=SPECS,
    machine=SPECS,
)


def made(spec: dict, **changes) -> Run:
    values = {
        "accuracy": 0.5,
        "train_accuracy": 0.75,
        "validation": [0.25, 0.5, 0.375],
        "losses": [1.0, 0.5, 0.25],
        "predictions": [0, 1],
        "trainable": 3,
        "seconds": 1.5,
        "tokens_per_second": 100.0,
        "counted_bytes": {"weights": 12},
        "predicted_bytes": {"weights": 12},
        "peak_bytes": None,
        "precision": "fp32",
    }
    return Run(spec=spec, **values | changes)


class Trainer:
    """Stands for training: remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, spec, folder):
        self.asked.append((spec, folder))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return made(spec)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The checkpoints of these tests go to a folder of their own."""
    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_logged_run_is_not_run_again(tmp_path):
    file, train = tmp_path / "study" / "cpu.json", Trainer()
    first = RunLog(file).run({"a": 1, "b": 2}, train)
    again = RunLog(file).run({"b": 2, "a": 1}, train)
    assert again == first
    assert len(train.asked) == 1


def test_log_goes_on_where_it_stopped(tmp_path):
    file, train = tmp_path / "cpu.json", Trainer()
    RunLog(file).run({"seed": 0}, train)
    log = RunLog(file)
    log.run({"seed": 1}, train)
    assert [run.spec["seed"] for run in read(file)] == [0, 1]
    assert read(file) == list(log.runs.values())


def test_run_carries_its_machine_and_date():
    run = RunLog().run({}, Trainer())
    assert machine().items() <= run.machine.items()
    assert {"device", "python", "versions", "revision", "date"} <= set(run.machine)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run.machine["date"])


def test_log_in_memory_has_no_folder_and_writes_nothing(cache):
    train, log = Trainer(), RunLog()
    log.run({"seed": 0}, train)
    log.run({"seed": 0}, train)
    assert train.asked == [({"seed": 0}, None)]
    assert not cache.exists()


def test_folder_of_checkpoints_is_removed_after_the_run(tmp_path, cache):
    train, log = Trainer(), RunLog(tmp_path / "cpu.json")
    log.run({"seed": 0}, train)
    log.run({"seed": 1}, train)
    folders = [folder for _, folder in train.asked]
    assert len(set(folders)) == 2
    assert {folder.parent for folder in folders} == {cache / "checkpoints"}
    assert not any(folder.exists() for folder in folders)


def test_interrupted_run_keeps_its_folder(tmp_path):
    kept = []

    def interrupted(spec, folder):
        kept.append(folder)
        folder.mkdir(parents=True)
        raise KeyboardInterrupt

    file, train = tmp_path / "cpu.json", Trainer()
    with pytest.raises(KeyboardInterrupt):
        RunLog(file).run({"seed": 0}, interrupted)
    assert kept[0].is_dir() and not file.exists()
    RunLog(file).run({"seed": 0}, train)
    assert train.asked[0][1] == kept[0]


def test_spent_budget_starts_no_run_but_gives_logged_ones(tmp_path):
    file, train = tmp_path / "cpu.json", Trainer()
    RunLog(file, time.monotonic() + 300).run({"seed": 0}, train)
    log = RunLog(file, time.monotonic())
    assert log.run({"seed": 0}, train).spec == {"seed": 0}
    with pytest.raises(OutOfTime):
        log.run({"seed": 1}, train)
    assert len(train.asked) == 1


def test_failed_write_leaves_the_file_as_it_was(tmp_path):
    file, train = tmp_path / "cpu.json", Trainer()
    log = RunLog(file)
    log.run({"seed": 0}, train)
    before = file.read_bytes()
    with pytest.raises(TypeError):
        log.run({"seed": 1}, lambda spec, folder: made(spec, extra={"not": {"plain"}}))
    assert file.read_bytes() == before


def test_log_is_replaced_whole(tmp_path):
    file, train = tmp_path / "cpu.json", Trainer()
    log = RunLog(file)
    log.run({"seed": 0}, train)
    before = file.read_text()
    with file.open() as reader:
        log.run({"seed": 1}, train)
        assert reader.read() == before
    assert len(read(file)) == 2


def test_half_written_draft_is_not_read(tmp_path):
    file, train = tmp_path / "study" / "cpu.json", Trainer()
    RunLog(file).run({"seed": 0}, train)
    file.with_suffix(".draft").write_text('[{"spec"')
    assert [len(recorded) for recorded in load("study", tmp_path).values()] == [1]
    assert RunLog(file).run({"seed": 0}, train).spec == {"seed": 0}


def test_two_processes_share_a_log(tmp_path):
    file, train = tmp_path / "cpu.json", Trainer()
    one, other = RunLog(file, share=(0, 2)), RunLog(file, share=(1, 2))
    assert one.order("abcd") == ["a", "b", "c", "d"] and other.order("abcd") == ["d", "c", "b", "a"]
    one.run({"seed": 0}, train)
    other.run({"seed": 1}, train)
    assert other.run({"seed": 0}, train).spec == one.run({"seed": 1}, train).spec | {"seed": 0}
    assert [spec["seed"] for spec, _ in train.asked] == [0, 1]
    assert [run.spec["seed"] for run in read(file)] == [0, 1]


@pytest.mark.skipif(runs.fcntl is None, reason="no file locks")
def test_a_run_that_another_process_does_is_waited_for(tmp_path):
    file, train, begun, go = tmp_path / "cpu.json", Trainer(), threading.Event(), threading.Event()

    def slow(spec, folder):
        begun.set()
        assert go.wait(30)
        return train(spec, folder)

    first, second = (threading.Thread(target=RunLog(file).run, args=({"seed": 0}, how)) for how in (slow, train))
    first.start()
    assert begun.wait(30)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go.set()
    first.join()
    second.join()
    assert len(train.asked) == 1


@pytest.mark.parametrize(
    "text", ["", "[", "5", "{}x", '{"a": 1}', "[null]", '[{"spec": {}}]', '[{"wrong": 1}]', "\x00"]
)
def test_damaged_file_is_named(text, tmp_path):
    file = tmp_path / "study" / "cpu.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(CourseError, match=r"cpu\.json in study is not a run log .* Restore it from git"):
        read(file)
    with pytest.raises(CourseError):
        RunLog(file)


def test_bytes_that_are_no_text_are_named(tmp_path):
    file = tmp_path / "cpu.json"
    file.write_bytes(b"\xff\xfe[]")
    with pytest.raises(CourseError, match="not a run log"):
        read(file)


@given(run=RUNS)
def test_run_survives_json(run):
    assert Run(**json.loads(json.dumps(asdict(run)))) == run


@given(many=st.lists(RUNS, min_size=1, max_size=3, unique_by=lambda run: key(run.spec)))
def test_log_survives_its_file(many, tmp_path_factory):
    file = tmp_path_factory.mktemp("log") / "cpu.json"
    log = RunLog(file)
    for run in many:
        log.run(run.spec, lambda spec, folder, run=run: run)
    assert read(file) == many
    assert RunLog(file).runs == log.runs


@given(spec=SPECS, seed=st.integers(0, 100))
def test_key_does_not_depend_on_the_order(spec, seed):
    items = list(spec.items())
    random.Random(seed).shuffle(items)
    assert key(dict(items)) == key(spec)


def test_key_orders_inner_entries_too():
    assert key({"hparams": {"a": 1, "b": 2}}) == key({"hparams": {"b": 2, "a": 1}}) != key({"hparams": {"a": 1}})


@given(text=st.text())
def test_slug_is_a_file_name(text):
    assert re.fullmatch(r"([a-z0-9]+(-[a-z0-9]+)*)?", slug(text))
    assert slug(slug(text)) == slug(text)


def test_slug_of_a_device():
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert slug("AMD EPYC, 2 cores") == "amd-epyc-2-cores"


def test_best_validation_is_that_of_the_epoch_that_was_kept():
    assert made({}).best_validation == 0.5


def test_select():
    many = [made({"task": task, "seed": seed}) for task in ("reviews", "docs_topic") for seed in (0, 1)]
    many.append(made({"task": "reviews", "seed": 0, "n_train": 32}))
    assert select(many, task="docs_topic") == many[2:4]
    assert select(many, task="reviews", seed=0) == [many[0], many[4]]
    assert select(many, task="reviews", seed=0, n_train=None) == [many[0]]
    assert select(many) == many
    assert select(many, method="full") == []


def test_devices_are_told_apart_where_there_are_several():
    assert runs.apart({"cpu": [1]}) == {"cpu": ""}
    assert runs.apart(["cpu", "gpu"]) == {"cpu": ", cpu", "gpu": ", gpu"}


def test_load_gives_the_runs_of_each_device(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    for device in ("cpu", "gpu"):
        (folder / f"{device}.json").write_text(json.dumps([asdict(made({}, machine={"device": device}))]))
    (folder / "empty.json").write_text("[]")
    assert load("study", tmp_path) == {device: [made({}, machine={"device": device})] for device in ("cpu", "gpu")}
    assert load("another", tmp_path) == {}
