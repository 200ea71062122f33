"""The shipped language model does what its model card says."""

import json

from course_lib import models, pretrain, town

import pytest

MEGABYTE = 2**20

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lm():
    model, tokenizer = models.lm()
    return model.lm.eval(), tokenizer


@pytest.fixture(scope="module")
def last():
    """What was measured at the end of the training."""
    return json.loads((models.LM_FOLDER / pretrain.PROGRESS).read_text())["progress"][-1]


def test_it_is_small_enough_to_ship():
    files = [file for file in models.LM_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 16 * MEGABYTE
    assert not (models.LM_FOLDER / pretrain.STATE).exists()


def test_it_was_made_by_the_recipe(last):
    recipe = json.loads((models.LM_FOLDER / pretrain.PROGRESS).read_text())["recipe"]
    assert recipe | {"known": tuple(recipe["known"])} == vars(pretrain.Recipe())
    assert last["step"] == pretrain.Recipe().steps


def test_it_is_the_model_of_the_recipe(lm):
    model, tokenizer = lm
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in pretrain.make_model(tokenizer).named_parameters()
    }
    assert 4e6 < sum(p.numel() for p in model.parameters()) < 8e6


def test_it_copies_what_it_reads(lm, last):
    found = pretrain.copied(*lm, forms=32)
    assert found >= 0.98 and found == pytest.approx(last["copied"], abs=0.02)


def test_it_tells_all_of_a_form_and_nothing_else(lm, last):
    found = pretrain.told(*lm)
    assert found >= 0.9 and found == pytest.approx(last["told"], abs=0.07)


def test_it_knows_the_town(lm, last):
    found = pretrain.recalled(*lm, places=32)
    assert found >= 0.80 and found == pytest.approx(last["recalled"], abs=0.06)


def test_it_answers_what_a_text_holds(lm, last):
    found = pretrain.answered(*lm)
    assert found >= 0.85 and found == pytest.approx(last["answered"], abs=0.05)


def test_it_predicts_texts_that_it_has_not_seen(lm, last):
    assert pretrain.held_out(*lm) == pytest.approx(last["held_out"], abs=0.02)


def test_it_writes_what_its_texts_say(lm):
    """A text goes on in words of the lexicon, and comes to an end."""
    model, tokenizer = lm
    written = models.write(models.LanguageModel(model), tokenizer, ["Notes on", "Dear"], max_new_tokens=400)
    known = set(" ".join(town.document(0, index) for index in range(3000)).split())
    for text in written:
        assert len(text.split()) > 10
        assert sum(word in known for word in text.split()) > 0.9 * len(text.split())


def test_the_chat_template_marks_what_is_to_be_learned(lm):
    _, tokenizer = lm
    talk = [{"role": "user", "content": "Is it open?"}, {"role": "assistant", "content": "Yes."}]
    encoded = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(marked) == " Yes.<end>"
