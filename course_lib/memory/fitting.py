"""Will it fit? Which ways to fine-tune a model a GPU has room for, by what margin, and with how much text at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from course_lib.errors import unknown
from course_lib.memory.estimate import Estimate, estimate, positions

MIB = 2**20
# Memory as nvidia-smi gives it, in MiB.
GPUS = {"T4": 15_360, "RTX 4090": 24_564, "A100 80GB": 81_920, "H100": 81_559, "H200": 143_771}
# A T4 has neither flash attention nor bf16 of its own (read fp16 for bf16).
WITHOUT_FLASH = ("T4",)
# Two guesses: what the CUDA driver and its libraries take, and the share of PyTorch's own memory that lies in gaps
# between tensors. No recording of the course has measured them yet.
CONTEXT, GAPS = 600 * MIB, 0.05

# Title → method and settings of `estimate`.
WAYS = {
    "full, fp32": ("full", {"dtype": "fp32"}),
    "full, bf16": ("full", {}),
    "full, bf16, 8-bit AdamW": ("full", {"optimizer": "adamw_8bit"}),
    "LoRA, bf16": ("lora", {"target_modules": "all-linear"}),
    "LoRA, int8": ("lora", {"target_modules": "all-linear", "quantization": "int8"}),
    "QLoRA, NF4": ("qlora", {"bnb_4bit_use_double_quant": False}),
    "QLoRA, NF4 double": ("qlora", {}),
}
LENGTH_STEP, MOST_ROWS = 64, 4096


def room(gpu: str | float) -> int:
    """Bytes that tensors may take on a GPU: a name of GPUS, or its memory in GiB.

    Raises ValueError for an unknown name, or a size that leaves no room.
    """
    if isinstance(gpu, str) and gpu not in GPUS:
        try:
            gpu = float(gpu)
        except ValueError:
            raise unknown("GPU (or give its memory in GiB)", gpu, GPUS) from None
    total = GPUS[gpu] * MIB if isinstance(gpu, str) else gpu * 1024 * MIB
    if not CONTEXT < total < float("inf"):
        raise ValueError(f"A GPU of {gpu} GiB leaves no room for tensors: give more than {CONTEXT / 2**30:.1f}.")
    return int((total - CONTEXT) / (1 + GAPS))


@dataclass(frozen=True)
class Verdict:
    """Whether one way fits. margin: bytes left over, negative where it does not fit. batch_size, seq_len: the most rows
    of the asked length, and the longest rows of the asked number, that do (in steps of 64 tokens); None where not even
    what was asked fits. reason: why there is no estimate."""

    way: str
    checkpointing: bool
    estimate: Estimate | None = None
    margin: int = 0
    batch_size: int | None = None
    seq_len: int | None = None
    reason: str = ""

    @property
    def fits(self) -> bool:
        return self.estimate is not None and self.margin >= 0


def verdicts(
    config, gpu: str | float, *, batch_size: int = 1, seq_len: int = 512, r: int = 16, **settings
) -> Iterator[Verdict]:
    """A Verdict for each of WAYS, without and with gradient checkpointing; r: rank of the low-rank ways. settings: more
    of `estimate`'s, such as loss_chunk. Raises ValueError for what no way could do."""
    space = room(gpu)
    for (way, (method, own)), checkpointing in product(WAYS.items(), (False, True)):
        options = settings | own | ({} if method == "full" else {"r": r})
        options |= {"gradient_checkpointing": checkpointing, "flash": gpu not in WITHOUT_FLASH}

        def one(rows: int, length: int, method=method, options=options) -> Estimate:
            return estimate(config, method, batch_size=rows, seq_len=length, **options)

        try:
            asked = one(batch_size, seq_len)
        except ValueError as reason:
            if way == next(iter(WAYS)):
                # What full fine-tuning cannot do either is no matter of the way.
                raise
            yield Verdict(way, checkpointing, reason=str(reason))
            continue
        margin = space - asked.allocated_peak
        rows = length = None
        if margin >= 0:
            longest = positions(config) or max(seq_len, 2**20)
            rows_to_try = range(batch_size, max(batch_size, MOST_ROWS) + 1)
            rows = largest(rows_to_try, lambda n: one(n, seq_len).allocated_peak <= space)
            length = largest(_lengths(seq_len, longest), lambda n: one(batch_size, n).allocated_peak <= space)
        yield Verdict(way, checkpointing, asked, margin, rows, length)


def _lengths(shortest: int, longest: int) -> list[int]:
    """Lengths in even steps, and the longest."""
    return [*range(shortest, longest, LENGTH_STEP), longest]


def largest(numbers: Sequence[int], good: Callable[[int], bool]) -> int:
    """The last of ascending `numbers` that is good; the first is, and none is behind one that is not."""
    low, high = 0, 1
    while high < len(numbers) and good(numbers[high]):
        low, high = high, 2 * high
    high = min(high, len(numbers))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(numbers[middle]) else (low, middle)
    return numbers[low]


def table(found: Iterable[Verdict], batch_size: int, seq_len: int) -> str:
    """The verdicts as lines of text, GB in powers of ten."""
    lines = [
        f"{'way':<25}{'checkpointing':<15}{'peak':>10}{'margin':>11}  "
        f"most rows of {seq_len} · longest of {batch_size} row{'s' * (batch_size > 1)}"
    ]
    for one in found:
        start = f"{one.way:<25}{'yes' if one.checkpointing else 'no':<15}"
        if one.estimate is None:
            lines.append(f"{start}{'–':>10}{'':>13}{one.reason.split('. ')[0]}")
            continue
        most = f"{one.batch_size:,} · {one.seq_len:,}" if one.fits else "does not fit"
        lines.append(f"{start}{one.estimate.allocated_peak / 1e9:>7.1f} GB{one.margin / 1e9:>+8.1f} GB  {most}")
    return "\n".join(lines)
