"""What a method does to one linear layer, and what autograd keeps of that.

peft makes a method's own parameters fp32 on a model in half precision, and casts what goes into them; `size` is their
bytes a number.
"""

from collections.abc import Callable

from course_lib.memory.tape import Parameter, Tape, Value
from course_lib.methods.added_linear import factors
from course_lib.methods.shapes import Linear

# (tape, layer, x, y): the layer maps x to y; returns what it gives now.
Change = Callable[[Tape, Linear, Value, Value], Value]


def low_rank(r: int, size: int, lora_bias: bool = False, lora_dropout: float = 0.0) -> Change:
    """y + scale · B A x, computed in the adapter's type and cast back."""

    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        x = tape.dropout(tape.cast(x, size), lora_dropout)
        down = tape.matmul(x, r, [Parameter((r, layer.inputs), size)])
        bias = [Parameter((layer.outputs,), size)] * lora_bias
        up = tape.copy(tape.matmul(down, layer.outputs, [Parameter((layer.outputs, r), size)], bias))
        return tape.cast(tape.add(y, up), y.size)

    return change


def dora(r: int, size: int, conv1d: bool, lora_dropout: float = 0.0) -> Change:
    """The length of a row is a constant to the gradient; the ratio of lengths multiplies both outputs.

    conv1d: W is stored the other way round, and W + B A stays in memory when no cast comes between.
    """

    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        conv1d_too = conv1d and x.size == size
        x = tape.dropout(tape.cast(x, size), lora_dropout)
        down = tape.matmul(x, r, [Parameter((r, layer.inputs), size)])
        up = tape.matmul(down, layer.outputs, [Parameter((layer.outputs, r), size)])
        base = y
        if lora_dropout:
            # What dropout has thinned out goes through the layer once more, whose weight is cast for it.
            cast = [Value(layer.weights, size)] * (x.grad and size != tape.size)
            base = tape.does(Value(y.numel, size), x, kept=cast, scratch=size * layer.weights)
        kept = [base, up, Value(3 * layer.outputs, size)] + [Value(layer.weights, size)] * conv1d_too
        magnitude = [Parameter((layer.outputs,), size)]
        # The length is taken of W + B A, written out and let go again.
        scratch = 2 * size * layer.weights
        out = tape.does(Value(y.numel, size), y, base, up, kept=kept, trained=magnitude, scratch=scratch)
        return tape.cast(out, y.size)

    return change


def adalora(r: int, size: int) -> Change:
    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        x, product = tape.cast(x, size), Value(layer.inputs * r, size)
        trained = [Parameter((r, layer.inputs), size), Parameter((r, 1), size)]
        down = tape.does(tape.value(r, size), x, kept=[x] + [product] * x.grad, trained=trained, scratch=product.bytes)
        up = tape.matmul(down, layer.outputs, [Parameter((layer.outputs, r), size)])
        return tape.cast(tape.add(y, tape.copy(up)), y.size)

    return change


def nested(r: int, size: int) -> Change:
    """DyLoRA: on average (r + 1) / 2 of the ranks work; the gradient is of all."""

    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        down = tape.matmul(x, (r + 1) // 2, [Parameter((r, layer.inputs), tape.size)])
        up = tape.matmul(down, layer.outputs, [Parameter((layer.outputs, r), tape.size)])
        return tape.add(y, tape.copy(up))

    return change


def kronecker(decompose_factor: int) -> Change:
    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        (in_1, in_2), (out_1, out_2) = (factors(side, decompose_factor) for side in layer)
        # The input laid out anew, and its product with the first factor.
        laid, first = Value(x.numel, x.size), tape.value(out_1 * in_2)
        tape.does(first, x, kept=(laid,), trained=[Parameter((out_1, in_1), tape.size)])
        second = tape.does(Value(y.numel, y.size), first, kept=(first,), trained=[Parameter((out_2, in_2), tape.size)])
        return tape.add(y, tape.copy(second))

    return change


def whole_change(size: int, parts: Callable[[Linear], list[tuple[int, ...]]], kept: Callable[[Linear], int]) -> Change:
    """A change of the whole matrix, written out from trained parts of these shapes; kept: how many numbers of the
    making."""

    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        x, whole = tape.cast(x, size), Value(layer.weights, size)
        made = tape.does(
            whole,
            kept=(Value(kept(layer), size),),
            trained=[Parameter(p, size) for p in parts(layer)],
            scratch=whole.bytes,
        )
        out = tape.does(Value(y.numel, size), x, made, kept=[x] + [made] * x.grad)
        return tape.cast(tape.add(y, out), y.size)

    return change


def vera(r: int, size: int) -> Change:
    """Two frozen projections; what comes out of each is multiplied by trained numbers."""

    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        down = tape.matmul(tape.cast(x, size), r)
        # The gradient of the numbers is summed up from a product of the tensor's size.
        down = tape.does(
            Value(down.numel, size), down, kept=(down,), trained=[Parameter((r,), size)], scratch=down.bytes
        )  # fmt: skip
        up = tape.matmul(down, layer.outputs)
        up = tape.does(
            Value(up.numel, size), up, kept=(up,), trained=[Parameter((layer.outputs,), size)], scratch=up.bytes
        )  # fmt: skip
        return tape.cast(tape.add(y, up), y.size)

    return change


def bottleneck(width: int) -> Change:
    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        def side(outputs: int, inputs: int):
            return [Parameter((outputs, inputs), tape.size)], [Parameter((outputs,), tape.size)]

        # A ReLU's derivative comes from what it gave.
        h = tape.copy(tape.matmul(y, width, *side(width, layer.outputs)))
        return tape.add(y, tape.matmul(h, layer.outputs, *side(layer.outputs, width)))

    return change


def remade(trained: list[tuple[int, ...]], copies: int, places: int = 0) -> Change:
    """The matrix is made anew from the frozen one and trained numbers of these shapes; kept for that: `copies` tensors
    of its size, and `places` whole numbers of 8 bytes."""

    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        made = Value(layer.weights, tape.size)
        kept = (Value(copies * layer.weights, tape.size), Value(places, 8))
        parameters = [Parameter(shape, tape.size) for shape in trained]
        tape.does(made, kept=kept, trained=parameters, scratch=made.bytes)
        return tape.does(Value(y.numel, y.size), x, made, kept=[x] + [made] * x.grad)

    return change


def rotated(block: Callable[[Linear], int], shape: Callable[[Linear], tuple[int, ...]], size: int) -> Change:
    """OFT: the input is turned in blocks; four powers of the blocks are kept, from the series for the rotation."""

    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        x, powers = tape.cast(x, size), Value(4 * layer.inputs * block(layer), size)
        turned = tape.does(Value(x.numel, size), x, kept=(x, powers), trained=[Parameter(shape(layer), size)])
        return (
            tape.copy(tape.cast(turned, tape.size))
            if layer.inputs == layer.outputs
            else tape.does(Value(y.numel, y.size), tape.cast(turned, tape.size))
        )

    return change


def scaled(inner: bool, size: int) -> Change:
    """(IA)³: scales what goes in, or what comes out."""

    def change(tape: Tape, layer: Linear, x: Value, y: Value) -> Value:
        width = layer.inputs if inner else layer.outputs
        before = tape.cast(x, size) if inner else y
        kept = [before] + [Value(width, size)] * before.grad
        # The scales' gradient is summed up from a product of the tensor's size.
        scaled = tape.does(
            Value(before.numel, size), before, kept=kept, trained=[Parameter((width, 1), size)], scratch=before.bytes
        )  # fmt: skip
        scaled = tape.cast(scaled, tape.size)
        return tape.does(Value(y.numel, y.size), scaled) if inner else scaled

    return change
