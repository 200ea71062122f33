"""The recorded comparison of methods is what the registry says, complete for every entry that the lesson shows."""

from statistics import mean

from course_lib import models, runs
from course_lib.experiments import peft_taxonomy as study
from course_lib.methods import METHODS

import pytest

RECORDED = runs.load("peft_taxonomy")
HEAD = 384 * 3 + 3


def test_something_is_recorded():
    assert RECORDED


def test_what_the_claims_need_is_there(log):
    assert {"full", "full_twice", "bitfit", "lt_sft", "lora", "adapter"} <= set(study.recorded(log))
    assert [len(study.on_few(log, entry)) for entry in ("full", "bitfit")] == [len(study.SEEDS)] * 2


def test_trained_parameters_are_the_closed_form(log):
    config = models.encoder()[0].config
    for name, group in study.recorded(log).items():
        entry = study.ENTRIES[name]
        for run in group:
            assert run.trainable == METHODS[entry.method].count(config, **entry.hparams) + HEAD


def test_files_are_the_closed_form(log):
    config = models.encoder()[0].config
    for name, group in study.recorded(log).items():
        entry = study.ENTRIES[name]
        for run in group:
            header = run.extra["file_bytes"] - METHODS[entry.method].file_bytes(config, **entry.hparams)
            # The header names every tensor. AdaLoRA's file is that of the ranks that are left.
            assert 0 <= header < 40_000 or entry.method == "adalora", (name, header)


def test_rates_were_climbed_to_a_top(log):
    for name, group in study.recorded(log).items():
        rate = group[0].spec["learning_rate"]
        at = study.RATES.index(rate)
        assert set(study.RATES[max(0, at - 1) : at + 2]) <= set(study.tuning(log, name))


def test_predictions_give_the_accuracy(log):
    for run in runs.select(log, task=study.TASK):
        assert run.accuracy == pytest.approx(mean(run.hits))


@pytest.mark.parametrize(
    ("costs", "scores", "front"),
    [
        ({"a": 1, "b": 2, "c": 3}, {"a": 0.5, "b": 0.6, "c": 0.6}, ["a", "b"]),
        ({"a": 3, "b": 2, "c": 1}, {"a": 0.9, "b": 0.2, "c": 0.3}, ["c", "a"]),
        ({"a": 1, "b": 1}, {"a": 0.4, "b": 0.5}, ["b"]),
        ({}, {}, []),
    ],
)
def test_front(costs, scores, front):
    assert study.front(costs, scores) == front
