"""What is recorded of steering a frozen model was tuned on its own terms, and counts what it says."""

from course_lib import models, runs, tasks
from course_lib.experiments import prefix_tuning as study
from course_lib.methods import METHODS
from course_lib.tasks import table_to_text

import numpy as np
import pytest

RECORDED = runs.load("prefix_tuning")


def test_rates_were_climbed_to_a_top_within_the_grid(log, groups):
    for setting in groups:
        if study.SETTINGS[setting].rate_of is None:
            at = study.GRID.index(study.tuned(log, setting)[0].spec["learning_rate"])
            assert 0 < at < len(study.GRID) - 1, setting
            assert set(study.GRID[at - 1 : at + 2]) <= set(study.at_rates(log, setting)), setting


def test_longer_runs_took_the_rate_of_the_shorter(groups):
    for setting, group in groups.items():
        other = study.SETTINGS[setting].rate_of
        if other in groups:
            assert group[0].spec["learning_rate"] == groups[other][0].spec["learning_rate"]


def test_trained_parameters_are_the_closed_form(groups):
    config = models.config(models.LM_FOLDER)
    for setting, group in groups.items():
        chosen = study.SETTINGS[setting]
        assert {run.trainable for run in group} == {METHODS[chosen.method].count(config, **chosen.hparams)}


def test_errors_give_the_accuracy(log):
    slots = sum(map(len, tasks.load(study.TASK).test.info["table"]))
    for run in log:
        if "errors" in run.extra:
            assert run.accuracy == pytest.approx(1 - np.sum(run.extra["errors"]) / slots)


def test_what_is_written_has_the_errors_that_were_counted(log):
    tables = tasks.load(study.TASK).test.info["table"]
    for run in log:
        for table, text, errors in zip(tables, run.extra.get("written", ()), run.extra.get("errors", ()), strict=False):
            assert table_to_text.errors(table, text) == errors


def test_every_setting_has_every_seed(log, groups):
    assert set(groups) == set(study.SETTINGS)
    assert [len(study.shown(log, shots)) for shots in study.SHOTS] == [1] + [len(study.SEEDS)] * (len(study.SHOTS) - 1)
    assert len([run for run in log if "told" in run.spec]) == len([run for run in log if "serving" in run.spec]) == 1


def test_full_and_lora_learn_the_skill(log):
    """What `data/table_to_text` promises, of full fine-tuning and of LoRA on all linear layers."""
    for setting in ("full", "lora, all linear"):
        assert study.slot_error_rates(study.tuned(log, setting), table_to_text.NEW_PLACES).max() < 0.1
