"""The recorded LoRA study is complete, each rate was tuned, and what was counted is the closed form."""

from statistics import mean

from course_lib import runs
from course_lib.experiments import lora as study
from course_lib.experiments.tuning import RATES, SEEDS

import pytest

RECORDED = runs.load("lora")
HEAD = 384 * 3 + 3


def test_something_is_recorded():
    assert RECORDED


def test_every_setting_has_every_seed(log):
    assert all(len(study.tuned(log, setting)) == len(SEEDS) for setting in study.SETTINGS)


def test_rates_were_climbed_to_a_top(log):
    for setting in study.SETTINGS:
        at = RATES.index(study.tuned(log, setting)[0].spec["learning_rate"])
        assert set(RATES[max(0, at - 1) : at + 2]) <= set(study.at_rates(log, setting))


def test_the_grid_tried_all_its_rates(log):
    assert all(set(study.GRID) <= set(study.at_rates(log, setting)) for setting in study.GRID_SETTINGS)


def test_trained_parameters_are_the_closed_form(log):
    for setting in study.SETTINGS:
        # AdaLoRA's closed form is what is left at the end, not what is trained.
        if setting != "adalora":
            assert {run.trainable for run in study.tuned(log, setting)} == {study.trained(setting) + HEAD}


def test_predictions_give_the_accuracy(log):
    for run in runs.select(log, task=study.TASK):
        assert run.accuracy == pytest.approx(mean(run.hits))


def test_cuts_and_ranks_are_there(log):
    for run in study.tuned(log, "full"):
        assert set(run.extra["cut"]) == {str(rank) for rank in study.CUTS}
    for run in study.tuned(log, "adalora"):
        ranks = list(run.extra["ranks"].values())
        assert sum(ranks) == study.SETTINGS["adalora"].hparams["target_r"] * len(ranks)


def test_every_form_was_timed(log):
    for form in study.served():
        assert len(study.slowdown(log, form)) == study.SERVED_ROUNDS
