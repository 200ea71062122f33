"""What is recorded of instruction tuning was tuned on its own terms, and counts what it says."""

from course_lib import models, runs
from course_lib.experiments import instruction_tuning as study
from course_lib.experiments.tuning import RATES, tried
from course_lib.methods import METHODS
from course_lib.tasks import instructions as task_of

import numpy as np
import pytest

RECORDED = runs.load("instruction_tuning")


def test_rates_were_climbed_to_a_top_within_the_grid(log, groups):
    for setting in groups:
        if study.SETTINGS[setting].rate_of is None:
            at = RATES.index(groups[setting][0].spec["learning_rate"])
            assert 0 < at < len(RATES) - 1, setting
            assert set(RATES[at - 1 : at + 2]) <= set(tried(runs.select(log, setting=setting))), setting


def test_settings_without_a_rate_of_their_own_took_the_other_s(groups):
    for setting, group in groups.items():
        other = study.SETTINGS[setting].rate_of
        if other in groups:
            rate = groups[other][0].spec["learning_rate"]
            assert group[0].spec["learning_rate"] == study.make_spec(setting, rate)["learning_rate"]


def test_trained_parameters_are_the_closed_form(groups):
    config = models.config(models.LM_FOLDER)
    for setting, group in groups.items():
        chosen = study.SETTINGS[setting]
        assert {run.trainable for run in group} == {METHODS[chosen.method].count(config, **chosen.hparams)}


def test_hits_give_the_accuracy(log):
    for run in log:
        if "hits" in run.extra:
            assert run.accuracy == pytest.approx(np.mean(np.concatenate(list(run.extra["hits"].values()))))


def test_the_untuned_model_gives_no_exact_answer(log):
    untuned = runs.select(log, untuned="chat")
    for part in (task_of.NEW_PLACES, task_of.NEW_WAYS):
        assert not untuned or study.exact(untuned, part).max() < 0.02


def test_every_setting_has_every_seed(log, groups):
    assert set(groups) == set(study.SETTINGS)
    assert {run.spec["untuned"] for run in log if "untuned" in run.spec} == set(study.UNTUNED)
    assert len([run for run in log if "packing" in run.spec]) == 1


@pytest.mark.parametrize(
    ("setting", "part"),
    [("full", task_of.NEW_PLACES), ("full, longer", task_of.NEW_PLACES), ("full, longer", task_of.NEW_WAYS)],
)
def test_tuning_teaches_to_answer_new_questions(groups, setting, part):
    if setting not in groups:
        pytest.skip("not recorded with every seed on this device")
    assert study.exact(groups[setting], part).mean() > 0.8


def test_facts_are_learned_where_they_are_taught_and_nowhere_else(groups):
    taught = {setting: study.exact(group, task_of.TAUGHT).mean() for setting, group in groups.items()}
    assert taught.pop("full, new facts") > 0.5 and max(taught.values()) < 0.05
