"""The memory study's parts, on models small enough for any processor."""

from course_lib import models
from course_lib.experiments import qlora_memory as study
from course_lib.memory.estimate import PARTS
from course_lib.memory.fitting import WAYS
from course_lib.methods import METHODS
from course_lib.runs import Run, RunLog

import pytest
import torch
from test_lora_speed import SMALL
from transformers import AutoConfig


@pytest.fixture
def narrow(monkeypatch):
    """Every shape of the study is a narrow Llama on the processor, and a step has few tokens."""
    wide = models._architectures()["llama-3.2-1b"]["config"]
    monkeypatch.setattr(models, "config", lambda name: AutoConfig.for_model(**(wide | SMALL)))
    monkeypatch.setattr(study, "best_device", lambda: "cpu")
    monkeypatch.setattr(study, "WARMUP", 1)
    monkeypatch.setattr(study, "STEPS", 2)


def test_the_table_asks_for_everything_once():
    table = study.everything()
    assert len(table) == len({tuple(spec.items()) for spec in table})
    assert {spec["shape"] for spec in table} == set(study.SHAPES)
    assert {spec["way"] for spec in table} == set(study.MEASURED) <= set(WAYS)
    for shape in study.SHAPES:
        both = {(spec["way"], spec["checkpointing"]) for spec in table if spec["shape"] == shape}
        assert len(both) == 2 * len(study.MEASURED)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", study.MEASURED)
def test_a_measurement(way, checkpointing, narrow):
    spec = study.make_spec("1B", way, checkpointing, 2, 16)
    run = study.measure(spec)
    method, hparams = study.settings(spec)
    assert run.spec == spec and len(run.losses) == 3 and run.extra["fits"]
    assert run.trainable == METHODS[method].count(models.config(""), **hparams)
    assert run.tokens_per_second == pytest.approx(2 * 16 * 2 / sum(run.extra["step_seconds"]))
    for answer in ("estimate", "trace"):
        assert tuple(run.extra[answer]["peak"]) == PARTS
    # Single numbers and rounding weigh much in a model as small as this.
    closed, followed = (sum(run.extra[answer]["peak"].values()) for answer in ("estimate", "trace"))
    assert closed == pytest.approx(followed, rel=0.05)


def test_training_moves_what_it_should(narrow):
    spec = study.make_spec("1B", "QLoRA, NF4 double", False, 2, 16)
    model = study.materialize(study._on_meta(spec), "cpu").train()
    model(**study._batch(spec, "cpu")).loss.backward()
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert adapters and all("lora_" in name for name in adapters)
    # B starts at random here, so that gradients reach A too.
    assert all(p.grad.abs().sum() > 0 for p in adapters.values())


def test_tied_parameters_stay_tied_and_nothing_is_left_on_meta(narrow):
    spec = study.make_spec("1B", "full, bf16", False)
    model = study.materialize(study._on_meta(spec), "cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_what_does_not_fit_is_recorded_as_that(narrow, monkeypatch, tmp_path, capsys):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(study, "materialize", full)
    run = study.measure(study.make_spec("70B", "full, fp32", False, 1, 16))
    assert run.extra["fits"] is False and run.peak_bytes is None and not run.losses
    assert "does not fit" in study._outcome(run)
    assert study.recorded([run]) == [] and study.errors([run]) == {"estimate": [], "trace": []}


def test_errors_are_shares_of_what_was_measured():
    extra = {"fits": True, "estimate": {"peak": {"weights": 90, "workspace": 0}}, "trace": {"peak": {"weights": 105}}}
    run = Run(
        spec={}, losses=[1.0], trainable=1, seconds=1.0, tokens_per_second=1.0, predicted_bytes={}, peak_bytes=100,
        precision="bf16", extra=extra,
    )  # fmt: skip
    assert study.errors([run]) == {"estimate": [pytest.approx(-0.1)], "trace": [pytest.approx(0.05)]}


def test_without_a_gpu_nothing_is_recorded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "best_device", lambda: "cpu")
    study.study(RunLog(tmp_path / "cpu.json", None))
    assert "needs a CUDA GPU" in capsys.readouterr().out
    assert not (tmp_path / "cpu.json").exists()
