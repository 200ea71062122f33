"""Language models are trained on what follows the prompt alone, and write the same in any batch."""

from course_lib import models, tasks, training
from course_lib.errors import CourseError
from course_lib.methods import METHODS
from course_lib.models import LanguageModel
from course_lib.tasks import Pairs, WritingTask
from course_lib.training.examples import IGNORED, examples_of

import pytest
import torch
from tiny import tiny

pytestmark = pytest.mark.usefixtures("on_the_cpu")
STEERED = {
    "full": {}, "lora": {"r": 2}, "prefix_tuning": {"num_virtual_tokens": 3}, "p_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 3}, "multitask_prompt_tuning": {"num_virtual_tokens": 3},
}  # fmt: skip


def small(tokenizer, seed: int = 0) -> LanguageModel:
    """A narrow Llama with random weights; input and output embeddings are one."""
    return LanguageModel(tiny("llama-3.2-1b", seed, vocab_size=len(tokenizer), max_position_embeddings=256))


def pairs(n: int) -> Pairs:
    texts = ("open", "closed today", "open until 7:30")
    return Pairs(tuple(f"number {i}\n" for i in range(n)), tuple(texts[i % 3] for i in range(n)))


def exact(written, split) -> float:
    return sum(map(str.__eq__, written, split.labels)) / len(split)


TASK = WritingTask("tiny", pairs(6), pairs(3), pairs(4), exact, lambda split: ["open"] * len(split))


def fit(model, tokenizer, method="full", **settings):
    settings = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 3, "progress": False} | settings
    return training.fit(model, tokenizer, TASK, method, **settings)


def test_rows_are_trained_on_text_and_end_alone(tokenizer):
    examples = examples_of(TASK, tokenizer, 64)
    for row, prompt, text in zip(examples.rows("train"), TASK.train.texts, TASK.train.labels, strict=True):
        trained = [y for y in row["labels"] if y != IGNORED]
        assert tokenizer.decode(row["input_ids"][: -len(trained)]) == prompt
        assert tokenizer.decode(trained[:-1]) == text and trained[-1] == tokenizer.eos_token_id
        assert row["input_ids"][-len(trained) :] == trained


def test_no_row_is_cut(tokenizer):
    with pytest.raises(ValueError, match=r"A row of 'train' has .* max_length is 4: raise it"):
        examples_of(TASK, tokenizer, 4).rows("train")


def test_padding_is_neither_seen_nor_trained(tokenizer):
    examples, model = examples_of(TASK, tokenizer, 64), small(tokenizer).eval()
    rows = examples.rows("train")
    batch = examples.collate(rows)
    assert ((batch["labels"] == IGNORED) | (batch["labels"] == batch["input_ids"])).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    counts = [sum(y != IGNORED for y in row["labels"]) for row in rows]
    alone = [model(**examples.collate([row])).loss.item() for row in rows]
    mean = sum(n * loss for n, loss in zip(counts, alone, strict=True)) / sum(counts)
    assert model(**batch).loss.item() == pytest.approx(mean, rel=1e-5)


def test_prompts_are_trained_on_when_asked_for(tokenizer):
    plain, whole = (examples_of(TASK, tokenizer, 64, train_on_prompt=on) for on in (False, True))
    batch = whole.collate(whole.rows("train"))
    seen = batch["attention_mask"] == 1
    assert (batch["labels"] == torch.where(seen, batch["input_ids"], IGNORED)).all()
    model, rows = small(tokenizer), plain.rows("validation")
    assert whole.loss(model, rows) == plain.loss(model, rows), "what is judged is the text alone"
    assert whole.answer(model, rows) == plain.answer(model, rows)
    learned, other = small(tokenizer), small(tokenizer)
    fit(learned, tokenizer), fit(other, tokenizer, train_on_prompt=True)
    assert not torch.equal(learned.lm.lm_head.weight, other.lm.lm_head.weight)


def test_the_loss_is_that_of_all_tokens_of_the_texts(tokenizer):
    examples, model = examples_of(TASK, tokenizer, 64), small(tokenizer).eval()
    rows = examples.rows("train")
    at_once = model(**examples.collate(rows)).loss.item()
    assert examples.loss(model, rows, batch_size=2) == pytest.approx(at_once, rel=1e-5)
    run = fit(small(tokenizer), tokenizer, epochs=3)
    assert len(run.validation_losses) == 3 and min(run.validation_losses) > 0


CHAT = WritingTask("chat", pairs(6), pairs(3), pairs(4), exact, lambda split: ["open"] * len(split), chat=True)


def test_in_a_chat_the_template_says_what_is_trained(tokenizer):
    for row, prompt, text in zip(
        examples_of(CHAT, tokenizer, 64).rows("train"), CHAT.train.texts, CHAT.train.labels, strict=True
    ):
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        wanted = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        assert row["input_ids"] == wanted["input_ids"]
        assert [y != IGNORED for y in row["labels"]] == [bool(on) for on in wanted["assistant_masks"]]


@pytest.mark.parametrize("method", STEERED)
def test_what_is_written_depends_on_no_neighbour(method, tokenizer):
    model = small(tokenizer)
    torch.manual_seed(1)
    model.lm = METHODS[method].apply(model.lm, **STEERED[method]).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "prefix_task" in name:
            torch.nn.init.normal_(parameter)
        elif "proj" in name:
            # Else it would echo its last token, wherever that stood.
            parameter.data.mul_(8)
    prompts = ["number 1\n", "a much longer prompt about an inn near the river\n", "Q: what is it?\nA:"]
    together = models.write(model, tokenizer, prompts, max_new_tokens=12)
    assert together == [models.write(model, tokenizer, [prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert len(set(together)) == len(prompts)
    for prompt, text in zip(prompts, together, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
        said = model.lm.generate(**asked, pad_token_id=0, eos_token_id=tokenizer.eos_token_id)[0, ids.shape[1] :]
        assert tokenizer.decode(said, skip_special_tokens=True) == text


def test_writing_ends_at_the_end_token(tokenizer):
    model = small(tokenizer)
    with torch.no_grad():
        model.lm.lm_head.weight[tokenizer.eos_token_id] = 0
    run = fit(model, tokenizer, learning_rate=1e-2, epochs=40)
    assert run.accuracy == run.train_accuracy == 1 and run.predictions == list(TASK.test.labels)
    assert run.losses[-1] < 0.1 * run.losses[0] and run.best_validation == 1


@pytest.mark.parametrize(
    ("prompts", "tokens", "said"),
    [
        ([], 5, "No prompts"), (["The inn", ""], 5, "1 to 251 tokens"), (["inn " * 300], 5, "1 to 251 tokens"),
        (["The inn"], 0, "max_new_tokens must be 1"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_continued(prompts, tokens, said, tokenizer):
    with pytest.raises(ValueError, match=said):
        models.write(small(tokenizer), tokenizer, prompts, max_new_tokens=tokens)


@pytest.mark.parametrize("settings", [{"layer_decay": 0.5}, {"gradual_unfreezing": True}])
def test_what_is_for_classifiers_alone(settings, tokenizer):
    with pytest.raises(ValueError, match="are for classifiers"):
        fit(small(tokenizer), tokenizer, **settings)


def test_the_last_weights_are_kept_if_asked_for(tokenizer):
    run = fit(small(tokenizer), tokenizer, epochs=3, keep_last=True)
    assert run.kept_last and run.best_validation == run.validation[-1]
    with pytest.raises(ValueError, match="choose one"):
        fit(small(tokenizer), tokenizer, patience=1, keep_last=True)


def test_patience_counts(tokenizer):
    run = fit(small(tokenizer), tokenizer, learning_rate=1e-9, epochs=6, patience=1)
    assert len(run.validation) == 2


@pytest.mark.parametrize("method", STEERED)
def test_fit_trains_what_is_counted(method, tokenizer):
    model = small(tokenizer)
    before = {name: p.detach().clone() for name, p in model.lm.named_parameters()}
    run = fit(model, tokenizer, method, hparams=STEERED[method])
    config = model.lm.config if method == "full" else model.lm.get_base_model().config
    assert run.trainable == METHODS[method].count(config, **STEERED[method])
    base = model.lm if method == "full" else model.lm.get_base_model()
    moved = [
        name for name, p in base.named_parameters() if "lora" not in name
        and not torch.equal(p, before[name.replace(".base_layer", "")])
    ]  # fmt: skip
    assert bool(moved) == (method == "full")


@pytest.mark.parametrize("method", ["full", "prefix_tuning", "lora"])
def test_interruption_changes_nothing(method, tokenizer, tmp_path):
    def stop(self, args, state, control, **_):
        if state.epoch > 1:
            raise KeyboardInterrupt

    whole = fit(small(tokenizer), tokenizer, method, hparams=STEERED[method])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Clock, "on_step_end", stop)
        fit(small(tokenizer), tokenizer, method, hparams=STEERED[method], folder=tmp_path)
    again = fit(small(tokenizer), tokenizer, method, hparams=STEERED[method], folder=tmp_path)
    assert again.resumed and again.losses == whole.losses and again.predictions == whole.predictions


def test_nothing_to_train_is_said(tokenizer):
    with pytest.raises(ValueError, match="'feature_based' trains nothing"):
        fit(small(tokenizer), tokenizer, "feature_based")


def test_hub_model_loads_in_the_same_place(tokenizer, tmp_path, monkeypatch):
    small(tokenizer).lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(models, "LM_HUB", (str(tmp_path), None))
    monkeypatch.setenv("COURSE_MODELS", "hub")
    model, other = models.lm()
    assert model.config.hidden_size == 64 and len(other) == len(tokenizer)
    assert len(models.write(model, other, ["The "], max_new_tokens=3)) == 1


def test_missing_model_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_MODELS", raising=False)
    monkeypatch.setattr(models, "LM_FOLDER", tmp_path)
    with pytest.raises(CourseError, match="git checkout data/models"):
        models.lm()


def test_baseline_is_the_dummys():
    assert TASK.baseline() == 0.5
    assert "table_to_text" in tasks.TASKS
