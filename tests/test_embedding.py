"""The study of embeddings: settings are compared on the same pairs, and gains are what they are called."""

from dataclasses import replace

from course_lib import models, search, tasks
from course_lib.experiments import embedding as study
from course_lib.experiments import tuning
from course_lib.methods import METHODS
from course_lib.runs import Run, RunLog
from course_lib.tasks import docs_search

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.mark.parametrize("name", study.SETTINGS)
def test_settings(name):
    setting, spec = study.SETTINGS[name], study.make_spec(name, 1e-4)
    assert setting.start in tuning.RATES and spec["batch_size"] == setting.batch_size
    assert METHODS[setting.method].count(models.config(models.encoder_folder()), **setting.hparams) > 0
    assert max(setting.dimensions) == 384


def test_texts_about_one_place_do_not_name_it():
    pairs = study.town_pairs()
    assert len(pairs) == study.ELSEWHERE and len(set(pairs.labels)) == len(pairs)
    assert all("this place" in text for text in (*pairs.texts, *pairs.labels))


@pytest.fixture
def short(monkeypatch):
    few = tasks.load("docs_search").smaller(train=16, validation=6)
    monkeypatch.setattr(
        study, "SETTINGS", {name: replace(s, pairs=s.pairs and 8) for name, s in study.SETTINGS.items()}
    )
    named = study.questions()[1][:6]
    few = replace(few, test=few.test.rows([*named, *(i for i in range(20) if i not in named)][:12]))
    reviews = tasks.load("reviews").smaller(train=30, validation=15, test=15)
    monkeypatch.setattr(tasks, "load", lambda name: {"docs_search": few, "reviews": reviews}[name])
    monkeypatch.setattr(study, "ELSEWHERE", 5)
    monkeypatch.setitem(study.STEPS, "max_length", 16)
    monkeypatch.setattr(study, "BM25", ((1.2, 0.75), (0.8, 0.5)))
    for kept in (study.bm25_constants, study.by_words):
        # What is kept belongs to the whole task, or to this one.
        kept.cache_clear()
        monkeypatch.setattr(study, kept.__name__, kept.__wrapped__)
    return few


def test_runs_say_what_is_found_and_what_is_lost(short):
    log = RunLog()
    study.untuned(log)
    run = log.run(study.make_spec("plain", 1e-4), study.train)
    [base, longer, _] = log.runs.values()
    assert longer.extra["family"] == base.extra["family"]
    for one in (base, run):
        assert np.shape(one.extra["ranks"]) == (12, 5) and np.shape(one.extra["town"]) == (5, 5)
        assert np.shape(one.extra["asked"]) == (len(study.questions()[0]), 5) and len(study.questions()[0]) >= 6
        assert len(one.extra["asked package"]) == len(study.questions()[0])
        assert np.shape(one.extra["hybrid"]) == (12, 5) and len(one.extra["weights"]) == 5
        for more in ("hybrid", "turned", "bodies"):
            assert np.shape(one.extra[f"asked {more}"]) == np.shape(one.extra["asked"])
        assert [row[0] for row in one.extra["turned"]] == [row[0] for row in one.extra["ranks"]], "all of it is there"
        assert np.max(one.extra["ranks"]) <= study.WORST and set(one.extra["reviews"]) <= {0, 1}
        assert not one.predictions and not one.labels
        assert len(one.extra["family"]) == len(one.extra["unseen"]) == 12
    assert run.extra["trained on"] == 8 and run.extra["queries"] == base.extra["queries"]
    assert run.spec["dimensions"] == [384] and study.tuned([base, run], "plain") == []
    assert study.scores([run], 384)[0] == pytest.approx(run.accuracy)


def test_the_last_run_on_all_pairs_is_kept_for_the_command(short, monkeypatch, tmp_path):
    monkeypatch.setattr(search.Index.save, "__defaults__", (tmp_path,))
    monkeypatch.setattr(study, "judged", lambda run, *_: run)
    for setting, seed in (("all pairs", study.SEEDS[0]), ("matryoshka", study.SEEDS[-1])):
        study.train(study.make_spec(setting, 1e-4, seed=seed))
        assert not list(tmp_path.iterdir())
    study.train(study.make_spec("all pairs", 1e-4, seed=study.SEEDS[-1]))
    assert len(search.Index.load(tmp_path).names) == 34


def test_all_pairs_take_the_rate_of_fewer():
    asked = []

    class Log:
        def run(self, spec, _):
            asked.append(spec["setting"])
            return Run(spec=spec, precision="fp32", validation=[-abs(spec["learning_rate"] - 3e-4)])

    assert tuning.best_rate(Log(), "all pairs", study) == 3e-4 and set(asked) == {"matryoshka"}


def test_small_batches_are_also_run_at_the_rate_of_larger_ones():
    class Log(RunLog):
        def run(self, spec, _):
            run = Run(spec=spec, precision="fp32", validation=[-abs(spec["learning_rate"] - 3e-4)])
            return self.runs.setdefault(f"{spec}", run)

    log = Log()
    for seed in study.SEEDS:
        log.run(study.make_spec("matryoshka", 3e-4, seed), None)
        log.run(study.make_spec("4 × 8", 1e-5, seed), None)
    assert not study.at_one_rate(list(log.runs.values()))
    study.accumulated(log)
    found = study.at_one_rate(list(log.runs.values()))
    assert [(run.spec["learning_rate"], run.spec["seed"]) for run in found] == [(3e-4, seed) for seed in study.SEEDS]


def test_settings_see_the_same_pairs_and_seeds_others(short):
    seen = []

    class Tell(Exception):
        pass

    def fit(model, tokenizer, task, *_, **__):
        seen.append((task.train.texts, len(task.test)))
        raise Tell

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.training, "fit", fit)
        for setting in ("matryoshka", "plain", "all pairs"):
            for seed in study.SEEDS[:2]:
                with pytest.raises(Tell):
                    study.train(study.make_spec(setting, 1e-4, seed))
    assert seen[0] == seen[2] != seen[1] == seen[3] and len(seen[0][0]) == 8
    assert len(seen[-1][0]) == 16 and all(tested == 1 for _, tested in seen)


def run_of(ranks):
    rows = [[r] * 5 for r in ranks]
    extra = {
        "ranks": rows,
        "town": rows,
        "queries": "",
        "family": [i // 2 for i in range(len(rows))],
        "unseen": [0] * len(rows),
    }
    return Run(spec={}, precision="fp32", extra=extra)


def test_gains_are_relative_and_differences_in_points():
    draw = np.random.default_rng(0)
    better = [run_of(draw.choice([1, 2], 200)) for _ in range(5)]
    base = [run_of(draw.choice([1, 4], 200))]
    new, old = (np.mean([study.scores(side, 64)]) for side in (better, base))
    gain, gap = study.gain(better, base, 64), study.difference(better, base, 64)
    assert gain.value == pytest.approx(new / old - 1) and gain.low < gain.value < gain.high
    assert gap.value == pytest.approx(100 * (new - old)) and gap.low < gap.value < gap.high
    assert gain.low > 0 and gain.high < 0.35
    alike = study.gain([run_of(draw.choice([1, 4], 200))], base, 384)
    assert alike.low < 0 < alike.high
    more = study.more_at(better, base, 32, 384)
    assert more.low == more.value == more.high == 0, "ranks are the same at all sizes here"
    assert study.difference(better, base, 64, "town").value == pytest.approx(gap.value)
    closed = study.more_closed(better, base, 32, 384)
    assert closed.low == closed.value == closed.high == 0


def test_gains_at_two_sizes_are_compared_where_one_looks():
    better, base = run_of([1, 1, 2, 2]), run_of([2, 2, 3, 3])
    for run, last in ((better, 1), (base, 3)):
        run.extra["turned"] = [[*row[:-1], last] for row in run.extra["ranks"]]
    at = {where: [study.scores([run], 32, where)[0] for run in (better, base)] for where in ("ranks", "turned")}
    full = study.scores([better], 384)[0] - study.scores([base], 384)[0]
    for where, (new, old) in at.items():
        more = study.more_at([better], [base], 32, 384, where)
        assert more.value == pytest.approx(100 * (new - old - full))
    more = study.more_at([better], [base], 32, 384, of_b="turned")
    assert more.value == pytest.approx(100 * (at["ranks"][0] - at["turned"][1] - full))
    left = 1 - study.scores([base], 384)[0]
    for where, of_b in (("turned", None), ("ranks", "turned")):
        new, old = at[where][0], at[of_b or where][1]
        closed = study.more_closed([better], [base], 32, 384, where, of_b)
        assert closed.value == pytest.approx(100 * ((new - old) / (1 - old) - full / left))


def test_a_small_size_of_one_model_is_held_against_a_large_one_of_another():
    better, base = run_of([1, 1, 2, 2]), run_of([1, 2, 3, 3])
    better.extra["ranks"] = [[*row[:-1], 5] for row in better.extra["ranks"]]
    across = study.difference([better], [base], 32, size_of_b=384)
    assert across.value == pytest.approx(100 * (study.scores([better], 32)[0] - study.scores([base], 384)[0]))
    assert across.low <= across.value <= across.high < study.difference([better], [base], 384).value


def test_groups_are_drawn_whole():
    run = run_of([1, 2, 3, 4])
    run.extra |= {"package": [7, 7, 9, 9], "family": [3, 4, 5, 4], "asked package": [9, 9, 7, 9]}
    assert study._groups(run, "ranks", "package").tolist() == [0, 0, 1, 1]
    assert study._groups(run, "turned", "family").tolist() == [0, 1, 2, 1]
    assert study._groups(run, "asked turned", "family").tolist() == [1, 1, 0, 1]
    assert study._groups(run, "town", "family").tolist() == [0, 1, 2, 3]
    better, base = [run_of([1, 1, 4, 4])], [run_of([4, 4, 4, 4])]
    for one in (*better, *base):
        one.extra["package"] = [0, 0, 1, 1]
    by = {by: study.gain(better, base, 64, by=by) for by in ("family", "package")}
    assert by["family"].value == by["package"].value > 0


def test_few_runs_are_spread_as_far_as_drawing_them_anew_loses():
    values = np.array([[1.0, 5.0], [3.0, 5.0]])
    found = study._spread(values)
    assert found.mean(0) == pytest.approx([2, 5]) and found.var(0) == pytest.approx(values.var(0, ddof=1))
    assert study._spread(values[:1]).tolist() == values[:1].tolist()


def test_each_size_has_its_own_weights_of_words():
    # By meaning passage i is right, by words the next one; the answers are the former.
    sides, words = [np.eye(4, 384), np.eye(4, 384)], np.roll(np.eye(4), 1, axis=1)
    ranks = study._hybrid(sides, words, [(0.0, 1.0)] * study.SIZES)
    assert ranks.shape == (2, 4, study.SIZES) and (ranks[0] == 1).all() and (ranks[1] > 1).all()
    mixed = study._hybrid(sides, words, [[1.0], *[[0.0]] * (study.SIZES - 1)])
    assert (mixed[0, :, 0] == ranks[1, :, 0]).all() and (mixed[0, :, 1:] == 1).all()
    others = study._hybrid(sides, words, [(0.0, 1.0)] * study.SIZES, answers=[1, 2, 3, 0])
    assert (others[1] == 1).all() and (others[0] > 1).all()


def test_a_training_that_diverged_is_worth_nothing(short):
    model, tokenizer = models.embedder()
    for weight in model.parameters():
        weight.data.fill_(float("nan"))
    run = study.judged(Run(spec={}, precision="fp32"), {}, model, tokenizer)
    for name in ("ranks", "turned", "asked"):
        assert study.scores([run], 384, name)[0] == 0, "every passage is as near as any other: the worst rank"
    assert run.accuracy == 0 and len(run.extra["reviews"]) == 15


def test_runs_on_other_queries_are_not_compared():
    one, other = run_of([1, 2, 3, 4]), run_of([1, 2, 3, 4])
    other.extra["queries"] = "others"
    with pytest.raises(ValueError, match="not tested on the same queries"):
        study.gain([one], [other], 384)


def test_unseen_packages_are_told_apart():
    run = run_of([1, 1, 4, 4])
    run.extra["unseen"] = [0, 0, 1, 1]
    assert study.scores([run], 384, unseen=False)[0] == 1 > study.scores([run], 384, unseen=True)[0]
    better = run_of([1, 1, 2, 2])
    better.extra["unseen"] = run.extra["unseen"]
    gains = [study.gain([better], [run], 384, unseen=unseen).value for unseen in (False, True)]
    assert gains[0] == 0 < gains[1]


def test_one_kind_of_ranks_is_compared_with_another():
    run = run_of([1, 1, 4, 4])
    run.extra["turned"] = [[1] * 5] * 4
    found = study.difference([run], [run], 384, "turned", of_b="ranks")
    assert found.value == pytest.approx(100 * (1 - study.scores([run], 384)[0])) and found.value > 0


def test_search_by_common_words_is_recorded(short):
    log = RunLog()
    study.lexical(log)
    run, usual = log.runs.values()
    assert (usual.extra["k1"], usual.extra["b"]) == study.USUAL
    assert np.shape(run.extra["asked"]) == (len(study.questions()[0]), 5)
    assert np.shape(run.extra["ranks"]) == (12, 5) and study.scores([run], 32)[0] == study.scores([run], 384)[0] > 0


def test_ranks_are_enough_for_every_measure():
    ranks = np.array([1, 5, 10, 11, 500])
    capped = np.minimum(ranks, study.WORST)
    for measure in (docs_search.ndcg, docs_search.mrr, lambda r: docs_search.recall(r, 10)):
        assert (measure(ranks) == measure(capped)).all()


def test_questions_have_answers_in_the_test_split():
    asked, answers = study.questions()
    task = tasks.load("docs_search")
    test = task.test
    assert len(set(answers)) == len(asked) > 60
    # Other package versions may lack a definition; but none may be in another split.
    others = {*task.train.info["name"], *task.validation.info["name"]}
    assert not others & set(docs_search.questions().values())
    for question, row in zip(asked, answers, strict=True):
        # In other words than the documentation: no summary line is just asked again.
        words, summary = set(question.lower().split()), set(test.texts[row].lower().rstrip(".").split())
        assert len(words & summary) < 0.6 * len(words), (question, test.texts[row])
