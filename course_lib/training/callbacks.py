"""What happens beside the steps of a training: clock, progress bar, and what methods and schedules ask for."""

import os
import time

from course_lib.methods.shapes import block, blocks

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Seconds spent in training steps (evaluation and checkpoints left out) and tokens trained on.

    Both are kept in the trainer's log, so that a resumed run goes on counting.
    """

    def __init__(self, rows: list[dict]):
        self.tokens_per_epoch = sum(len(row.get("input_ids", (None,))) for row in rows)
        self.seconds = self.tokens = 0.0

    def on_train_begin(self, args, state, control, **_):
        for row in state.log_history:
            self.seconds = row.get("seconds_so_far", self.seconds)
            self.tokens = row.get("tokens_so_far", self.tokens)

    def on_step_begin(self, args, state, control, **_):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self.started

    def on_epoch_end(self, args, state, control, **_):
        self.tokens += self.tokens_per_epoch
        state.log_history.append({"seconds_so_far": self.seconds, "tokens_so_far": self.tokens})


class Progress(TrainerCallback):
    """One bar over all steps, in a terminal or a notebook, gone when training ends."""

    def __init__(self, title: str):
        self.title = title

    def on_train_begin(self, args, state, control, **_):
        # tqdm's notebook bar does not look at tqdm's own environment variable.
        hidden = bool(os.environ.get("TQDM_DISABLE")) or not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, leave=False, disable=hidden)

    def on_step_end(self, args, state, control, **_):
        self.bar.update(1)

    def on_train_end(self, args, state, control, **_):
        self.bar.close()


class AfterStep(TrainerCallback):
    """Calls a method's `after_step` while the gradients of the step are still there."""

    def __init__(self, model, after_step):
        self.model, self.after_step = model, after_step

    def on_optimizer_step(self, args, state, control, **_):
        self.after_step(self.model.base_model, state.global_step + 1)


class GradualUnfreezing(TrainerCallback):
    """ULMFiT's gradual unfreezing (arXiv 1801.06146, section 3.3), from the top block down to the embeddings.

    The head alone in the first epoch, everything in the last, the blocks between spread evenly.
    """

    def __init__(self, model, epochs: int):
        self.top, self.epochs = blocks(model.config), epochs
        self.parameters = list(model.base_model.named_parameters())

    def on_epoch_begin(self, args, state, control, **_):
        share = round(state.epoch) / max(self.epochs - 1, 1)
        unfrozen = round(share * (self.top + 1))
        for name, parameter in self.parameters:
            index = block(name)
            depth = self.top if index is None else self.top - 1 - index
            parameter.requires_grad_(depth < unfrozen)
