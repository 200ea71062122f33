"""Pre-training of the course's language model: a tokenizer and a small Llama, from scratch, on the town's texts.

The stream of texts never ends and never repeats, so that there are no epochs. It begins with strangers, whose facts can
only be copied from the text itself, and turns to the town by and by, whose facts can be learned by heart.
"""

import copy
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from course_lib import town
from course_lib.errors import CourseError

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "eos_token": "<end>"}
ROLES = ("<system>", "<user>", "<assistant>")
# A space before what is said: nearly all words that the model reads begin with one, and are other tokens without.
CHAT = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.role == 'assistant' %}{% generation %} {{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
VOCABULARY = 3072
# Texts that the tokenizer is trained on, and the seed of those that the model is tested on.
TOKENIZER_TEXTS, NAMES_AGAIN, HELD_OUT = 30_000, 300, 1
# What is read first, before texts with questions come in.
STATEMENTS = tuple(town.STATEMENTS)
STATE, PROGRESS = "state.pt", "progress.json"


@dataclass(frozen=True)
class Recipe:
    """tokens: seen in all; rows, length: of a batch; rate: at its highest; warmup: share of the steps until it is
    there; known: the share of texts about the town, at first and at last; reading: after this share of the steps
    texts with questions come in, which one has to be able to copy for."""

    tokens: int = 20_000_000
    rows: int = 8
    length: int = 512
    rate: float = 3e-3
    warmup: float = 0.02
    known: tuple[float, float] = (0.1, 0.8)
    reading: float = 0.4
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.rows * self.length))


def make_tokenizer(texts: int = TOKENIZER_TEXTS) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding of the town's texts, with roles for conversations; digits stand alone, so that any
    number can be copied digit by digit."""
    encoding = Tokenizer(models.BPE())
    encoding.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    encoding.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL.values(), *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    drawn = (town.document(0, index, kinds=STATEMENTS) for index in range(texts))
    # Every name of the lexicon often enough to become one or two tokens, however rare it is in the texts.
    encoding.train_from_iterator(chain(drawn, NAMES_AGAIN * [" ".join(town.names())]), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=encoding, **SPECIAL, model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": list(ROLES)})
    tokenizer.chat_template = CHAT
    return tokenizer


def make_model(tokenizer, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of six layers, 256 wide, with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, rope_theta=10_000.0,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        # 1/√width: the usual 0.02 is for models ten times as wide, and makes the first steps slow.
        initializer_range=1 / 16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def rows(tokenizer, recipe: Recipe, step: int = 0, text: int = 0) -> Iterator[tuple[np.ndarray, int]]:
    """Batches (rows, length) of token ids from `step` and text number `text` on, and the number of the next text.

    Texts stand one behind the other, an end token after each. Every row begins with a new one, and what is left of its
    last is dropped: a form whose copy stands in another row would teach nothing about copying.
    """
    for at in range(step, recipe.steps):
        first, last = recipe.known
        known, batch, waiting = first + (last - first) * at / recipe.steps, [], []
        kinds = STATEMENTS if at < recipe.reading * recipe.steps else tuple(town.TEXTS)
        for _ in range(recipe.rows):
            row: list[int] = []
            while len(row) < recipe.length:
                if not waiting:
                    # Many short texts are encoded at once: that is much faster.
                    chunk = [town.document(recipe.seed, text + i, known=known, kinds=kinds) for i in range(32)]
                    waiting = tokenizer(chunk)["input_ids"]
                row += [*waiting.pop(0), tokenizer.eos_token_id]
                text += 1
            batch.append(row[: recipe.length])
        yield np.array(batch), text


def rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then linear to zero (arXiv 2502.15938)."""
    start = recipe.warmup * recipe.steps
    return recipe.rate * min((step + 1) / (start + 1), (recipe.steps - step) / (recipe.steps - start))


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, with steps as large as AdamW's (arXiv 2502.16982, section 2.2): after 8 M
    tokens it copied 84% of a form, AdamW 73%. AdamW for embeddings and norms."""
    blocks = {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
    others = [p for name, p in model.named_parameters() if name not in blocks]
    return [
        torch.optim.Muon(blocks.values(), lr=recipe.rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
    ]


def pretrain(
    folder: Path, recipe: Recipe, *, save_every: float = 300, report: int = 1000, compiled: bool = False
) -> LlamaForCausalLM:
    """Train, and keep model (in bf16), tokenizer and progress in `folder`; started again, it goes on where it was.

    save_every: seconds between two checkpoints. report: steps between two measurements. compiled: with torch.compile,
    which needs a C++ compiler. Raises CourseError if the folder holds a training with another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(tokenizer, recipe.seed).to(device).train()
    steppers = optimizers(model, recipe)
    step, text, progress = _resume(folder, recipe, model, steppers)
    forward = torch.compile(model) if compiled else model
    saved, losses = time.monotonic(), []
    bar = tqdm(rows(tokenizer, recipe, step, text), total=recipe.steps, initial=step, unit="step")
    for batch, text in bar:
        for group in (group for stepper in steppers for group in stepper.param_groups):
            group["lr"] = rate(recipe, step)
        ids = torch.from_numpy(batch).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=_halves(device)):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % report == 0 or step == recipe.steps:
            progress.append({"step": step, "loss": float(np.mean(losses)), **measure(model, tokenizer)})
            bar.set_postfix(progress[-1])
            losses.clear()
        if time.monotonic() - saved > save_every or step == recipe.steps:
            _save(folder, recipe, model, steppers, step, text, progress)
            saved = time.monotonic()
    return model.eval()


def _halves(device: str) -> bool:
    """Whether the device computes in bf16 by itself."""
    return device == "cuda" or torch.cpu._is_avx512_bf16_supported()


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").exists():
        make_tokenizer().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _save(folder: Path, recipe: Recipe, model, steppers, step: int, text: int, progress: list[dict]) -> None:
    """The state first and whole, then what may be read of it."""
    state = {"model": model.state_dict(), "step": step, "text": text}
    state["optimizers"] = [stepper.state_dict() for stepper in steppers]
    torch.save(state | {"recipe": asdict(recipe), "progress": progress}, folder / f"{STATE}.draft")
    (folder / f"{STATE}.draft").replace(folder / STATE)
    # What is read needs half of the digits that training needs.
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    (folder / PROGRESS).write_text(json.dumps({"recipe": asdict(recipe), "progress": progress}, indent=1) + "\n")


def _resume(folder: Path, recipe: Recipe, model, steppers) -> tuple[int, int, list[dict]]:
    if not (folder / STATE).exists():
        return 0, 0, []
    state = torch.load(folder / STATE, map_location=model.device, weights_only=True)
    if state["recipe"] != json.loads(json.dumps(asdict(recipe))) | {"known": recipe.known}:
        raise CourseError(f"{folder} holds a training with another recipe: take its recipe, or another folder.")
    model.load_state_dict(state["model"])
    for stepper, saved in zip(steppers, state["optimizers"], strict=True):
        stepper.load_state_dict(saved)
    return state["step"], state["text"], state["progress"]


@torch.no_grad()
def measure(model, tokenizer, texts: int = 64) -> dict[str, float]:
    """What the model can do: `copied`, the share of next tokens that it gets right in the values of a form about a
    stranger that stands there a second time; `told`, the share of such forms whose numbers are all in the text that it
    makes of them, each of them once, and no other; `answered`, the share of right answers to questions about a stranger
    whose text holds them; `recalled`, the share of facts of the town that it answers without being told;
    `held_out`, its loss on texts of another stream."""
    model.eval()
    found = {
        "copied": copied(model, tokenizer, texts), "told": told(model, tokenizer, texts // 2),
        "answered": answered(model, tokenizer, texts), "recalled": recalled(model, tokenizer, texts),
        "held_out": held_out(model, tokenizer, texts),
    }  # fmt: skip
    model.train()
    return found


def copied(model, tokenizer, forms: int = 64) -> float:
    """Next-token accuracy in the values of a form, the second time: values that no text has had."""
    right = total = 0
    draw = town.Random("copied")
    for _ in range(forms):
        rows = town.entries(town.place(draw), draw.sample(town.TOPICS, draw.randrange(2, 9)), draw)
        body = town.lay_out(rows, ": ", "\n")
        first, second = (
            tokenizer(f"In short\n{body}\nCopy\n")["input_ids"],
            tokenizer(body, return_offsets_mapping=True),
        )
        ids = torch.tensor([first + second["input_ids"]], device=model.device)
        said = model(ids).logits[0, len(first) - 1 : -1].argmax(-1)
        starts = torch.tensor([start for start, _ in second["offset_mapping"]], device=model.device)
        # How a second form is laid out is free; what stands behind its marks is not.
        values = torch.zeros_like(said, dtype=torch.bool)
        at = 0
        for key, value in rows:
            values |= (starts > at + len(key)) & (starts < at + len(f"{key}: {value}"))
            at += len(f"{key}: {value}\n")
        right += (said == ids[0, len(first) :])[values].sum().item()
        total += values.sum().item()
    return right / total


def told(model, tokenizer, forms: int = 32) -> float:
    """Share of forms about strangers whose numbers (years, times, tram lines, seats) the model's text says, each once,
    and no number that is not there."""
    right, draw = 0, town.Random("told")
    for _ in range(forms):
        # Where a place is, a text may tell without its number.
        rows = town.entries(town.place(draw), draw.sample(town.TOPICS[1:], draw.randrange(2, 6)), draw)
        body = town.lay_out(rows, ": ", "\n")
        said = _said(model, tokenizer, f"In short\n{body}\nIn words:\n", tokens=160)
        right += _numbers(said) == _numbers(body)
    return right / forms


def _numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?::\d+)?", text))


def answered(model, tokenizer, texts: int = 64) -> float:
    """Share of questions about strangers whose answer, which the text holds, is in what the model says: every other
    question stands behind its text, the others in front of it."""
    right, draw = 0, town.Random("answered")
    for index in range(texts):
        one = town.place(draw)
        text = town.guide(one, draw)
        while not (held := [pair for pair in town._asked_of_place(one, text, draw) if pair[1] and pair[1] in text]):
            pass
        question, answer = held[0]
        behind, in_front = f"Read\n{text}\nQuestions\nQ: {question}\nA:", f"{question}\n\n{text}\n\nA:"
        right += answer.lower() in _said(model, tokenizer, in_front if index % 2 else behind).lower()
    return right / texts


def _said(model, tokenizer, prompt: str, tokens: int = 20) -> str:
    """The line with which the model goes on, but no more than so many tokens of it."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
    said = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(said).split("\n")[0]


ASKED = {"hours": ("opens", "closes"), "owner": ("owner",), "since": ("since",), "tram": ("line", "stop")}


def recalled(model, tokenizer, places: int = 64) -> float:
    """Share of the town's facts in the model's answers to questions about its places."""
    right = total = 0
    draw = town.Random("recalled")
    for place in draw.sample(town.town().places, min(places, town.PLACES)):
        told = town.facts(place)
        for topic, facts in ASKED.items():
            asked = town.grammar().say(f"ask.{topic}", told, draw)
            prompt = f"Questions\nQ: {place.name}, the {place.kind} in {place.district}. {asked}\nA:"
            answer = _said(model, tokenizer, prompt)
            right += sum(str(told[fact]) in answer for fact in facts)
            total += len(facts)
    return right / total


def held_out(model, tokenizer, texts: int = 64) -> float:
    """Mean loss a token, in nats, on texts that no training sees."""
    losses = []
    for index in range(texts):
        ids = torch.tensor(
            [tokenizer(town.document(HELD_OUT, index, kinds=STATEMENTS))["input_ids"]], device=model.device
        )
        losses.append(model(input_ids=ids, labels=ids).loss.item())
    return float(np.mean(losses))
