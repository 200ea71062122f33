"""Training steps on one batch, timed: what the studies of speed and memory share."""

import time

import torch


def wait(device: str) -> None:
    """Until the device has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(model, batch: dict, optimizer, *, warmup: int, steps: int) -> tuple[list[float], list[float]]:
    """Losses of all steps, and seconds of those after the warm-up, from which on a GPU's memory peak is counted too."""
    device = next(iter(batch.values())).device.type
    losses, seconds = [], []
    for step in range(warmup + steps):
        if step == warmup and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        wait(device)
        began = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(device)
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    return losses, seconds[warmup:]
