"""The speed study's parts, on a model small enough for any processor."""

import itertools

from course_lib import models
from course_lib.experiments import lora_speed as study
from course_lib.methods import METHODS
from course_lib.methods.shapes import linears
from course_lib.runs import RunLog

import pytest
import torch
from transformers import AutoConfig

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def narrow(monkeypatch):
    """Every shape of the study is a narrow Llama on the processor, and a step has few tokens."""
    wide = models._architectures()["llama-3.2-1b"]["config"]
    monkeypatch.setattr(models, "config", lambda name: AutoConfig.for_model(**(wide | SMALL)))
    monkeypatch.setattr(study, "best_device", lambda: "cpu")
    monkeypatch.setattr(study, "LENGTH", 16)
    monkeypatch.setattr(study, "WARMUP", 1)
    monkeypatch.setattr(study, "STEPS", 2)
    monkeypatch.setattr(study, "SIDE", 512)


@pytest.mark.parametrize("build", [name for name, build in study.LADDER.items() if not build.compiled])
def test_a_measurement(build, narrow):
    spec = study.make_spec("1B", "lora", build, r=2, target_modules="all-linear")
    run = study.measure(spec)
    assert run.spec == spec and run.peak_bytes is None and len(run.losses) == 3
    assert run.trainable == METHODS["lora"].count(models.config(""), r=2, target_modules="all-linear")
    real = 2 + 16 if study.LADDER[build].padded else 2 * 16
    assert run.tokens_per_second == pytest.approx(real * 2 / sum(run.extra["step_seconds"]))
    assert run.predicted_bytes["gradients"] == run.trainable * (4 if study.LADDER[build].adapters_fp32 else 2)
    assert run.extra["utilization"] > 0


def test_full_fine_tuning_is_measured_too(narrow):
    run = study.measure(study.make_spec("1B", "full", "adapters in bf16"))
    assert run.trainable == METHODS["full"].count(models.config(""))
    assert run.predicted_bytes["optimizer states"] == 4 * run.trainable


def test_builds_compute_the_same_loss(narrow):
    losses = [
        study.measure(study.make_spec("1B", "lora", build, r=2)).losses[0]
        for build in ("packed rows", "adapters in bf16")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_operations_are_four_and_six_for_each_weight():
    layers = linears(models.config("llama-3-8b"))
    assert study.operations("8B", "lora") == 4 * sum(layer.inputs * layer.outputs for layer in layers.values())
    assert 2 * study.operations("8B", "full") == 3 * study.operations("8B", "lora")


def test_the_table_is_whole_and_names_nothing_twice():
    table = study.everything()
    assert all(a != b for a, b in itertools.combinations(table, 2))
    for shape in study.SHAPES:
        lora = [spec for spec in table if spec["shape"] == shape and spec["method"] == "lora"]
        assert len(lora) >= len(study.RANKS) * len(study.TARGETS)
    assert {spec["build"] for spec in table} == set(study.LADDER)


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(study, "best_device", lambda: "cpu")
    log = RunLog()
    study.study(log)
    assert not log.runs and "needs a CUDA GPU" in capsys.readouterr().out


def test_what_does_not_fit_is_said(capsys, monkeypatch):
    def full(spec, folder):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(study, "best_device", lambda: "cuda")
    monkeypatch.setattr(study, "measure", full)
    # Clearing up after each takes a second.
    two = study.everything()[:2]
    monkeypatch.setattr(study, "everything", lambda: two)
    log = RunLog()
    study.study(log)
    assert not log.runs and "does not fit" in capsys.readouterr().out
