"""Vectors that steer a language model start where they should, and their study compares what is equal."""

from course_lib import models, pretrain
from course_lib.experiments import prefix_tuning as study
from course_lib.experiments import qlora_memory
from course_lib.methods import METHODS
from course_lib.methods.prompts import start_from_text
from course_lib.models import LanguageModel
from course_lib.runs import Run, RunLog

import numpy as np
import pytest
import torch
from tiny import tiny

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def small(tokenizer):
    return tiny("llama-3.2-1b", vocab_size=len(tokenizer), max_position_embeddings=1024)


@pytest.fixture
def small_lm(monkeypatch, tokenizer):
    monkeypatch.setattr(models, "lm", lambda: (LanguageModel(small(tokenizer)), tokenizer))


def ids(tokenizer, text):
    return torch.tensor([tokenizer(text)["input_ids"]])


@pytest.mark.parametrize("method", ["prefix_tuning", "prompt_tuning"])
def test_vectors_that_start_from_a_text_say_what_the_text_says(method, tokenizer):
    """Nothing tells the model whether a text was read, or its keys and values were put in place."""
    text, asked = "The bakery in Northgate opens at 7:30.", ids(tokenizer, "It closes")
    length = ids(tokenizer, text).shape[1]
    base = small(tokenizer).eval()
    wanted = base(torch.cat([ids(tokenizer, text), asked], dim=1)).logits[:, -asked.shape[1] :]
    steered = METHODS[method].apply(base, num_virtual_tokens=length).eval()
    start_from_text(steered, tokenizer, text)
    got = steered(input_ids=asked).logits[:, -asked.shape[1] :]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert all(p.requires_grad for p in steered.prompt_encoder.parameters())


def test_a_short_text_is_repeated(tokenizer):
    steered = METHODS["prompt_tuning"].apply(small(tokenizer), num_virtual_tokens=7)
    start_from_text(steered, tokenizer, "The inn")
    vectors = steered.prompt_encoder["default"].embedding.weight
    again = ids(tokenizer, "The inn").shape[1]
    assert torch.equal(vectors[0], vectors[again]) and not torch.equal(vectors[0], vectors[1])


@pytest.mark.parametrize(
    ("method", "hparams", "text", "said"),
    [
        ("lora", {}, "x", "Only prefixes"), ("p_tuning", {}, "x", "Only prefixes"),
        ("prefix_tuning", {"prefix_projection": True}, "x", "Only prefixes"), ("prefix_tuning", {}, "", "no tokens"),
    ],
)  # fmt: skip
def test_what_cannot_start_from_a_text(method, hparams, text, said, tokenizer):
    steered = METHODS[method].apply(small(tokenizer), **hparams)
    with pytest.raises(ValueError, match=said):
        start_from_text(steered, tokenizer, text)


@pytest.mark.parametrize("name", study.SETTINGS)
def test_settings_can_be_counted(name):
    setting = study.SETTINGS[name]
    assert METHODS[setting.method].count(models.config(models.LM_FOLDER), **setting.hparams) > 0
    assert setting.start in study.GRID


@pytest.mark.parametrize(("length", "rank"), study.LORA_RANKS.items())
def test_lora_has_exactly_as_many_parameters_as_the_prefix(length, rank):
    config = models.config(models.LM_FOLDER)
    budget = METHODS["prefix_tuning"].count(config, num_virtual_tokens=length)
    assert METHODS["lora"].count(config, **study._rank(rank)) == budget


def test_a_soft_prompt_can_have_exactly_as_many_parameters_too():
    config = models.config(models.LM_FOLDER)
    prefix = METHODS["prefix_tuning"].count(config, num_virtual_tokens=study.LENGTH)
    assert METHODS["prompt_tuning"].count(config, num_virtual_tokens=study.EQUAL_PROMPT) == prefix


def test_random_starts_are_as_large_as_words_and_other_ones_for_each_seed(small_lm):
    def vectors(setting, seed=0):
        return study.fresh(setting, seed)[0].lm.prompt_encoder["default"].embedding.weight.detach()

    words, random = vectors(f"prefix, m={study.LENGTH}"), vectors("prefix, random")
    assert random.square().mean().sqrt() == pytest.approx(words.square().mean().sqrt().item(), rel=0.15)
    assert torch.equal(random, vectors("prefix, random")) and not torch.equal(random, vectors("prefix, random", 1))


def test_runs_say_what_their_texts_are_worth(small_lm, monkeypatch):
    monkeypatch.setattr(study, "TRAIN", 16)
    monkeypatch.setattr(
        study,
        "SETTINGS",
        {"few": study.Setting("few", "prefix_tuning", 1e-2, study._virtual(2), study.WORDS, tables=16, epochs=1)},
    )
    log = RunLog()
    run = log.run(study.make_spec("few", 1e-2), study.train)
    test = study.tasks.load(study.TASK).test
    assert len(run.extra["errors"]) == len(test) and len(run.extra["written"]) == 3 and not run.predictions
    whole = study.slot_error_rates([run])[0]
    assert whole == pytest.approx(1 - run.accuracy)
    parts = [study.slot_error_rates([run], kind)[0] for kind in ("new places", "new combinations")]
    assert min(parts) <= whole <= max(parts) and run.extra["bleu"] >= 0
    assert study.tuned(list(log.runs.values()), "few") == []


def test_examples_in_the_context(small_lm):
    task = study.tasks.load(study.TASK)
    none, two = (study.prompt_with_shots(task, shots, seed=1) for shots in (0, 2))
    assert none == list(task.test.texts)
    assert all(long.endswith(short) and long.count("Name ->") == 3 for long, short in zip(two, none, strict=True))
    assert two != study.prompt_with_shots(task, 2, seed=2)


def test_longest_context_leaves_room_for_the_answer(tokenizer):
    """Within the lengths that the model has seen."""
    task = study.tasks.load(study.TASK)
    longest_text = max(len(tokenizer(text)["input_ids"]) for text in task.test.labels)
    room = pretrain.Recipe().length
    for seed in study.SEEDS:
        longest = max(
            len(tokenizer(prompt)["input_ids"]) for prompt in study.prompt_with_shots(task, max(study.SHOTS), seed)
        )
        assert longest + longest_text <= room


def test_large_shapes_can_be_measured(monkeypatch):
    """As on a GPU, with a model of two narrow blocks."""
    config = tiny("llama-3.2-1b", vocab_size=100, max_position_embeddings=512).config
    monkeypatch.setattr(qlora_memory, "_config", lambda spec: config)
    monkeypatch.setattr(qlora_memory, "best_device", lambda: "cpu")
    seen = set()
    for spec in study.large():
        small_spec = spec | {"seq_len": 8}
        run = qlora_memory.measure(small_spec)
        assert (
            run.extra["fits"]
            and run.losses
            and run.trainable == METHODS[spec["method"]].count(config, **spec["hparams"])
        )
        seen.add(qlora_memory.title(spec))
    assert len(seen) == len(study.large())


def test_fewer_errors_is_the_difference_of_the_rates():
    texts = len(study.tasks.load(study.TASK).test)

    def runs(*errors):
        return [
            fake_run([error] * (texts // 2) + [0] * (texts - texts // 2), seed) for seed, error in enumerate(errors)
        ]

    a, b = runs(1, 2, 1), runs(3, 3, 2)
    found = study.fewer_errors(a, b)
    assert found.value == pytest.approx(100 * (study.slot_error_rates(b) - study.slot_error_rates(a)).mean())
    assert found.low < found.value < found.high


def fake_run(errors, seed):
    return Run(spec={"seed": seed}, precision="fp32", extra={"errors": errors})


def test_words_are_long_enough_for_the_longest(tokenizer):
    assert ids(tokenizer, study.WORDS).shape[1] >= max(study.LENGTHS)
    assert ids(tokenizer, study.OTHER_WORDS).shape[1] >= study.LENGTH


def test_speed_of_every_form_is_told(small_lm, monkeypatch):
    monkeypatch.setattr(study, "SERVED_ROUNDS", 2)
    monkeypatch.setattr(study, "SERVED_TOKENS", 2)
    log = RunLog()
    study.serve(log)
    (run,) = log.runs.values()
    assert set(run.extra["seconds"]) == set(study.served())
    assert all(np.shape(turns) == (2, 2) for turns in run.extra["seconds"].values())
