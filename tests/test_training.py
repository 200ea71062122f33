"""`fit` moves what the method says and nothing else, and an interruption changes nothing."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from course_lib import models, training
from course_lib.errors import CourseError
from course_lib.methods import METHODS
from course_lib.methods.shapes import block
from course_lib.tasks import Split, Task
from course_lib.training import Recipe

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoTokenizer

pytestmark = pytest.mark.usefixtures("on_the_cpu")
WORDS = (("good", "fine", "lovely", "warm"), ("bad", "cold", "awful", "dull"))


def split(start: int, n: int) -> Split:
    """n short texts whose label is told by their first word; they differ in length."""
    texts = tuple(f"{WORDS[i % 2][i // 2 % 4]} soup" + " and bread" * (i % 3) for i in range(start, start + n))
    return Split(texts, tuple(i % 2 for i in range(start, start + n)))


TASK = Task("tiny", ("good", "bad"), split(0, 24), split(24, 8), split(32, 9))


def small(head: str = "linear") -> tuple[models.Classifier, object]:
    """A network of two narrow blocks with random weights, always the same, and the encoder's tokenizer."""
    folder = models.encoder_folder()
    config = AutoConfig.from_pretrained(
        folder, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    config.add_pooling_layer = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.Classifier(AutoModel.from_config(config, add_pooling_layer=False), len(TASK.labels), head)
    return model, AutoTokenizer.from_pretrained(folder)


def fit(model, tokenizer, method: str = "full", task: Task = TASK, **changes):
    recipe = {"learning_rate": 3e-3, "epochs": 3, "batch_size": 4, "precision": "fp32", "progress": False}
    return training.fit(model, tokenizer, task, method, **recipe | changes)


def copied(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def interrupted(model, tokenizer, folder: Path, epoch: int, **changes) -> None:
    """fit() with Ctrl-C in the middle of an epoch (the first is 0)."""

    def stop(self, args, state, control, **_):
        if state.epoch > epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Clock, "on_step_end", stop)
        fit(model, tokenizer, folder=folder, **changes)


@pytest.fixture(scope="module")
def full():
    """A finished full fine-tuning: the weights before it, the model, its tokenizer and the run."""
    model, tokenizer = small()
    before = copied(model)
    return before, model, tokenizer, fit(model, tokenizer)


def test_full_moves_everything(full):
    before, model, _, _ = full
    assert moved(model, before) == set(before)


def test_full_lowers_the_loss():
    run = fit(*small(), epochs=6)
    assert run.losses[-1] < 0.8 * run.losses[0]
    assert run.train_accuracy > 0.8


def test_run_says_what_was_trained(full):
    _, model, _, run = full
    total = sum(p.numel() for p in model.parameters())
    assert run.spec == {"task": "tiny", "method": "full", "learning_rate": 3e-3, "seed": 0}
    assert len(run.losses) == len(run.validation) == 3
    assert run.trainable == total
    assert run.predicted_bytes == {part: run.counted_bytes[part] for part in run.predicted_bytes}
    assert run.counted_bytes["activations"] > 0
    assert run.seconds > 0 and run.tokens_per_second > 0
    assert (run.precision, run.peak_bytes is None, run.resumed) == ("fp32", not torch.cuda.is_available(), False)


def test_predictions_are_in_the_order_of_the_test_split(full):
    _, model, tokenizer, run = full
    assert run.predictions == models.predict(model, tokenizer, TASK.test.texts)
    assert run.accuracy == TASK.metric(run.predictions, TASK.test.labels)


def test_same_seed_same_run(full):
    _, model, _, run = full
    other, tokenizer = small()
    again = fit(other, tokenizer)
    assert (again.losses, again.validation, again.predictions) == (run.losses, run.validation, run.predictions)
    assert not moved(other, copied(model))


def test_other_seed_other_run(full):
    model, tokenizer = small()
    assert fit(model, tokenizer, seed=1).losses != full[3].losses


def test_best_epoch_on_validation_is_kept():
    # A head that is right on validation and wrong on the training texts: learning can only spoil it.
    opposite = Split(TASK.validation.texts, tuple(1 - label for label in TASK.validation.labels))
    task = replace(TASK, validation=opposite)
    signs = {name: 1.0 - 2 * torch.tensor(getattr(TASK, name).labels) for name in ("train", "validation", "test")}
    vectors = {name: sign.unsqueeze(1).expand(-1, 32) for name, sign in signs.items()}
    model, tokenizer = small()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-0.1], [0.1]]).expand(2, 32))
    rate = {"learning_rate": 0.01, "schedule": "constant", "warmup": 0}
    run = fit(model, tokenizer, "feature_based", task, features=vectors, **rate)
    assert run.validation == [1.0, 0.0, 0.0]
    assert model(features=vectors["validation"]).logits.argmax(-1).tolist() == list(opposite.labels)


@pytest.mark.parametrize("head", models.HEADS)
def test_cached_features_change_only_the_head(head):
    model, tokenizer = small(head)
    before = copied(model)
    vectors = training.features(model, tokenizer, TASK)
    run = fit(model, tokenizer, "feature_based", features=vectors)
    changed = moved(model, before)
    assert changed == {name for name in before if name.startswith("head.")}
    assert run.trainable == sum(before[name].numel() for name in changed)
    assert run.losses[-1] < run.losses[0]
    assert run.predictions == models.predict(model, tokenizer, TASK.test.texts)


def test_features_are_the_vectors_of_every_split():
    model, tokenizer = small()
    vectors = training.features(model, tokenizer, TASK)
    assert {name: tuple(v.shape) for name, v in vectors.items()} == {
        "train": (24, 32),
        "validation": (8, 32),
        "test": (9, 32),
    }
    assert torch.allclose(vectors["test"], models.embed(model, tokenizer, TASK.test.texts), atol=1e-6)


@pytest.mark.parametrize("method", ["full", "last_layers"])
def test_cached_features_need_a_frozen_encoder(method):
    model, tokenizer = small()
    with pytest.raises(ValueError, match=f"need a frozen encoder, and '{method}' trains it"):
        fit(model, tokenizer, method, features={})


@pytest.mark.parametrize("num_layers", [1, 2])
def test_last_layers_change_exactly_what_is_trainable(num_layers):
    model, tokenizer = small()
    before = copied(model)
    run = fit(model, tokenizer, "last_layers", hparams={"num_layers": num_layers})
    wanted = {n for n in before if n.startswith("head.") or (block(n) is not None and block(n) >= 2 - num_layers)}
    assert moved(model, before) == wanted == {n for n, p in model.named_parameters() if p.requires_grad}
    assert run.trainable == sum(before[name].numel() for name in wanted)


def test_checkpoints_hold_no_frozen_weights(tmp_path):
    from safetensors.torch import load_file

    model, tokenizer = small()
    fit(model, tokenizer, "feature_based", folder=tmp_path, epochs=1)
    (saved,) = tmp_path.glob("checkpoint-*/model.safetensors")
    assert set(load_file(saved)) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("method", "changes"),
    [("full", {}), ("last_layers", {"hparams": {"num_layers": 1}}), ("full", {"gradual_unfreezing": True})],
)
def test_interruption_changes_nothing(method, changes, tmp_path):
    whole, tokenizer = small()
    wanted = fit(whole, tokenizer, method, **changes)
    interrupted(small()[0], tokenizer, tmp_path, epoch=1, method=method, **changes)
    model, _ = small()
    run = fit(model, tokenizer, method, folder=tmp_path, **changes)
    assert run.resumed
    assert not moved(model, copied(whole))
    assert (run.predictions, run.validation, run.losses) == (wanted.predictions, wanted.validation, wanted.losses)
    assert run.seconds > 0


def test_interruption_in_the_first_epoch_starts_anew(tmp_path, full):
    tokenizer = full[2]
    interrupted(small()[0], tokenizer, tmp_path, epoch=0)
    model, _ = small()
    run = fit(model, tokenizer, folder=tmp_path)
    assert not run.resumed
    assert not moved(model, copied(full[1]))


def test_finished_folder_gives_the_same_result(tmp_path, full):
    tokenizer = full[2]
    fit(small()[0], tokenizer, folder=tmp_path)
    model, _ = small()
    run = fit(model, tokenizer, folder=tmp_path)
    assert run.resumed
    assert (run.predictions, run.validation) == (full[3].predictions, full[3].validation)
    assert not moved(model, copied(full[1]))


def test_half_written_checkpoint_is_passed_over(tmp_path, full):
    tokenizer = full[2]
    interrupted(small()[0], tokenizer, tmp_path, epoch=1)
    (last,) = tmp_path.glob("checkpoint-*")
    torn = tmp_path / "checkpoint-12"
    shutil.copytree(last, torn)
    (torn / "trainer_state.json").unlink()
    model, _ = small()
    fit(model, tokenizer, folder=tmp_path)
    assert not moved(model, copied(full[1]))


def test_early_stopping_stops():
    model, tokenizer = small()
    run = fit(model, tokenizer, learning_rate=1e-9, epochs=10, patience=2)
    assert len(run.validation) == len(run.losses) == 3
    assert len(set(run.validation)) == 1


def test_early_stopping_counts_on_after_an_interruption(tmp_path):
    recipe = {"learning_rate": 1e-9, "epochs": 10, "patience": 2}
    tokenizer = small()[1]
    interrupted(small()[0], tokenizer, tmp_path, epoch=2, **recipe)
    assert len(fit(small()[0], tokenizer, folder=tmp_path, **recipe).validation) == 3


def test_gradual_unfreezing_begins_with_the_head(tmp_path):
    from safetensors.torch import load_file

    model, tokenizer = small()
    before = copied(model)
    interrupted(model, tokenizer, tmp_path, epoch=1, gradual_unfreezing=True)
    (saved,) = tmp_path.glob("checkpoint-*/model.safetensors")
    after = load_file(saved)
    assert {n for n, p in before.items() if not torch.equal(p, after[n])} == {"head.weight", "head.bias"}


@given(epochs=st.integers(2, 12))
def test_gradual_unfreezing_goes_down_to_everything(epochs):
    model = models.Classifier(models.skeleton("minilm-l6"), 2)
    callback = training.GradualUnfreezing(model, epochs)
    sizes = []
    for epoch in range(epochs):
        callback.on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None)
        sizes.append(sum(p.numel() for p in model.encoder.parameters() if p.requires_grad))
        depths = {block(name) for name, p in model.encoder.named_parameters() if p.requires_grad} - {None}
        assert depths == set(range(6 - len(depths), 6))
    assert sizes[0] == 0 and sizes == sorted(sizes)
    assert sizes[-1] == METHODS["full"].count(model.config)


def test_layer_decay_slows_the_lower_blocks():
    model, _ = small()
    groups = training._groups(model, "full", Recipe(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1))
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        index = block(name)
        depth = 0 if name.startswith("head.") else 2 if index is None else 1 - index
        assert rates[id(p)] == (0.5**depth, 0.1 if p.ndim > 1 else 0.0)


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_every_optimizer_trains(optimizer):
    model, tokenizer = small()
    before = copied(model)
    fit(model, tokenizer, "feature_based", optimizer=optimizer, epochs=1)
    assert moved(model, before) == {"head.weight", "head.bias"}


def test_half_precision_is_said():
    model, tokenizer = small()
    run = fit(model, tokenizer, precision="bf16", epochs=1)
    assert run.precision == "bf16 autocast"
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize(
    "field", ["learning_rate", "epochs", "batch_size", "gradient_accumulation", "max_length", "layer_decay"]
)
def test_recipe_names_a_number_that_is_too_small(field, value):
    with pytest.raises(ValueError, match=f"{field} must be greater than 0; got {value}"):
        Recipe(**{"learning_rate": 1e-3, field: value})


@pytest.mark.parametrize(("field", "value", "near"), [("precision", "fp16", "bf16"), ("optimizer", "adam", "adamw")])
def test_recipe_names_an_unknown_choice(field, value, near):
    with pytest.raises(ValueError, match=rf"Unknown {field} '{value}'\. Did you mean .*'{near}'"):
        Recipe(learning_rate=1e-3, **{field: value})


def test_unknown_method():
    model, tokenizer = small()
    with pytest.raises(ValueError, match="Did you mean 'last_layers'"):
        fit(model, tokenizer, "last_layer")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), r"batch_size=4\. Halve batch_size and double"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full.*Free some space"),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_exhausted_machine_gives_advice(error, advice, kept, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(training, "_train", fail)
    with pytest.raises(CourseError, match=advice):
        fit(*small(), folder=tmp_path if kept else None)


def test_other_errors_of_the_system_stay_what_they_are(monkeypatch):
    def fail(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(training, "_train", fail)
    with pytest.raises(PermissionError):
        fit(*small())


LAUNCHED = """
import json
from test_training import fit, small

run = fit(*small())
print(json.dumps({"predictions": run.predictions, "losses": run.losses}))
"""


def test_fit_runs_under_accelerate_launch(tmp_path, full):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", script]
    here = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, env=os.environ | here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["predictions"] == full[3].predictions
    assert found["losses"] == pytest.approx(full[3].losses, rel=1e-4)


def test_several_processes_need_a_folder_that_they_share(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="folder"):
        fit(*small())


@pytest.mark.parametrize(
    "settings",
    [{"warmup": -0.1}, {"weight_decay": -1.0}, {"patience": 0}, {"gradual_unfreezing": True, "epochs": 1}],
    ids=lambda settings: next(iter(settings)),
)
def test_recipe_refuses_what_makes_no_sense(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Recipe(learning_rate=1e-3, **settings)
