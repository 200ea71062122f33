"""What optimizers keep of each trained tensor, by the rules of their code."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from course_lib.errors import unknown
from course_lib.memory.tape import FP32, Parameter, rounded

# bitsandbytes: smaller tensors keep 32 bits; one constant for each so many numbers; smaller tensors are not paged.
SMALL, CODED_BLOCK, PAGED = 4096, 256, 100_000


@dataclass(frozen=True)
class Optimizer:
    """states(tensor) → bytes of each tensor that is kept for it; scratch(tensor) → bytes needed while it is updated.

    paged: how many of a large tensor's states lie in memory that the driver moves between GPU and CPU, outside
    PyTorch's allocator. tables: bytes of each tensor that is there once.
    """

    states: Callable[[Parameter], list[int]]
    scratch: Callable[[Parameter], int] = lambda tensor: 0
    paged: int = 0
    tables: tuple[int, ...] = ()


@dataclass(frozen=True)
class States:
    """Bytes of optimizer states: in PyTorch's allocator, and paged. scratch: more, while the optimizer works."""

    on_device: int
    paged: int
    scratch: int


def _two_moments(tensor: Parameter) -> list[int]:
    # Of the tensor's own type, and the number of the step. With fused=True, as transformers' Trainer has it: else
    # PyTorch's loops over many tensors at once need a copy of them all.
    return [tensor.bytes, tensor.bytes, FP32]


def _coded(tensor: Parameter) -> list[int]:
    """8 bits, and a constant for each block (arXiv 2110.02861, section 2)."""
    if tensor.numel < SMALL:
        return 2 * [FP32 * tensor.numel]
    return 2 * [tensor.numel] + 2 * [FP32 * -(-tensor.numel // CODED_BLOCK)]


def _factored(tensor: Parameter) -> list[int]:
    """Adafactor (arXiv 1804.04235, section 3): a number for each row and each column, in fp32; its root mean square."""
    if len(tensor.shape) < 2:
        return [FP32 * tensor.numel, FP32]
    *outer, rows, columns = tensor.shape
    return [FP32 * prod(outer) * rows, FP32 * prod(outer) * columns, FP32]


def _adafactor_scratch(tensor: Parameter) -> int:
    # Squares and what is made of them, three at a time; of a tensor in half precision two, and fp32 copies of itself
    # and its gradient.
    return FP32 * tensor.numel * (3 if tensor.size == FP32 else 4)


# The codes' 256 values, one table for numbers with a sign and one for those without.
_CODES = 2 * (256 * FP32,)
OPTIMIZERS = {
    "adamw": Optimizer(_two_moments),
    "adamw_8bit": Optimizer(_coded, tables=_CODES),
    "paged_adamw": Optimizer(lambda tensor: 2 * [FP32 * tensor.numel], paged=2),
    "paged_adamw_8bit": Optimizer(_coded, paged=2, tables=_CODES),
    "sgd": Optimizer(lambda tensor: []),
    "sgd_momentum": Optimizer(lambda tensor: [tensor.bytes]),
    "adafactor": Optimizer(_factored, _adafactor_scratch),
}


def states(optimizer: str, tensors: Iterable[Parameter], block: int = 1) -> States:
    """What this optimizer keeps for these tensors, each of its own rounded up to a multiple of `block` bytes.

    Raises ValueError for an optimizer that is not in OPTIMIZERS.
    """
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    rule, tensors = OPTIMIZERS[optimizer], list(tensors)
    on_device = paged = 0
    for tensor in tensors:
        kept = rule.states(tensor)
        moved = rule.paged if tensor.numel >= PAGED else 0
        paged += sum(kept[:moved])
        on_device += sum(rounded(size, block) for size in kept[moved:])
    on_device += sum(rounded(size, block) for size in rule.tables) if tensors else 0
    return States(on_device, paged, max(map(rule.scratch, tensors), default=0))
