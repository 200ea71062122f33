"""How a task becomes batches, and a model's answers a score: for labelling texts, writing them, and finding them."""

from collections.abc import Iterator, Sequence

from course_lib import models
from course_lib.tasks import SearchTask, Task, WritingTask, docs_search

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer


def by_length(texts: Sequence[Sequence], batch_size: int = 64) -> Iterator[list[int]]:
    """Indices of texts in batches, with others about as long, so that padding stays small."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


class QuietTrainer(Trainer):
    """Trainer prints its logs when its own progress bar is off; ours are in the Run."""

    def log(self, logs, start_time=None):
        logs = logs | {"epoch": self.state.epoch}
        self.state.log_history.append(logs | {"step": self.state.global_step})


class WritingTrainer(QuietTrainer):
    """A Trainer that judges a model by what it writes on the validation split, not by its loss."""

    examples: "Writing"

    def evaluate(self, *args, **kwargs):
        split = self.examples.task.validation
        written = self.examples.answer(self.model, self.eval_dataset)
        metrics = {"eval_accuracy": self.examples.task.metric(written, split)}
        metrics["eval_loss"] = self.examples.loss(self.model, self.eval_dataset)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class RetrievingTrainer(QuietTrainer):
    """A Trainer that judges a model by what it finds in the validation split."""

    examples: "Retrieving"

    def evaluate(self, *args, **kwargs):
        found = self.examples.answer(self.model, self.eval_dataset)
        metrics = {"eval_accuracy": self.examples.score(found, self.examples.task.validation)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Labelling:
    """Texts to the index of a label. A row holds token ids, or a cached sentence vector; and the label."""

    trainer = QuietTrainer
    sampling, clipping = "group_by_length", 1.0

    def __init__(self, tokenizer, task: Task, max_length: int, features: dict[str, torch.Tensor] | None):
        self.tokenizer, self.task, self.max_length, self.features = tokenizer, task, max_length, features

    def rows(self, name: str) -> list[dict]:
        """The rows of a split."""
        split = getattr(self.task, name)
        if self.features is not None:
            return [{"features": v, "labels": y} for v, y in zip(self.features[name], split.labels, strict=True)]
        ids = self.tokenizer(list(split.texts), truncation=True, max_length=self.max_length)["input_ids"]
        return [{"input_ids": i, "labels": y} for i, y in zip(ids, split.labels, strict=True)]

    def collate(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """A batch: padded to its longest text, or stacked vectors."""
        labels = torch.tensor([row["labels"] for row in rows])
        if "features" in rows[0]:
            return {"features": torch.stack([row["features"] for row in rows]), "labels": labels}
        padded = self.tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt")
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"], "labels": labels}

    def compute_metrics(self, predicted) -> dict[str, float]:
        """For the Trainer's own evaluation."""
        return {"accuracy": self.task.metric(predicted.predictions.argmax(-1), predicted.label_ids)}

    def answer(self, model, rows: Sequence[dict], batch_size: int = 64) -> list[int]:
        """The most likely label of each row, in the order of the rows."""
        model.eval()
        found = {}
        with torch.no_grad():
            for chunk in by_length([row.get("input_ids", ()) for row in rows], batch_size):
                batch = self.collate([rows[i] for i in chunk])
                logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
                found |= dict(zip(chunk, logits.argmax(-1).tolist(), strict=True))
        return [found[i] for i in range(len(rows))]

    def score(self, answers: Sequence[int], split) -> float:
        """The task's metric of these answers."""
        return self.task.metric(answers, split.labels)


IGNORED = -100


def chats(tokenizer, prompts: Sequence[str], answers: Sequence[str] | None = None) -> list[str]:
    """Each prompt as what a user says, in the tokenizer's chat template: up to where the assistant's answer begins, or
    with these answers."""
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    if answers is not None:
        turns = [[*said, {"role": "assistant", "content": text}] for said, text in zip(turns, answers, strict=True)]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answers is None)


class Writing:
    """Prompts to texts. A row holds the ids of prompt, text and end token; its labels leave the prompt out.

    train_on_prompt: whether batches for training have labels for the prompt, too.
    """

    trainer = WritingTrainer
    sampling, clipping = "group_by_length", 1.0
    compute_metrics = None

    def __init__(self, tokenizer, task: WritingTask, max_length: int, train_on_prompt: bool = False):
        self.tokenizer, self.task, self.max_length = tokenizer, task, max_length
        self.train_on_prompt = train_on_prompt

    def rows(self, name: str) -> list[dict]:
        """The rows of a split; raises ValueError if one is longer than max_length: cut texts teach to stop anywhere."""
        split = getattr(self.task, name)
        rows = [
            {"input_ids": [*prompt, *text], "labels": [IGNORED] * len(prompt) + text}
            for prompt, text in zip(*self._ids(split), strict=True)
        ]
        longest = max(len(row["input_ids"]) for row in rows)
        if longest > self.max_length:
            raise ValueError(f"A row of {name!r} has {longest} tokens, max_length is {self.max_length}: raise it.")
        return rows

    def _ids(self, split) -> tuple[list[list[int]], list[list[int]]]:
        """Of each row the ids of the prompt, and those of the text and its end."""
        encode, end = self.tokenizer, self.tokenizer.eos_token_id
        if not self.task.chat:
            texts = [[*text, end] for text in encode(list(split.labels))["input_ids"]]
            return encode(list(split.texts))["input_ids"], texts
        prompts = encode(chats(encode, split.texts))["input_ids"]
        whole = encode(chats(encode, split.texts, split.labels))["input_ids"]
        texts = [ids[len(prompt) :] for prompt, ids in zip(prompts, whole, strict=True)]
        # What a template puts behind the end of a turn is not the assistant's.
        return prompts, [text[: text.index(end) + 1] for text in texts]

    def collate(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """A batch for training, padded at its end."""
        return self._padded(rows, "input_ids" if self.train_on_prompt else "labels")

    def _padded(self, rows: Sequence[dict], labels: str) -> dict[str, torch.Tensor]:
        def padded(name: str, filler: int) -> torch.Tensor:
            return pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=filler)

        mask = [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows]
        return {
            "input_ids": padded("input_ids", self.tokenizer.pad_token_id),
            "attention_mask": pad_sequence(mask, batch_first=True),
            "labels": padded(labels, IGNORED),
        }

    @torch.no_grad()
    def loss(self, model, rows: Sequence[dict], batch_size: int = 64) -> float:
        """Mean loss of a token of the texts, end tokens included, in nats."""
        model.eval()
        total = tokens = 0
        for chunk in by_length([row["input_ids"] for row in rows], batch_size):
            batch = self._padded([rows[i] for i in chunk], "labels")
            count = (batch["labels"] != IGNORED).sum().item()
            total += count * model(**{k: v.to(model.device) for k, v in batch.items()}).loss.item()
            tokens += count
        return total / tokens

    def answer(self, model, rows: Sequence[dict]) -> list[str]:
        """What the model writes after the prompt of each row."""
        prompts = [[i for i, y in zip(row["input_ids"], row["labels"], strict=True) if y == IGNORED] for row in rows]
        return models.write(model, self.tokenizer, prompts)

    def score(self, answers: Sequence[str], split) -> float:
        """The task's metric of these texts."""
        return self.task.metric(answers, split)


class Retrieving:
    """Queries and their passages. A row holds the ids of both; the other passages of its batch are the wrong ones."""

    trainer = RetrievingTrainer
    compute_metrics = None
    # Batches of texts of one length would have other wrong passages than a search meets; and clipping would make a loss
    # that adds up several sizes learn more slowly than one that does not.
    sampling, clipping = "random", 0.0

    def __init__(self, tokenizer, task: SearchTask, max_length: int):
        self.tokenizer, self.task, self.max_length = tokenizer, task, max_length

    def rows(self, name: str) -> list[dict]:
        """The rows of a split; `input_ids` are both texts, for what counts tokens."""
        split = getattr(self.task, name)
        queries, passages = (
            self.tokenizer(list(column), truncation=True, max_length=self.max_length)["input_ids"]
            for column in (split.texts, split.labels)
        )
        return [{"query": q, "passage": p, "input_ids": [*q, *p]} for q, p in zip(queries, passages, strict=True)]

    def collate(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """A batch: both sides, each padded to its longest text."""
        batch = {}
        for side in ("query", "passage"):
            padded = self.tokenizer.pad({"input_ids": [row[side] for row in rows]}, return_tensors="pt")
            batch |= {f"{side}_ids": padded["input_ids"], f"{side}_mask": padded["attention_mask"]}
        return batch

    def answer(self, model, rows: Sequence[dict]) -> list[list[int]]:
        """For each query the rank of its passage among those of all rows, at each of DIMENSIONS."""
        sides = [self._vectors(model, [row[side] for row in rows]) for side in ("query", "passage")]
        return docs_search.ranks(*sides).tolist()

    @torch.no_grad()
    def _vectors(self, model, texts: Sequence[list[int]]) -> np.ndarray:
        model.eval()
        found = {}
        for chunk in by_length(texts):
            batch = self.tokenizer.pad({"input_ids": [texts[i] for i in chunk]}, return_tensors="pt").to(model.device)
            vectors = model.pooled(batch["input_ids"], batch["attention_mask"]).float().cpu().numpy()
            found |= dict(zip(chunk, vectors, strict=True))
        return np.stack([found[i] for i in range(len(texts))])

    def score(self, answers: Sequence[Sequence[int]], split) -> float:
        """Mean NDCG@10 at full size."""
        return float(docs_search.ndcg(np.array(answers)[:, 0]).mean())


def examples_of(task, tokenizer, max_length: int, features=None, train_on_prompt: bool = False):
    """The examples of a task of any kind; raises ValueError for prompts that are to be trained on and are none."""
    if isinstance(task, WritingTask):
        return Writing(tokenizer, task, max_length, train_on_prompt)
    if train_on_prompt:
        raise ValueError(f"{task.name} has no prompts: leave train_on_prompt out.")
    if isinstance(task, SearchTask):
        return Retrieving(tokenizer, task, max_length)
    return Labelling(tokenizer, task, max_length, features)
