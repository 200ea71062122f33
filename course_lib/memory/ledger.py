"""A ledger of memory: every tensor that a piece of code makes, from birth to death, by what it is for."""

import weakref
from collections import Counter
from contextlib import contextmanager

from course_lib.memory.tape import ACTIVATIONS, BACKWARD, FORWARD, LOGITS, WORKSPACE, rounded

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class Ledger(TorchDispatchMode):
    """Bytes of the tensors that live on one kind of device, by part; used as a context.

    now: the bytes of this moment. peak: what `now` was when its sum was largest, and `moment` the `phase`, FORWARD
    or BACKWARD, that the caller had set. block: sizes are rounded up to multiples of this (PyTorch's CUDA allocator
    hands out multiples of 512 bytes). vocabulary: tensors whose last side is this long are "logits and loss".

    On the meta device, code that asks for a value (`.item()`, `if tensor:`) hears "true": what the models ask is
    whether a batch has no padding and is not packed.
    """

    def __init__(self, device: str, *, vocabulary: int | None = None, block: int = 1):
        super().__init__()
        self.device, self.vocabulary, self.block = device, vocabulary, block
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.phase = self.moment = FORWARD
        self._entries: dict[int, tuple[str, int]] = {}

    def part(self, tensor: torch.Tensor) -> str | None:
        """What the tensor's storage is booked under; None if it is not."""
        return self._entries.get(tensor.untyped_storage()._cdata, (None, 0))[0]

    def book(self, tensor: torch.Tensor, part: str) -> None:
        """Book the tensor's storage under `part`, wherever it was booked before."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries:
            before, size = self._entries[key]
            self.now[before] -= size
        else:
            size = rounded(storage.nbytes(), self.block)
            weakref.finalize(storage, self._strike, key)
        self._entries[key] = part, size
        self.now[part] += size
        if self.now.total() > self.peak.total():
            self.peak, self.moment = self.now.copy(), self.phase

    def _strike(self, key: int) -> None:
        part, size = self._entries.pop(key)
        self.now[part] -= size

    @contextmanager
    def saving(self):
        """Within it, what autograd keeps for the backward pass is booked as activations."""

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if self.part(tensor) == WORKSPACE:
                self.book(tensor, ACTIVATIONS)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            yield

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return True
        if func is aten.add.Tensor and self.phase == BACKWARD and not torch.is_grad_enabled() and _alike(*args[:2]):
            # Autograd adds two gradients in place, but not while a dispatch mode looks on.
            return args[0].add_(args[1])
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device and self.part(tensor) is None:
                logits = tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary
                self.book(tensor, LOGITS if logits else WORKSPACE)
        return out


def _alike(a, b) -> bool:
    return isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype
