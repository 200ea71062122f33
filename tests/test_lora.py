"""The LoRA study's own measurements: energy, cutting to a rank, ranks left; and its plan."""

import itertools

from course_lib import models, tasks
from course_lib.experiments import lora as study
from course_lib.experiments.tuning import SEEDS, climb, tried, tuned
from course_lib.methods import METHODS
from course_lib.methods.shapes import linears
from course_lib.runs import Run, RunLog

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

REVIEWS = tasks.load("reviews").smaller(train=8, validation=4, test=12)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_energy_rises_to_one(rows, columns, seed):
    held = study.energy(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))
    assert len(held) == len(study.CUTS) and held[0] == 0
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(held))
    assert held[-1] == pytest.approx(1)


def test_energy_of_nothing():
    assert study.energy(torch.zeros(3, 3)) == [0.0] * len(study.CUTS)


def test_energy_of_a_known_matrix():
    held = dict(zip(study.CUTS, study.energy(torch.diag(torch.tensor([2.0, 1.0, 1.0]))), strict=True))
    assert held[1] == pytest.approx(4 / 6) and held[2] == pytest.approx(5 / 6) and held[4] == pytest.approx(1)


def test_cutting_to_a_rank_leaves_the_model_and_knows_its_ends(monkeypatch):
    monkeypatch.setattr(study, "CUTS", (0, 1, 384))
    model, tokenizer = models.classifier(3)
    start = {f"{name}.weight": model.encoder.get_parameter(f"{name}.weight").clone() for name in linears(model.config)}
    untouched = models.predict(model, tokenizer, REVIEWS.test.texts)
    with torch.no_grad():
        for name in start:
            weight = model.encoder.get_parameter(name)
            weight += 0.2 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    trained = {name: p.clone() for name, p in model.named_parameters()}
    whole = models.predict(model, tokenizer, REVIEWS.test.texts)
    found = study.cut(model, tokenizer, REVIEWS, start)
    assert found["0"] == untouched and found["384"] == whole
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())


def test_ranks_left():
    model = METHODS["adalora"].apply(tiny("minilm-l6"), init_r=4, target_r=2, total_step=10)
    layers = [module for module in model.modules() if hasattr(module, "lora_E")]
    for i, layer in enumerate(layers):
        torch.nn.init.ones_(layer.lora_E["default"])
        layer.lora_E["default"].data[: i % 4] = 0
    left = study.ranks_left(model)
    assert list(left.values()) == [4 - i % 4 for i in range(len(layers))]
    assert set(left) <= set(linears(model.config))


def test_kin_train_about_as_many_parameters_as_lora():
    budget = study.trained("lora")
    for name in study.KIN:
        # AdaLoRA also keeps one number for each rank that is left.
        assert study.trained(name) <= 1.01 * budget


def test_every_rank_has_a_setting_with_the_square_root():
    for rank, name in study.RSLORA.items():
        hparams = study.SETTINGS[name].hparams
        root = hparams.get("use_rslora", False)
        assert hparams["r"] == rank
        assert hparams["lora_alpha"] / (rank**0.5 if root else rank) == 8 / rank**0.5


def test_alpha_settings_differ_in_alpha_alone():
    settings = [study.SETTINGS[f"query, value, r={study.ALPHA_RANK}"], *study.ALPHA_SETTINGS.values()]
    assert sorted(setting.hparams["lora_alpha"] for setting in settings) == sorted(study.ALPHAS)
    assert len({str(setting.hparams | {"lora_alpha": 0}) for setting in settings}) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.data())
def test_climbing_ends_where_no_neighbour_is_better(scores, data):
    rates = [10.0**-i for i in range(len(scores))][::-1]
    found = climb(rates, data.draw(st.sampled_from(rates)), dict(zip(rates, scores, strict=True)).get)
    at = rates.index(found)
    assert scores[at] == max(scores[max(0, at - 1) : at + 2])


TIMES = {"seconds": {"base model": [1.0, 2.0], "LoRA, all linear": [2.0, 3.0]}}


def run(rate: float, seed: int, validation: float, spec: dict | None = None, extra: dict | None = None) -> Run:
    return Run(
        spec=spec or {"learning_rate": rate, "seed": seed}, losses=[], trainable=1, seconds=1.0, tokens_per_second=1.0,
        predicted_bytes={}, peak_bytes=None, precision="fp32", validation=[validation], extra=extra or {},
    )  # fmt: skip


def test_tuned_takes_the_best_rate_of_seed_zero_and_every_seed():
    runs = [run(0.1, 0, 0.5), run(1.0, 0, 0.7), run(10.0, 0, 0.7), *(run(1.0, seed, 0.1) for seed in SEEDS[1:])]
    assert set(tried(runs)) == {0.1, 1.0, 10.0}
    assert [r.spec for r in tuned(runs)] == [{"learning_rate": 1.0, "seed": seed} for seed in SEEDS]
    assert tuned(runs[:-1]) == [] and tuned([]) == []


def test_forms_are_timed_in_turns():
    forms = study.served()
    seconds = study.forward_seconds({what: forms[what] for what in ("base model", "LoRA, merged")}, rounds=2)
    assert {what: len(times) for what, times in seconds.items()} == {"base model": 2, "LoRA, merged": 2}
    assert min(map(min, seconds.values())) > 0


def test_slowdown_is_a_ratio_for_each_round():
    log = RunLog()
    log.run({"serving": study.SERVED_TOKENS, "rounds": 2}, lambda spec, folder: run(1.0, 0, 0.5, spec, TIMES))
    assert study.slowdown(list(log.runs.values()), "LoRA, all linear").tolist() == [2.0, 1.5]
    assert study.slowdown([], "LoRA, all linear").size == 0
