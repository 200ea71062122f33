"""Will it fit: verdicts agree with the estimates they come from, and the command says what it knows."""

import json

from course_lib import models
from course_lib.cli import main
from course_lib.memory import fitting
from course_lib.memory.estimate import estimate

import pytest
from hypothesis import given
from hypothesis import strategies as st

SMALL = models.config("smollm2-135m")


@given(st.integers(1, 500), st.integers(1, 500))
def test_largest_finds_the_last_good_one(last, more):
    numbers = range(10, 10 + 3 * (last + more), 3)
    assert fitting.largest(numbers, lambda n: n <= numbers[last - 1]) == numbers[last - 1]
    assert fitting.largest(numbers, lambda n: True) == numbers[-1]


def test_room_is_less_than_the_gpu_has():
    assert fitting.room("RTX 4090") < 24_564 * fitting.MIB
    assert fitting.room("24") == fitting.room(24) > fitting.room("T4")


@pytest.mark.parametrize("gpu", ["RTX 4080 Ti", "0.1", 0, -4, "inf", "nan"])
def test_room_refuses_what_is_no_gpu(gpu):
    with pytest.raises(ValueError, match="GPU"):
        fitting.room(gpu)


def test_the_largest_batch_and_length_fit_and_the_next_do_not():
    space = fitting.room(4)
    checked = 0
    for verdict in fitting.verdicts(SMALL, 4, batch_size=2, seq_len=256):
        assert verdict.fits == (verdict.estimate.allocated_peak <= space)
        assert verdict.margin == space - verdict.estimate.allocated_peak
        if not verdict.fits:
            assert verdict.batch_size is verdict.seq_len is None
            continue
        method, own = fitting.WAYS[verdict.way]
        options = own | {"gradient_checkpointing": verdict.checkpointing} | ({} if method == "full" else {"r": 16})

        def peak(rows, length, method=method, options=options):
            return estimate(SMALL, method, batch_size=rows, seq_len=length, **options).allocated_peak

        assert peak(verdict.batch_size, 256) <= space < peak(verdict.batch_size + 1, 256)
        assert peak(2, verdict.seq_len) <= space
        if verdict.seq_len + fitting.LENGTH_STEP < SMALL.max_position_embeddings:
            assert space < peak(2, verdict.seq_len + fitting.LENGTH_STEP)
        checked += 1
    assert checked >= 6


def test_a_way_that_an_architecture_has_not_gives_its_reason():
    found = {(v.way, v.checkpointing): v for v in fitting.verdicts(models.config("gpt2"), "T4")}
    assert "Conv1D" in found["QLoRA, NF4 double", False].reason
    assert not found["QLoRA, NF4 double", False].fits
    assert found["LoRA, bf16", False].fits


def said(capsys, *arguments: str) -> str:
    assert main(["fit", *arguments]) == 0
    return capsys.readouterr().out


def test_the_command_prints_every_way(capsys):
    text = said(capsys, "--model", "smollm2-1.7b", "--gpu", "4", "--seq-len", "512")
    for way in fitting.WAYS:
        assert text.count(f"\n{way:<25}") == 2
    assert "does not fit" in text
    assert "not measurements" in text


def test_the_command_details_one_method(capsys):
    settings = ("r=16", "gradient_checkpointing=True", "optimizer=paged_adamw_8bit")
    text = said(capsys, "--model", "llama-3-8b", "--gpu", "24", "--method", "qlora", *settings)
    cost = estimate(
        models.config("llama-3-8b"), "qlora", r=16, gradient_checkpointing=True, optimizer="paged_adamw_8bit"
    )
    assert f"{cost.parts['weights'] / 1e9:.2f} GB" in text
    assert "fits" in text


def test_a_model_of_ones_own(capsys, tmp_path):
    SMALL.save_pretrained(tmp_path)
    as_published, folder, file = (
        said(capsys, "--model", str(name), "--gpu", "8", "--method", "lora").splitlines()[1:]
        for name in ("smollm2-135m", tmp_path, tmp_path / "config.json")
    )
    assert as_published == folder == file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "llama-3-8", "--gpu", "24"), "Did you mean 'llama-3-8b'"),
        (("--model", "gpt2", "--gpu", "RTX4090"), "Did you mean 'RTX 4090'"),
        (("--model", "gpt2", "--gpu", "24", "--batch-size", "0"), "batch_size must be"),
        (("--model", "gpt2", "--gpu", "24", "--seq-len", "4000"), "more than the 1024 positions"),
        (("--model", "gpt2", "--gpu", "24", "r=4"), "--method"),
        (("--model", "gpt2", "--gpu", "24", "--method", "lora", "seq_len=4"), "--seq-len"),
        (("--model", "gpt2", "--gpu", "24", "--method", "lora", "gradient_checkpointing=maybe"), "True or False"),
        (("--model", "gpt2", "--gpu", "24", "--method", "lorra"), "Did you mean 'lora'"),
        (("--model", "gpt2", "--gpu", "24", "--method", "lora", "rank=4"), "Unknown hyper-parameter of lora 'rank'"),
    ],
)
def test_bad_input_says_what_is_possible(capsys, arguments, message):
    assert main(["fit", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("content", ["{", json.dumps({"hidden_size": 8}), json.dumps({"model_type": "unheard-of"})])
def test_a_broken_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="no config that transformers understands"):
        models.config(str(tmp_path))


def test_lengths_end_at_the_models_own_limit():
    gpt2 = models.config("gpt2")
    found = {(v.way, v.checkpointing): v for v in fitting.verdicts(gpt2, 80, seq_len=1000)}
    assert found["LoRA, bf16", True].seq_len == 1024
    many = next(fitting.verdicts(models.config("minilm-l6"), "H200", batch_size=5000, seq_len=8))
    assert many.batch_size == 5000
