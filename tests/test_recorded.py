"""What is recorded is complete, says where it comes from, and shows what the data sets were made to show."""

from statistics import mean

from course_lib import runs, tasks
from course_lib.claims import Interval
from course_lib.experiments import full_vs_feature_based as study

import pytest

RECORDED = runs.load("full_vs_feature_based")


def accuracies(log, task, approach):
    return [run.accuracy for run in study.tuned(log, task, approach)]


def test_something_is_recorded():
    assert RECORDED


def test_every_run_says_where_it_comes_from(log):
    for run in log:
        assert run.machine["device"] and run.machine["versions"]["torch"] and run.machine["date"]
        assert run.machine["revision"]


def test_every_approach_has_every_seed_and_was_timed(log):
    for task in ("reviews", "docs_topic"):
        for approach in study.APPROACHES:
            assert len(study.tuned(log, task, approach)) == len(study.SEEDS)
            assert (study.seconds(log, task, approach)["each"] > 0).tolist() == [True] * study.REPEATS


def test_memory_was_predicted_exactly_but_for_the_activations(log):
    for run in log:
        assert run.predicted_bytes == {part: run.counted_bytes[part] for part in run.predicted_bytes}


def test_predictions_give_the_accuracy(log):
    for run in log:
        assert run.accuracy == pytest.approx(mean(run.hits))


def test_labels_of_the_shipped_task_are_those_of_its_test_split(log):
    labels = [run.labels for run in runs.select(log, task="reviews") if "timing" not in run.spec]
    assert {tuple(found) for found in labels} == {tasks.load("reviews").test.labels}


def test_an_old_skill_is_never_below_that_of_a_constant_answer(log):
    # docs_topic has ten topics, equally frequent.
    skills = [run.extra["old_skill"] for run in log if "old_skill" in run.extra]
    assert skills and all(set(skill) <= {0, 1} and mean(skill) >= 0.1 for skill in skills)


def test_reviews_separate_the_approaches(log):
    full, linear = accuracies(log, "reviews", "full"), accuracies(log, "reviews", "linear")
    assert Interval.difference(full, linear, confidence=0.99).low > 0
    assert mean(accuracies(log, "reviews", "random")) < mean(full) - 0.10


def test_frozen_features_nearly_do_on_docs_topic(log):
    lost = {t: mean(accuracies(log, t, "full")) - mean(accuracies(log, t, "linear")) for t in ("reviews", "docs_topic")}
    assert lost["docs_topic"] < lost["reviews"] / 2
