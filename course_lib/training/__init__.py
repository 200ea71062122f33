"""`fit`: one model, one task, one method → one Run, on transformers.Trainer."""

import errno
import math
import os
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from course_lib import models
from course_lib.errors import CourseError, unknown
from course_lib.memory.estimate import predict
from course_lib.memory.measure import count_step
from course_lib.methods import METHODS
from course_lib.methods.shapes import block, blocks
from course_lib.runs import Run
from course_lib.session import best_device, quiet
from course_lib.tasks import SearchTask, Split, Task, WritingTask
from course_lib.training.callbacks import AfterStep, Clock, GradualUnfreezing, Progress
from course_lib.training.examples import examples_of

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

PRECISIONS = ("auto", "fp32", "bf16")
# The name in `fit` → transformers' name, and what TrainingArguments pass on to it.
OPTIMIZERS = {
    "adamw": ("adamw_torch_fused", None),
    "sgd": ("sgd", None),
    "sgd_momentum": ("sgd", "momentum=0.9"),
    "rmsprop": ("rmsprop", None),
}


@dataclass(frozen=True)
class Recipe:
    """How to train: the budget (epochs, batch), the rate and its schedule. All that `fit` can be told.

    learning_rate: the peak of the schedule, of the head and the top block; each block below gets
    `layer_decay` times the rate of the one above (1.0: one rate for all; ULMFiT, arXiv 1801.06146 §3.2, uses 1/2.6).
    gradual_unfreezing: the head alone in the first epoch, then block after block from the top, everything in the last
    epoch (ULMFiT §3.3, which takes one block an epoch).
    patience: stop after so many epochs without a better validation metric; None trains all epochs.
    The weights of the best epoch on validation are kept in either case, unless keep_last says to keep the last one's.
    train_on_prompt: of a task of writing, let the loss see the prompts, too.
    precision: bf16 autocast or fp32; "auto" takes bf16 where the hardware multiplies it natively.
    """

    learning_rate: float
    epochs: int = 4
    batch_size: int = 16
    gradient_accumulation: int = 1
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: str = "linear"
    layer_decay: float = 1.0
    gradual_unfreezing: bool = False
    patience: int | None = None
    keep_last: bool = False
    precision: str = "auto"
    max_length: int = 128
    train_on_prompt: bool = False
    seed: int = 0
    hparams: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("learning_rate", "epochs", "batch_size", "gradient_accumulation", "max_length", "layer_decay"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0; got {getattr(self, name)}.")
        for name in ("warmup", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be 1 or more, or None to train all epochs; got {self.patience}.")
        if self.patience is not None and self.keep_last:
            raise ValueError("patience stops where the best epoch is past, keep_last keeps the last: choose one.")
        if self.gradual_unfreezing and self.epochs < 2:
            raise ValueError("gradual_unfreezing needs 2 epochs or more: the first one trains the head alone.")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)


def native_bf16() -> bool:
    """Whether the device that training runs on here multiplies bf16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities = torch.cpu.get_capabilities()
    return best_device() == "cpu" and bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def fit(
    model: models.Classifier | models.LanguageModel | models.Embedder,
    tokenizer,
    task: Task | WritingTask | SearchTask,
    method: str = "full",
    *,
    features: dict[str, torch.Tensor] | None = None,
    folder: Path | None = None,
    progress: bool = True,
    **recipe,
) -> Run:
    """Fine-tune `model` in place by one of METHODS and return the Run; a classifier's head always trains.

    Training runs on the best device; the model ends where it was before.

    A model that carries the method already goes on training what it has.

    recipe: the fields of `Recipe`; learning_rate is required, hparams go to the method.
    features: what `features(model, tokenizer, task)` gave; then only the head runs, on these cached vectors.
    folder: keep a checkpoint an epoch there, and go on from the last one if there is one (same result as without
    the interruption); without it, checkpoints live in a temporary folder. Runs under `accelerate launch` as it is.

    Raises ValueError for bad settings, CourseError when memory or disk run out.
    """
    recipe = Recipe(**recipe)
    quiet()
    if folder is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("Several processes train together: give fit(…, folder=…) a folder that all of them can reach.")
    hparams = recipe.hparams
    if "total_step" in METHODS[method].hparams:
        hparams = {"total_step": _steps(task, recipe)} | hparams
    if recipe.gradual_unfreezing and method != "full":
        raise ValueError(
            f"gradual_unfreezing releases the whole model block by block: it goes with 'full', not {method!r}."
        )
    if not isinstance(model, models.Classifier) and (recipe.gradual_unfreezing or recipe.layer_decay != 1):
        raise ValueError("gradual_unfreezing and layer_decay are for classifiers: leave them out.")
    carried, before = getattr(model.base_model, "fine_tuned_by", (None, None))
    if carried == method and recipe.hparams and recipe.hparams != before:
        raise ValueError(f"This model carries {method} with {before}, and goes on with that: leave hparams out.")
    if carried != method or METHODS[method].leaves_structure:
        # The method's own parameters are drawn here.
        set_seed(recipe.seed)
        setattr(model, model.base_model_prefix, METHODS[method].apply(model.base_model, **hparams))
    if METHODS[method].count(model.config, **hparams) and not any(
        p.requires_grad for p in model.base_model.parameters()
    ):
        raise ValueError(
            f"What this model carries of {method} is frozen, and cannot train on: start from a fresh model."
        )
    model.penalty = METHODS[method].penalty
    if features is not None and any(p.requires_grad for p in model.base_model.parameters()):
        raise ValueError(
            f"Cached features need a frozen encoder, and {method!r} trains it. Use method='feature_based'."
        )
    if isinstance(model, models.Classifier):
        model.head.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{method!r} trains nothing of this model, which has no head: choose another method.")
    # Checkpoints hold what can change, no copy of the frozen weights.
    model._keys_to_ignore_on_save = _unchanging(model)
    try:
        if folder is not None:
            return _train(model, tokenizer, task, method, recipe, features, Path(folder), progress, resumable=True)
        with tempfile.TemporaryDirectory() as temporary:
            return _train(model, tokenizer, task, method, recipe, features, Path(temporary), progress, resumable=False)
    except torch.OutOfMemoryError as error:
        raise CourseError(
            f"Out of GPU memory with batch_size={recipe.batch_size}. Halve batch_size and double "
            "gradient_accumulation, or choose a method that trains fewer parameters."
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise CourseError(
            "The disk is full: checkpoints could not be written. Free some space, then run again."
        ) from error


def _train(model, tokenizer, task, method, recipe, features, folder, progress, resumable) -> Run:
    set_seed(recipe.seed)
    home = model.device
    examples = examples_of(task, tokenizer, recipe.max_length, features, recipe.train_on_prompt)
    splits = {name: examples.rows(name) for name in ("train", "validation", "test")}
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and native_bf16())
    counted = count_step(model, _longest(splits["train"], recipe, examples, model.device))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # A method that changes its own size on a schedule is finished at the end only.
    keep_last = recipe.keep_last or METHODS[method].after_step is not None
    optimizer, options = OPTIMIZERS[recipe.optimizer]
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=recipe.seed,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=recipe.warmup,
        lr_scheduler_type=recipe.schedule,
        max_grad_norm=examples.clipping,
        optim=optimizer,
        optim_args=options,
        bf16=bf16,
        use_cpu=best_device() == "cpu",
        train_sampling_strategy=examples.sampling if features is None else "random",
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        save_only_model=not resumable,
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=not keep_last,
        metric_for_best_model="accuracy",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    clock = Clock(splits["train"])
    trainer = examples.trainer(
        model=model,
        args=arguments,
        data_collator=examples.collate,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        compute_metrics=examples.compute_metrics,
        callbacks=[clock, *_callbacks(model, method, recipe, progress)],
    )
    trainer.examples = examples
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    trainer.optimizer = kind(_groups(model, method, recipe), **settings)
    # A method that acts after each step has a memory of its own, which no checkpoint holds: it starts over.
    last = None if METHODS[method].after_step else _last_checkpoint(folder)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train(resume_from_checkpoint=last)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    history = trainer.state.log_history
    predictions = examples.answer(model, splits["test"])
    # As many training rows as there are for validation tell how much was learned by heart.
    seen = random.Random(0).sample(range(len(task.train)), min(len(task.train), len(task.validation)))
    train_accuracy = examples.score(examples.answer(model, [splits["train"][i] for i in seen]), task.train.rows(seen))
    model.to(home)
    return Run(
        spec={"task": task.name, "method": method, "learning_rate": recipe.learning_rate, "seed": recipe.seed},
        accuracy=examples.score(predictions, task.test),
        train_accuracy=train_accuracy,
        validation=[row["eval_accuracy"] for row in history if "eval_accuracy" in row],
        validation_losses=[row["eval_loss"] for row in history if "eval_loss" in row],
        kept_last=keep_last,
        losses=[row["loss"] for row in history if "loss" in row],
        predictions=predictions,
        labels=list(task.test.labels),
        trainable=trainable,
        seconds=clock.seconds,
        tokens_per_second=clock.tokens / clock.seconds,
        counted_bytes=counted,
        predicted_bytes=_predicted(model, trainable),
        peak_bytes=peak,
        precision="bf16 autocast" if bf16 else "fp32",
        resumed=last is not None,
    )


def _predicted(model, trainable: int) -> dict[str, int]:
    """The prediction for this model: weights that are packed in bytes take what they take."""
    packed = sum(p.numel() for p in model.parameters() if p.dtype == torch.uint8)
    predicted = predict(sum(p.numel() for p in model.parameters()) - packed, trainable)
    return predicted | {"weights": predicted["weights"] + packed}


def _unchanging(model) -> list[str]:
    """Names of frozen parameters, and of buffers that several modules share, which a checkpoint cannot hold."""
    tensors = model.state_dict(keep_vars=True)
    places = Counter(tensor.data_ptr() for tensor in tensors.values())

    def unchanging(tensor) -> bool:
        shared = places[tensor.data_ptr()] > 1
        return not tensor.requires_grad and (isinstance(tensor, torch.nn.Parameter) or shared)

    return [name for name, tensor in tensors.items() if unchanging(tensor)]


def _steps(task: Task, recipe: Recipe) -> int:
    """Optimizer steps of the whole training."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    batches = math.ceil(len(task.train) / (recipe.batch_size * processes))
    return recipe.epochs * math.ceil(batches / recipe.gradient_accumulation)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint: Trainer writes trainer_state.json last."""
    complete = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[-1]))) if complete else None


def features(model, tokenizer, task: Task, *, max_length: int = 128) -> dict[str, torch.Tensor]:
    """The sentence vectors of each split, (rows, width): computed once, they serve every head and seed."""
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    return {name: models.embed(model, tokenizer, split.texts, max_length=max_length) for name, split in splits.items()}


def fixed_batch(tokenizer, split: Split, size: int, length: int) -> dict[str, torch.Tensor]:
    """The first `size` texts of a split, each cut or padded to `length` tokens, with labels: for counting memory."""
    padded = tokenizer(
        list(split.texts[:size]), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    labels = torch.tensor(split.labels[:size])
    return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"], "labels": labels}


def _longest(rows: list[dict], recipe: Recipe, examples, device) -> dict:
    """The batch with the most tokens that training can meet: memory is counted on it."""
    rows = sorted(rows, key=lambda row: -len(row.get("input_ids", ())))[: recipe.batch_size]
    return {name: tensor.to(device) for name, tensor in examples.collate(rows).items()}


def _groups(model, method: str, recipe: Recipe) -> list[dict]:
    """Parameter groups: a rate for each depth, no weight decay on biases and norms; and what the method wants."""
    own_rates, undecayed = METHODS[method].own_rates, METHODS[method].undecayed
    top = blocks(model.config)
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # The head and the top block share the full rate; the embeddings lie below block 0.
        index = block(name)
        depth = 0 if name.startswith("head.") else top - 1 - index if index is not None else top
        own = next((rate for part, rate in own_rates.items() if part in name), None)
        pulled = parameter.ndim > 1 and own is None and not any(part in name for part in undecayed)
        decay = recipe.weight_decay if pulled else 0.0
        rate = recipe.learning_rate * recipe.layer_decay**depth if own is None else own
        groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})["params"].append(parameter)
    return list(groups.values())


def _callbacks(model, method: str, recipe: Recipe, progress: bool) -> list[TrainerCallback]:
    from transformers import EarlyStoppingCallback

    after_step = METHODS[method].after_step
    chosen = [Progress(f"{METHODS[method].title}, seed {recipe.seed}")] if progress else []
    if after_step is not None:
        chosen.append(AfterStep(model, after_step))
    if recipe.gradual_unfreezing:
        chosen.append(GradualUnfreezing(model, recipe.epochs))
    if recipe.patience is not None:
        chosen.append(EarlyStoppingCallback(recipe.patience))
    return chosen
