"""Pre-training: names are short, batches go on where they were, an interrupted training loses nothing."""

import itertools
from types import SimpleNamespace

from course_lib import pretrain, town
from course_lib.cli import main
from course_lib.errors import CourseError

import numpy as np
import pytest
import torch

RECIPE = pretrain.Recipe(tokens=6 * 2 * 32, rows=2, length=32)


@pytest.fixture(scope="module")
def tokenizer():
    return pretrain.make_tokenizer(2000)


def test_names_are_one_or_two_tokens_and_digits_stand_alone(tokenizer):
    assert len(tokenizer) == pretrain.VOCABULARY
    assert max(len(tokenizer(f" {name}")["input_ids"]) for name in town.names()) <= 2
    assert len(tokenizer("1937")["input_ids"]) == 4


def test_texts_survive_being_encoded(tokenizer):
    for index in range(50):
        text = town.document(7, index)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_chat_template_marks_what_the_assistant_says(tokenizer):
    talk = [{"role": "user", "content": "Is it open?"}, {"role": "assistant", "content": "Yes."}]
    encoded = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(marked) == " Yes.<end>"


def test_batches_go_on_where_they_were(tokenizer):
    whole = list(pretrain.rows(tokenizer, RECIPE))
    assert len(whole) == RECIPE.steps == 6
    assert all(batch.shape == (2, 32) for batch, _ in whole)
    rest = list(pretrain.rows(tokenizer, RECIPE, step=2, text=whole[1][1]))
    for (batch, text), (again, same) in zip(whole[2:], rest, strict=True):
        assert np.array_equal(batch, again) and text == same


def test_the_rate_rises_and_falls():
    recipe = pretrain.Recipe(tokens=100 * 8 * 512)
    rates = [pretrain.rate(recipe, step) for step in range(recipe.steps)]
    assert max(rates) == pytest.approx(recipe.rate, rel=0.01)
    assert rates[0] < rates[1] and rates[-1] == pytest.approx(recipe.rate / 100, rel=0.05)


@pytest.fixture
def quick(monkeypatch, tokenizer):
    """No measurements, and a small tokenizer."""
    monkeypatch.setattr(pretrain, "measure", lambda *_: {})
    monkeypatch.setattr(pretrain, "make_tokenizer", lambda: tokenizer)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_an_interrupted_training_loses_nothing(quick, tmp_path, monkeypatch):
    whole = pretrain.pretrain(tmp_path / "whole", RECIPE)
    real, left = pretrain.rows, itertools.count()

    def broken(*arguments):
        for batch in real(*arguments):
            if next(left) == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pretrain, "rows", broken)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(tmp_path / "broken", RECIPE, save_every=0)
    resumed = pretrain.pretrain(tmp_path / "broken", RECIPE)
    assert torch.equal(weights(whole), weights(resumed))
    assert (tmp_path / "broken" / "model.safetensors").stat().st_size < 22e6


def test_another_recipe_needs_another_folder(quick, tmp_path):
    pretrain.pretrain(tmp_path, RECIPE)
    with pytest.raises(CourseError, match="another recipe"):
        pretrain.pretrain(tmp_path, pretrain.Recipe(tokens=RECIPE.tokens, rows=4, length=32))


def test_the_command(quick, tmp_path, monkeypatch, capsys):
    assert main(["pretrain", "--out", str(tmp_path), "--tokens", "1"]) == 0
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "progress.json").exists()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "rows", stopped)
    assert main(["pretrain", "--out", str(tmp_path / "new"), "--tokens", "1"]) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().out


class Oracle:
    """Says the next token of whatever it reads."""

    device = torch.device("cpu")

    def __call__(self, ids):
        return SimpleNamespace(logits=torch.nn.functional.one_hot(ids.roll(-1, 1), pretrain.VOCABULARY).float())


def test_copying_is_counted_in_the_second_copy(tokenizer):
    assert pretrain.copied(Oracle(), tokenizer, forms=5) == 1.0
    model = pretrain.make_model(tokenizer).eval()
    assert pretrain.copied(model, tokenizer, forms=3) < 0.2


def test_questions_come_in_when_copying_is_there(tokenizer, monkeypatch):
    asked = []
    real = town.document
    monkeypatch.setattr(town, "document", lambda *args, kinds, **more: asked.append(kinds) or real(*args, **more))
    recipe = pretrain.Recipe(tokens=100 * 2 * 512, rows=2, reading=0.5)
    list(pretrain.rows(tokenizer, recipe))
    assert set(asked) == {pretrain.STATEMENTS, tuple(town.TEXTS)} and "reading" not in pretrain.STATEMENTS
    assert asked.index(tuple(town.TEXTS)) / len(asked) == pytest.approx(0.5, abs=0.1)


class Reading:
    """Goes on with what a function makes of the prompt."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, says):
        self.tokenizer, self.says = tokenizer, says

    def generate(self, ids, **_):
        said = self.tokenizer(self.says(self.tokenizer.decode(ids[0])))["input_ids"]
        return torch.cat([ids, torch.tensor([said])], 1)


def test_telling_is_saying_every_number_once(tokenizer):
    def numbers(prompt):
        return pretrain._numbers(prompt)

    told = {
        "all": lambda prompt: " " + " and ".join(numbers(prompt)),
        "one missing": lambda prompt: " " + " and ".join(numbers(prompt)[1:]),
        "one twice": lambda prompt: " " + " and ".join([*numbers(prompt), *numbers(prompt)[:1]]),
        "one invented": lambda prompt: " " + " and ".join([*numbers(prompt), "1815"]),
    }
    found = {how: pretrain.told(Reading(tokenizer, says), tokenizer, forms=10) for how, says in told.items()}
    assert found.pop("all") == 1.0 and found.pop("one invented") == 0.0
    # A few forms have no numbers, of which none can be missing.
    assert max(found.values()) < 0.3


def test_answers_are_counted_where_the_text_holds_them(tokenizer):
    everything = Reading(tokenizer, lambda prompt: " " + max(prompt.split("\n"), key=len))
    assert pretrain.answered(everything, tokenizer, texts=10) == 1.0
    assert pretrain.answered(Reading(tokenizer, lambda prompt: "\n" + prompt), tokenizer, texts=10) == 0.0


def test_recall_counts_facts(tokenizer):
    class Knowing:
        device = torch.device("cpu")

        def generate(self, ids, **_):
            asked = tokenizer.decode(ids[0])
            place = next(p for p in town.town().places if f"Q: {p.name}, the {p.kind} in {p.district}." in asked)
            told = " ".join(str(v) for v in (place.opens, place.closes, place.owner.name, place.line, place.stop))
            return torch.cat([ids, torch.tensor([tokenizer(f" {told}\nQ: {place.since}")["input_ids"]])], 1)

    # All but the year, which is not in the answer's own line.
    assert pretrain.recalled(Knowing(), tokenizer, places=8) == pytest.approx(5 / 6, abs=0.05)
