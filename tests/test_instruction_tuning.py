"""The study of instruction tuning compares what is equal, and what is packed is what was padded."""

from collections import Counter

from course_lib import models, tasks
from course_lib.experiments import instruction_tuning as study
from course_lib.experiments import qlora_memory
from course_lib.methods import METHODS
from course_lib.models import LanguageModel
from course_lib.runs import Run, RunLog
from course_lib.tasks import instructions as task_of
from course_lib.training.examples import Writing

import numpy as np
import pytest
import torch
from tiny import tiny
from transformers import AutoTokenizer

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(scope="module", autouse=True)
def study_on_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "best_device", lambda: "cpu")
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(models.LM_FOLDER)


@pytest.fixture
def small_lm(monkeypatch, tokenizer):
    def lm():
        return LanguageModel(tiny("llama-3.2-1b", vocab_size=len(tokenizer), max_position_embeddings=1024)), tokenizer

    monkeypatch.setattr(models, "lm", lm)


@pytest.mark.parametrize("name", study.SETTINGS)
def test_every_setting_sees_as_many_examples(name):
    setting, spec = study.SETTINGS[name], study.make_spec(name, 1e-3)
    assert spec["epochs"] * spec["size"] == study.SEEN and setting.start in study.RATES
    assert METHODS[setting.method].count(models.config(models.LM_FOLDER), **setting.hparams) > 0
    assert setting.rate_of is None or study.SETTINGS[setting.rate_of].rate_of is None


@pytest.mark.parametrize("name", study.SETTINGS)
def test_every_setting_has_its_examples(name):
    setting = study.SETTINGS[name]
    task, other = (study.examples(study.make_spec(name, 1e-3, seed)) for seed in (0, 1))
    assert len(task.train) == setting.size
    assert setting.size == task_of.TRAIN or task.train.texts != other.train.texts
    kinds = set(task.train.info["kind"])
    assert set(task.validation.info["kind"]) == kinds
    assert len(kinds) == (setting.kinds or len(task_of.USUAL_KINDS))
    assert not kinds & set(task_of.KEPT_KINDS)
    parts = Counter(task.test.info["split"])
    assert (task_of.TAUGHT in parts) == setting.taught and parts[task_of.NEW_KINDS] == 200


def small(monkeypatch, **settings):
    monkeypatch.setattr(study, "SEEN", 16)
    monkeypatch.setattr(study, "SETTINGS", {"few": study.Setting("few", "lora", 1e-3, {"r": 2}, size=8, **settings)})
    load = tasks.load("instructions")
    few = [i for i in range(0, len(load.test), 40)]
    task = load.smaller(validation=4)
    monkeypatch.setattr(tasks, "load", lambda name: study.replace(task, test=load.test.rows(few)))
    return task


def test_runs_say_what_their_answers_are_worth(small_lm, monkeypatch):
    small(monkeypatch)
    log = RunLog()
    run = log.run(study.make_spec("few", 1e-3), study.train)
    test = tasks.load("instructions").test
    assert {part: len(hits) for part, hits in run.extra["hits"].items()} == Counter(test.info["split"])
    assert sum(map(sum, run.extra["hits"].values())) == pytest.approx(run.accuracy * len(test))
    assert len(run.extra["rouge"]) == len(run.extra["hits"][task_of.NEW_KINDS]) and not run.predictions
    assert all(right != said.strip() for _, right, said in run.extra["said"]) and 1 <= len(run.extra["said"]) < 21
    assert len(run.validation_losses) == 2
    assert study.tuned(list(log.runs.values()), "few") == []


def test_the_untuned_model_is_asked_in_both_ways(small_lm, monkeypatch):
    small(monkeypatch)
    log = RunLog()
    study.untuned(log)
    runs = list(log.runs.values())
    assert [run.spec["untuned"] for run in runs] == ["chat", "plain"]
    assert (study.exact(runs, task_of.NEW_PLACES) == 0).all()


def test_a_rate_may_be_that_of_another_setting(monkeypatch):
    asked = []

    def train(spec, folder):
        asked.append((spec["setting"], spec["learning_rate"], spec["seed"]))
        none = {"losses": [], "trainable": 0, "seconds": 1.0, "tokens_per_second": 1.0, "predicted_bytes": {}}
        score = -abs(np.log(spec["learning_rate"] / 3e-4))
        return Run(spec=spec, validation=[score], peak_bytes=None, precision="fp32", **none)

    monkeypatch.setattr(study, "train", train)
    log, fewest = RunLog(), f"full, 2 kinds, {study.FEW} examples"
    study.compare(log, [fewest])
    assert {rate for name, rate, _ in asked if name == fewest} == {3e-4}
    assert {seed for name, _, seed in asked if name == fewest} == set(study.SEEDS)
    assert len(study.tuned(list(log.runs.values()), fewest)) == len(study.SEEDS)


def hits(part, *rows):
    none = {"losses": [], "trainable": 0, "seconds": 1.0, "tokens_per_second": 1.0, "predicted_bytes": {}}
    return [Run(spec={}, peak_bytes=None, precision="fp32", extra={"hits": {part: row}}, **none) for row in rows]


def test_differences_are_in_points():
    a, b = hits("x", [1, 1, 0, 1], [1, 1, 1, 1]), hits("x", [0, 1, 0, 1], [0, 1, 0, 1])
    assert study.exact(a, "x").tolist() == [0.75, 1.0]
    assert study.more_right(a, b, "x").value == pytest.approx(37.5)


def test_kinds_are_told_apart():
    test = tasks.load("instructions").test
    parts = {part: test.where("split", [part]) for part in (task_of.NEW_PLACES, task_of.NEW_KINDS)}
    run = hits("x", [])[0]
    run.extra["hits"] = {part: [int(kind == "owner") for kind in rows.info["kind"]] for part, rows in parts.items()}
    found = study.by_kind([run, run])
    assert set(found) == set(task_of.KINDS)
    assert {kind for kind, values in found.items() if values.sum()} == {"owner"} and found["owner"].tolist() == [1, 1]


def examples(tokenizer, n=12):
    rows = Writing(tokenizer, tasks.load("instructions").smaller(train=n), 400)
    return rows, rows.rows("train")


def test_every_way_of_batching_has_all_examples(tokenizer):
    rows, split = examples(tokenizer, 40)
    tokens = Counter(i for row in split for i in row["input_ids"])
    held = {}
    for way in study.WAYS:
        made = study.batches(split, way, rows.collate)
        held[way] = sum(batch["input_ids"].numel() for batch in made)
        found = Counter(i for batch in made for i in batch["input_ids"].flatten().tolist())
        del found[tokenizer.pad_token_id]
        assert found == tokens, way
    assert held["packed"] == tokens.total() < held["grouped"] < held["padded"]


def test_packed_examples_do_not_see_each_other(small_lm, tokenizer):
    rows, split = examples(tokenizer)
    lm = models.lm()[0].lm.eval()
    mixed = lm(**study.packed(split)).loss
    lm.config.use_cache = False
    packed = lm(**study.packed(split))
    assert abs(mixed - packed.loss) > 1e-3, "with a cache the model does not see where texts begin"
    torch.testing.assert_close(packed.loss, lm(**rows.collate(split)).loss, atol=1e-5, rtol=1e-5)
    at = 0
    for row in split:
        alone = lm(torch.tensor([row["input_ids"]])).logits[0]
        torch.testing.assert_close(packed.logits[0, at : at + len(alone)], alone, atol=1e-4, rtol=1e-3)
        at += len(alone)


def test_speed_is_measured_in_turns(small_lm, monkeypatch):
    monkeypatch.setattr(study, "PACKED_EXAMPLES", 16)
    monkeypatch.setattr(study, "PACKED_ROUNDS", 2)
    log = RunLog()
    study.pack(log)
    [run] = log.runs.values()
    assert {way: len(times) for way, times in run.extra["seconds"].items()} == dict.fromkeys(study.WAYS, 2)
    assert run.extra["tokens"] == run.extra["held"]["packed"] < run.extra["held"]["padded"]


def test_large_shapes_can_be_measured(small_lm, monkeypatch):
    """As on a GPU, with a model of two narrow blocks."""
    config = tiny("llama-3.2-1b", vocab_size=100, max_position_embeddings=512).config
    monkeypatch.setattr(qlora_memory, "_config", lambda spec: config)
    monkeypatch.setattr(qlora_memory, "best_device", lambda: "cpu")
    for spec in study.large():
        lengths = [5, 9, 7]
        shape = {"batch_size": 1, "seq_len": 21} if spec["batch_size"] == 1 else {"batch_size": 3, "seq_len": 9}
        run = qlora_memory.measure(spec | {"lengths": lengths} | shape)
        assert run.extra["fits"] and run.tokens_per_second == pytest.approx(21 * qlora_memory.STEPS / run.seconds)


def test_large_batches_hold_the_examples_and_nothing_else():
    spec = {"shape": "1B", "lengths": [2, 3], "batch_size": 2, "seq_len": 3}
    padded = qlora_memory._batch(spec, "cpu")
    assert padded["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (padded["labels"] == -100).tolist() == [[False, False, True], [False] * 3]
    packed = qlora_memory._batch(spec | {"batch_size": 1, "seq_len": 5}, "cpu")
    assert packed["position_ids"].tolist() == [[0, 1, 0, 1, 2]] and (packed["labels"] != -100).all()
