"""The memory of a forward and a backward pass from shapes alone: one rule for each operation, and a replay of them all.

A tensor is kept when a gradient will need it: the input of a matrix that trains, both sides of a product, the input of
an activation function. The rules are those of PyTorch's derivatives (tools/autograd/derivatives.yaml). Backwards, each
operation makes the gradients of its inputs, and what it had kept is let go.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

FP32 = 4
FORWARD, BACKWARD = "forward pass", "backward pass"
# PyTorch's CUDA allocator hands out multiples of this many bytes.
CUDA_BLOCK = 512
ACTIVATIONS, LOGITS, GRADIENTS, WORKSPACE = "activations", "logits and loss", "gradients", "workspace"


@dataclass(eq=False, slots=True)
class Value:
    """A tensor: its elements, bytes for each of them, whether a gradient comes back to it, its part of the bill where
    it is kept, and the tensor whose memory it lies in if it is a view."""

    numel: int
    size: int
    grad: bool = False
    part: str = ACTIVATIONS
    base: "Value | None" = None

    @property
    def bytes(self) -> int:
        return self.numel * self.size


class Parameter(NamedTuple):
    """A trained tensor: its shape, bytes for each of its numbers, and whether it is the model's own."""

    shape: tuple[int, ...]
    size: int
    own: bool = False

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.size


@dataclass(eq=False, slots=True)
class Operation:
    """inputs → out. kept: until its backward pass. clings: kept behind autograd's back, which no checkpoint lets go.
    trained: the parameters that it makes gradients for.
    scratch: bytes that it needs while it runs, forwards as backwards. passes: the gradient of `out` is that of the
    inputs too, without a copy (a sum)."""

    out: Value
    inputs: tuple[Value, ...]
    kept: tuple[Value, ...] = ()
    clings: tuple[Value, ...] = ()
    trained: tuple[Parameter, ...] = ()
    scratch: int = 0
    passes: bool = False


@dataclass
class Tape:
    """The operations of a network on `batch` texts of `length` tokens, in the order of the forward pass.

    size: bytes of a number that the model computes with. trains: name of a parameter of the model's own → whether it
    has a gradient. fused: as on a CUDA device, where dropout keeps a mask of one byte an element; elsewhere it keeps
    its noise in the type of its input. segments: the operations, a list for what comes before the blocks, one for each
    block, and one for the rest; entries: what goes into each.
    """

    batch: int
    length: int
    size: int
    trains: Callable[[str], bool]
    fused: bool = True
    segments: list[list[Operation]] = field(default_factory=lambda: [[]])
    entries: list[Value | None] = field(default_factory=lambda: [None])

    def begin(self, entry: Value) -> None:
        """Start a new segment, with what goes into it."""
        self.segments.append([])
        self.entries.append(entry)

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def value(self, width: int, size: int | None = None) -> Value:
        """A tensor (batch, length, width)."""
        return Value(self.tokens * width, size or self.size)

    def width(self, x: Value) -> int:
        return x.numel // self.tokens

    @property
    def trained(self) -> list[Parameter]:
        """Every parameter that gets a gradient, in the order of the forward pass."""
        return [parameter for segment in self.segments for step in segment for parameter in step.trained]

    def does(
        self, out: Value, *inputs: Value, kept: Iterable[Value] = (), clings: Iterable[Value] = (),
        trained: Iterable[Parameter] = (), scratch: int = 0, passes: bool = False,
    ) -> Value:  # fmt: skip
        """Write an operation down; returns `out`, which has a gradient if an input or a parameter has one."""
        trained = tuple(trained)
        out.grad = bool(trained) or any(x.grad for x in inputs)
        kept, clings = ((tuple(values) if out.grad else ()) for values in (kept, clings))
        self.segments[-1].append(Operation(out, inputs, kept, clings, trained, scratch, passes))
        return out

    def own(self, name: str, *shape: int) -> tuple[Parameter, ...]:
        """One of the model's own parameters, if it trains."""
        return (Parameter(shape, self.size, own=True),) if self.trains(name) else ()

    def copy(self, x: Value, *others: Value, size: int | None = None) -> Value:
        """A new tensor of the shape of x that nothing is kept for: a copy, a scaling by a constant, a rotation."""
        return self.does(Value(x.numel, size or x.size, part=x.part), x, *others)

    def view(self, whole: Value, width: int) -> Value:
        """A part of a tensor, to `width` numbers a token: no copy forwards, backwards a gradient of the whole size."""
        return self.does(Value(self.tokens * width, whole.size, base=whole), whole)

    def cast(self, x: Value, size: int) -> Value:
        """x in another type: a copy, unless it has that type already."""
        return x if x.size == size else self.copy(x, size=size)

    def add(self, a: Value, b: Value) -> Value:
        return self.does(Value(a.numel, max(a.size, b.size)), a, b, passes=True)

    def product(self, a: Value, b: Value) -> Value:
        """Entry by entry; each side's gradient needs the other."""
        kept = [x for x, other in ((a, b), (b, a)) if other.grad]
        return self.does(Value(a.numel, a.size), a, b, kept=kept)

    def activation(self, x: Value) -> Value:
        """A function whose derivative is computed from its input: GELU, SiLU."""
        return self.does(Value(x.numel, x.size), x, kept=(x,))

    def matmul(
        self, x: Value, width: int, weight: Iterable[Parameter] = (), bias: Iterable[Parameter] = (), **more
    ) -> Value:
        """x times a matrix, to `width` outputs; weight, bias: the parameters if they train, else nothing. more: see
        `does`."""
        out = Value(x.numel // self.width(x) * width, x.size)
        return self.does(out, x, kept=(x,) if weight else (), trained=(*weight, *bias), **more)

    def dropout(self, x: Value, p: float) -> Value:
        if p == 0:
            return x
        return self.does(Value(x.numel, x.size), x, kept=(Value(x.numel, 1 if self.fused else x.size),))

    def layer_norm(self, x: Value, name: str) -> Value:
        trained = [p for part in ("weight", "bias") for p in self.own(f"{name}.{part}", self.width(x))]
        # Mean and deviation of each token are kept too.
        return self.does(Value(x.numel, x.size), x, kept=(x, Value(2 * self.tokens, FP32)), trained=trained)

    def rms_norm(self, x: Value, name: str, around_one: bool = False) -> Value:
        """Step by step in fp32, as the models' own code does it; around_one: the weight is one plus the parameter."""
        wide, weight = self.cast(x, FP32), self.own(f"{name}.weight", self.width(x))
        normal = self.does(
            Value(wide.numel, FP32), wide, kept=(wide, Value(self.tokens, FP32)), scratch=wide.bytes
        )  # fmt: skip
        if around_one:
            kept = [Value(self.width(x), FP32)] * normal.grad + [normal] * len(weight)
            return self.cast(self.does(Value(x.numel, FP32), normal, kept=kept, trained=weight), x.size)
        normal = self.cast(normal, x.size)
        return self.does(Value(x.numel, x.size), normal, kept=[normal] * len(weight), trained=weight)


def rounded(size: int, block: int) -> int:
    """The least multiple of `block` that is no less than `size`."""
    return -(-size // block) * block


def _memory(value: Value) -> Value:
    return value.base or value


class Replay:
    """The bytes of a tape as it runs forwards, then backwards; `saved` is what autograd holds between the two.

    checkpointed: the segments of which only the input is kept, and that run forwards again just before they run
    backwards (arXiv 1604.06174). peak: part → bytes at the moment when most is held, the parameters left out; moment:
    what happened then.
    """

    def __init__(self, tape: Tape, checkpointed: Iterable[int] = (), block: int = 1):
        self.block = block
        self._uses: Counter[Value] = Counter()
        self._held: Counter[str] = Counter()
        # Gradients on their way: whose they are → the tensor that they lie in.
        self._gradients: dict[Value, Value] = {}
        self.peak: Counter[str] = Counter()
        self._most, self.moment = 0, ""
        checkpointed = set(checkpointed)
        for index, segment in enumerate(tape.segments):
            self._forwards(segment, tape.entries[index], keep=index not in checkpointed)
            if index in checkpointed and tape.entries[index].grad:
                self._hold([tape.entries[index]])
        self.saved = Counter(self._held)
        last = tape.segments[-1][-1].out
        self._gradients[last] = last
        for index, segment in reversed(list(enumerate(tape.segments))):
            if index in checkpointed:
                self._forwards(segment, tape.entries[index], keep=True)
                self._release(value for step in segment for value in step.clings)
            self._backwards(segment)
            if index in checkpointed and tape.entries[index].grad:
                self._release([tape.entries[index]])

    def _hold(self, values: Iterable[Value]) -> None:
        for value in map(_memory, values):
            self._uses[value] += 1
            if self._uses[value] == 1:
                self._held[value.part] += self._size(value)

    def _release(self, values: Iterable[Value]) -> None:
        for value in map(_memory, values):
            self._uses[value] -= 1
            if self._uses[value] == 0:
                del self._uses[value]
                self._held[value.part] -= self._size(value)

    def _size(self, value: Value | Parameter) -> int:
        return rounded(value.bytes, self.block)

    def _look(self, moment: str, passing: Iterable[Value], scratch: int = 0) -> None:
        """Note what is held at this moment, if it is the most so far; passing: tensors that nothing keeps."""
        # A gradient is a tensor of its own, even if something keeps the tensor that it is of.
        flying = set(self._gradients.values())
        flying.update(value for value in map(_memory, passing) if value not in self._uses)
        total = sum(self._held.values()) + scratch + sum(map(self._size, flying))
        if total > self._most:
            self._most, self.moment, self.peak = total, moment, Counter(self._held)
            self.peak[WORKSPACE] += scratch
            for value in flying:
                self.peak[WORKSPACE if value.part == ACTIVATIONS else value.part] += self._size(value)

    def _forwards(self, segment: list[Operation], entry: Value | None, keep: bool) -> None:
        last_use = {value: index for index, step in enumerate(segment) for value in step.inputs}
        # Who calls a block holds on to what went in until the block is done.
        last_use[entry] = len(segment)
        live = set() if entry is None else {entry}
        for index, step in enumerate(segment):
            live.update((step.out, *step.inputs))
            self._hold((*step.kept, *step.clings) if keep else step.clings)
            self._look(FORWARD, live, step.scratch)
            live = {value for value in live if last_use.get(value, -1) > index}

    def _backwards(self, segment: list[Operation]) -> None:
        for step in reversed(segment):
            if not step.out.grad or step.out not in self._gradients:
                self._release((*step.kept, *step.clings))
                continue
            arriving = self._gradients[step.out]
            self._held[GRADIENTS] += sum(map(self._size, step.trained))
            made = [
                (x, arriving if step.passes and x.size == arriving.size else Value(x.numel, x.size, part=x.part))
                for x in dict.fromkeys(step.inputs)
                if x.grad
            ]
            # Two gradients of one tensor are added into the first, unless that is another's too.
            self._look(BACKWARD, [gradient for _, gradient in made], step.scratch)
            del self._gradients[step.out]
            for x, gradient in made:
                self._gradients[x] = gradient if x not in self._gradients else Value(x.numel, x.size, part=x.part)
            self._release((*step.kept, *step.clings))
