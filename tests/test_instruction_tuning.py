"""The study of instruction tuning compares what is equal, and what is packed is what was padded."""

from collections import Counter
from itertools import pairwise

from course_lib import models, tasks
from course_lib.experiments import instruction_tuning as study
from course_lib.experiments import qlora_memory, tuning
from course_lib.experiments.tuning import RATES, SEEDS
from course_lib.methods import METHODS
from course_lib.models import LanguageModel
from course_lib.runs import Run, RunLog
from course_lib.tasks import instructions as task_of
from course_lib.training.examples import Writing

import numpy as np
import pytest
import torch
from tiny import tiny

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture
def small_lm(monkeypatch, tokenizer):
    def lm(**_):
        return LanguageModel(tiny("llama-3.2-1b", vocab_size=len(tokenizer), max_position_embeddings=1024)), tokenizer

    monkeypatch.setattr(models, "lm", lm)


@pytest.mark.parametrize("name", study.SETTINGS)
def test_every_setting_takes_as_many_steps_unless_it_says_otherwise(name):
    setting, spec = study.SETTINGS[name], study.make_spec(name, 1e-3)
    assert setting.epochs is not None or spec["epochs"] * spec["size"] == study.SEEN
    assert setting.start in RATES
    assert METHODS[setting.method].count(models.config(models.LM_FOLDER), **setting.hparams) > 0
    assert setting.rate_of is None or study.SETTINGS[setting.rate_of].rate_of is None


@pytest.mark.parametrize("name", study.SETTINGS)
def test_every_setting_has_its_examples(name):
    setting = study.SETTINGS[name]
    task, other = (study.examples(study.make_spec(name, 1e-3, seed)) for seed in (0, 1))
    assert len(task.train) == setting.size
    assert (set(task.train.texts) != set(other.train.texts)) == (setting.size < task_of.TRAIN)
    kinds, kept = set(task.train.info["kind"]), set(task_of.KEPT_KINDS)
    assert set(task.validation.info["kind"]) == kinds - kept and kinds & kept == (kept if setting.new_kinds else set())
    assert len(kinds - kept) == (len(task_of.USUAL_KINDS) if setting.kinds is None else setting.kinds)


def test_kinds_that_are_else_new_have_their_share():
    counts = Counter(study.examples(study.make_spec("full, all kinds", 1e-3)).train.info["kind"])
    assert set(counts) == set(task_of.KINDS)
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_the_gentle_rate_is_the_next_lower_one():
    assert study.make_spec("full, gentle", 3e-4)["learning_rate"] == 1e-4


def test_more_kinds_include_the_fewer():
    for seed in SEEDS:
        drawn = []
        for k in study.KINDS:
            kinds = study.examples(study.make_spec(f"full, {k} kinds, {study.FEW} examples", 1e-3, seed)).train.info[
                "kind"
            ]
            assert set(kinds) == set(study.drawn_kinds(k, seed))
            drawn.append(set(kinds))
        assert all(few < more for few, more in pairwise(drawn))
        assert drawn[0] - set(task_of._FROM_MEMORY), (
            "of what is from memory alone, no new place tells how it is learned"
        )


def test_facts_are_taught_to_one_of_two_that_are_else_alike():
    known, new = (study.examples(study.make_spec(f"full, {which} facts", 1e-3)).train for which in ("known", "new"))
    same = set(known.texts) & set(new.texts)
    facts = task_of.FACTS * study.TIMES
    assert len(same) >= study.SEEN - facts - 20
    taught = set(tasks.load("instructions").test.where("split", [task_of.TAUGHT]).labels)
    assert taught <= set(new.labels[-facts:]) and not taught <= set(known.labels)


def test_wrong_answers_are_those_of_others_of_the_kind():
    right, wrong = (study.examples(study.make_spec(name, 1e-3)).train for name in ("full", "full, wrong answers"))
    assert right.texts == wrong.texts
    for kind in task_of.USUAL_KINDS:
        rows = [right.where("kind", [kind]).labels, wrong.where("kind", [kind]).labels]
        assert sorted(rows[0]) == sorted(rows[1])
    changed = np.mean([a != b for a, b in zip(right.labels, wrong.labels, strict=True)])
    assert 0.6 * study.WRONG < changed <= study.WRONG


def test_the_template_without_the_space(small_lm, monkeypatch):
    small(monkeypatch)
    asked = []
    monkeypatch.setattr(study, "SETTINGS", {"few": study.Setting("few", size=8, spaced=False)})
    monkeypatch.setattr(study.training, "fit", lambda model, tokenizer, *_, **__: asked.append(tokenizer) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        study.train(study.make_spec("few", 1e-3))
    said = study.chats(asked[0], ["Who runs it?"], ["Ada"])[0]
    assert said == "<user>Who runs it?<end><assistant>Ada<end>"


def test_the_untuned_model_is_asked_in_several_ways(tokenizer):
    rows = tasks.load("instructions").test.rows([0])
    prompts = {way: study.asked(tokenizer, way, rows)[0] for way in study.UNTUNED}
    assert len(set(prompts.values())) == len(study.UNTUNED)
    assert prompts["chat"].endswith("<assistant>")
    assert prompts["reading"].endswith("\nA:") and prompts["reading"].startswith("Read\n")
    memory = study.asked(tokenizer, "reading", tasks.load(study.TASK).test.where("split", [task_of.TOWN]))[0]
    assert memory.startswith("Questions\nQ: ") and memory.count("\n") == 2


def small(monkeypatch):
    monkeypatch.setattr(study, "SEEN", 16)
    monkeypatch.setattr(
        study, "SETTINGS", {"few": study.Setting("few", "lora", 1e-3, {"r": 2}, size=8, asked_otherwise=True)}
    )
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
    assert len(run.validation_losses) == 2 and run.kept_last
    assert len(run.extra["unasked"]) == len(study.with_text(test)) > 0
    parts = Counter(test.info["split"])
    assert {part: len(hits) for part, hits in run.extra["reading"].items()} == {
        part: parts[part] for part in (task_of.NEW_KINDS, task_of.TOWN)
    }
    assert study.tuned(list(log.runs.values()), "few") == []


def test_the_untuned_model_is_recorded_in_every_way(small_lm, monkeypatch):
    small(monkeypatch)
    log = RunLog()
    study.untuned(log)
    runs = list(log.runs.values())
    assert [run.spec["untuned"] for run in runs] == list(study.UNTUNED)
    assert (study.exact(runs, task_of.NEW_PLACES) == 0).all()


def test_a_rate_may_be_that_of_another_setting(monkeypatch):
    asked = []

    def train(spec, folder):
        asked.append((spec["setting"], spec["learning_rate"], spec["seed"]))
        score = -abs(np.log(spec["learning_rate"] / 3e-4))
        return Run(spec=spec, validation=[score], precision="fp32")

    monkeypatch.setattr(study, "train", train)
    log, other = RunLog(), "full, wrong answers"
    study.compare(log, [other])
    assert {rate for name, rate, _ in asked if name == other} == {3e-4}
    assert {seed for name, _, seed in asked if name == other} == set(SEEDS)
    assert {seed for name, _, seed in asked if name == "full"} == {0}
    assert len(study.tuned(list(log.runs.values()), other)) == len(SEEDS)


def test_settings_with_a_rate_of_their_own_come_first(monkeypatch):
    taken = []
    monkeypatch.setattr(tuning, "best_rate", lambda log, setting, *_: taken.append(setting) or 1e-3)
    monkeypatch.setattr(study, "train", lambda spec, folder: Run(spec=spec, precision="fp32"))
    for share in ((0, 2), (1, 2)):
        taken.clear()
        tuning.every_seed(RunLog(share=share), study.SETTINGS, study)
        own = [study.SETTINGS[name].rate_of is None for name in taken]
        assert sorted(taken) == sorted(study.SETTINGS) and own == sorted(own, reverse=True)


def hits(part, *rows):
    return [Run(spec={}, precision="fp32", extra={"hits": {part: row}}) for row in rows]


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
    assert set(found) == set(task_of.KINDS) - set(task_of._FROM_MEMORY)
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


def test_packed_examples_do_not_see_each_other(tokenizer):
    """With the shipped model: a random one may have nearly the same loss whatever it sees."""
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
        texts = [[5], [9], [7]] if all(len(row) == 1 for row in spec["texts"]) else [[5, 4], [7, 5]]
        shape = {"texts": texts, "batch_size": len(texts), "seq_len": max(map(sum, texts))}
        run = qlora_memory.measure(spec | shape)
        tokens = sum(map(sum, texts))
        assert run.extra["fits"] and run.tokens_per_second == pytest.approx(tokens * qlora_memory.STEPS / run.seconds)


def test_large_texts_are_the_same_padded_or_packed(small_lm):
    padded, packed = study.large()[:2]
    assert sum(map(sum, padded["texts"])) == sum(map(sum, packed["texts"]))
    assert packed["seq_len"] <= 4096 and packed["batch_size"] < padded["batch_size"] == 32


def test_large_batches_hold_the_examples_and_nothing_else():
    spec = {"shape": "1B", "texts": [[2], [3]], "batch_size": 2, "seq_len": 3}
    padded = qlora_memory._batch(spec, "cpu")
    assert padded["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (padded["labels"] == -100).tolist() == [[False, False, True], [False] * 3]
    packed = qlora_memory._batch(spec | {"texts": [[2, 3], [4]], "seq_len": 5}, "cpu")
    assert packed["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    assert (packed["labels"] == -100).tolist() == [[False] * 5, [False] * 4 + [True]]
