"""What is recorded of embedding fine-tuning was tuned on its own terms, and gains what the lesson promises."""

from course_lib import models, runs, search
from course_lib.experiments import embedding as study
from course_lib.experiments.tuning import RATES, tried
from course_lib.methods import METHODS
from course_lib.tasks import docs_search

import numpy as np
import pytest

RECORDED = runs.load("embedding")


@pytest.fixture
def untuned(log):
    return runs.select(log, untuned=search.MAX_LENGTH)


def test_every_setting_and_every_baseline_is_there(log, groups):
    assert set(groups) == set(study.SETTINGS)
    assert [run.spec["seed"] for run in study.at_one_rate(log)] == list(study.SEEDS)
    assert {run.spec["untuned"] for run in log if "untuned" in run.spec} == {search.MAX_LENGTH, study.LONGER}
    assert {run.spec["lexical"] for run in log if "lexical" in run.spec} == {"BM25", "usual"}


def test_rates_were_climbed_to_a_top_within_the_grid(log, groups):
    for setting in groups:
        if study.SETTINGS[setting].rate_of is None:
            at = RATES.index(groups[setting][0].spec["learning_rate"])
            looked_at = set(tried(runs.select(log, setting=setting)))
            assert set(RATES[max(at - 1, 0) : at + 2]) <= looked_at, setting


def test_all_pairs_took_the_rate_of_fewer(groups):
    rates = {groups[setting][0].spec["learning_rate"] for setting in ("all pairs", "matryoshka")}
    assert len(rates) == 1


def test_settings_saw_as_many_pairs_and_all_pairs_more(groups):
    seen = {setting: {run.extra["trained on"] for run in group} for setting, group in groups.items()}
    assert min(seen.pop("all pairs")) > study.PAIRS
    assert all(found == {study.PAIRS} for found in seen.values())


def test_trained_parameters_are_the_closed_form(groups):
    config = models.encoder()[0].config
    for setting, group in groups.items():
        chosen = study.SETTINGS[setting]
        assert {run.trainable for run in group} == {METHODS[chosen.method].count(config, **chosen.hparams)}


def test_ranks_give_the_score(log):
    for run in log:
        if run.accuracy is not None:
            assert run.accuracy == pytest.approx(docs_search.ndcg(np.array(run.extra["ranks"])[:, 0]).mean())


def test_all_were_asked_the_same(log):
    assert len({run.extra["queries"] for run in log}) == 1
    assert len({tuple(run.extra["unseen"]) for run in log}) == 1


def test_turning_changes_nothing_where_nothing_is_cut(log):
    """Up to the last bits: the encoders' precision and a matrix product in another order."""
    for run in log:
        if "turned" in run.extra:
            found, turned = (np.array(run.extra[where])[:, 0] for where in ("ranks", "turned"))
            assert docs_search.ndcg(turned).mean() == pytest.approx(docs_search.ndcg(found).mean(), abs=1e-3)


@pytest.mark.parametrize(("size", "least"), [(384, 0.08), (64, 0.20)])
def test_the_full_run_gains(groups, untuned, size, least):
    found = study.gain(groups["all pairs"], untuned, size)
    assert found.value >= least and found.low > 0


def test_the_full_run_gains_at_every_size_with_every_seed(groups, untuned):
    for size in docs_search.DIMENSIONS:
        assert study.scores(groups["all pairs"], size).min() > study.scores(untuned, size)[0]
