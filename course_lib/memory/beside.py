"""What each method of the registry does to the forward pass: which of the model's own parameters train, what stands
beside its layers, how many vectors come in with the text; and what autograd keeps of that."""

from collections.abc import Callable, Mapping
from itertools import pairwise

from course_lib.memory import changes
from course_lib.memory.changes import Change
from course_lib.memory.tape import FP32, Parameter, Value
from course_lib.methods.added_linear import factors
from course_lib.methods.additive import _adapted, _heads, _ia3_targets, _norms_train, _special_ids
from course_lib.methods.prompts import _kv_width
from course_lib.methods.reparameterized import lokr_parts, oft_block, oft_rotations
from course_lib.methods.selective import _in_last, _is_bias
from course_lib.methods.shapes import Linear, block, blocks, has_lm_head, is_norm, uses_conv1d
from course_lib.methods.sparse import _entries, _shares
from course_lib.methods.targets import targets, without_saved
from course_lib.methods.with_peft import defaults


class Beside:
    """A method that trains parameters of the model itself, if any, and puts nothing beside its layers.

    virtual_tokens: positions that stand before the text in every layer. masked: attention needs a mask, written out.
    frozen_bytes: what the method adds and does not train.
    """

    virtual_tokens = frozen_bytes = 0
    masked = False

    def __init__(self, trains: Callable[[str], bool] = lambda name: False):
        self.trains = trains

    def start(self, net, x: Value) -> Value:
        """The words' vectors, with those that the method adds to the text."""
        return x

    def enter(self, net, x: Value) -> Value:
        """What goes into a block."""
        return x

    def end(self, net, x: Value) -> Value:
        """What comes out of the last block, after the norm behind it."""
        return x

    def linear(self, net, name: str, x: Value, y: Value) -> Value:
        """The output of layer `name`, which maps x to y."""
        return y

    def keys_and_values(self, net, k: Value, v: Value) -> tuple[Value, Value]:
        return k, v


class OnLayers(Beside):
    """Changes the outputs of some linear layers."""

    def __init__(self, changes: Mapping[str, Change], trains=lambda name: False):
        super().__init__(trains)
        self.changes = changes

    def linear(self, net, name, x, y):
        return self.changes[name](net.tape, net.layers[name], x, y) if name in self.changes else y


class SoftPrompt(Beside):
    """Vectors before the words. make(net) → the vectors, of one text or of each."""

    def __init__(self, virtual_tokens: int, make: Callable):
        super().__init__()
        self.virtual_tokens, self.make = virtual_tokens, make

    def start(self, net, x):
        vectors = net.tape.cast(self.make(net), net.tape.size)
        return net.tape.does(net.tape.value(net.config.hidden_size), x, vectors)


class Prefix(Beside):
    """Keys and values of `tokens` more positions in every block, all from one table of vectors."""

    def __init__(self, config, size: int, num_virtual_tokens: int, prefix_projection: bool, encoder_hidden_size):
        super().__init__()
        self.tokens, self.size, self.masked = num_virtual_tokens, size, has_lm_head(config)
        self.width = _kv_width(config)
        self.hidden = (encoder_hidden_size or self.width) if prefix_projection else None

    def start(self, net, x):
        tape, rows, everything = net.tape, net.tape.batch * self.tokens, 2 * blocks(net.config) * self.width
        if self.hidden is None:
            vectors = looked_up(tape, rows, self.tokens, everything, self.size)
        else:
            vectors = looked_up(tape, rows, self.tokens, self.width, self.size)
            vectors = network(tape, vectors, rows, (self.width, self.hidden, everything), self.size)
        self.vectors = tape.cast(vectors, tape.size)
        return x

    def keys_and_values(self, net, k, v):
        more = net.tape.batch * self.tokens * self.width
        longer = [net.tape.does(Value(y.numel + more, y.size), self.vectors, y) for y in (k, v)]
        return longer[0], longer[1]


class SpecialTokens(Beside):
    """PASTA: vectors of `kinds` special tokens, added to what goes into each block."""

    def __init__(self, kinds: int):
        super().__init__()
        self.kinds = kinds

    def enter(self, net, x):
        tape, d, first = net.tape, net.config.hidden_size, len(net.tape.segments) == 2
        vectors = [Parameter((blocks(net.config), self.kinds, d), tape.size)]
        added = tape.does(tape.value(d), kept=(tape.value(self.kinds),), trained=vectors if first else ())
        added.grad = True
        return tape.add(x, added)


class Ladder(Beside):
    """Ladder side-tuning: the model's hidden states are looked at; all that trains is a narrow network beside it."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.seen = width, []

    def enter(self, net, x):
        self.seen.append(x)
        return x

    def end(self, net, x):
        tape, width = net.tape, self.width
        state = self._linear(tape, self.seen[0], width)
        for index, seen in enumerate([*self.seen[1:], x]):
            down = self._linear(tape, seen, width)
            gates = [Parameter((len(self.seen),), tape.size)] if index == 0 else []
            mixed = tape.does(tape.value(width), down, state, kept=(down, state), trained=gates, scratch=down.bytes)
            h = tape.add(mixed, self._attention(net, self._norm(tape, mixed)))
            inner = self._linear(tape, self._norm(tape, h), 4 * width)
            state = tape.add(h, self._linear(tape, tape.activation(inner), width))
        return self._linear(tape, self._norm(tape, state), net.config.hidden_size)

    def _attention(self, net, x: Value) -> Value:
        tape, heads = net.tape, _heads(net.config, self.width)
        packed = tape.copy(self._linear(tape, x, 3 * self.width))
        out, sums = tape.value(self.width), Value(heads * tape.tokens, FP32)
        # Who may look at whom is written out for each head.
        mask = Value(heads * tape.tokens * tape.length, tape.size)
        tape.does(out, packed, kept=(packed, mask, out, sums))
        return self._linear(tape, out, self.width)

    @staticmethod
    def _linear(tape, x: Value, width: int) -> Value:
        weight, bias = Parameter((width, tape.width(x)), tape.size), Parameter((width,), tape.size)
        return tape.matmul(x, width, [weight], [bias])

    @staticmethod
    def _norm(tape, x: Value) -> Value:
        trained = 2 * [Parameter((tape.width(x),), tape.size)]
        return tape.does(Value(x.numel, x.size), x, kept=(x, Value(2 * tape.tokens, FP32)), trained=trained)


def looked_up(tape, rows: int, entries: int, width: int, size: int) -> Value:
    """`rows` vectors out of a trained table of `entries`."""
    return tape.does(Value(rows * width, size), trained=[Parameter((entries, width), size)])


def network(tape, x: Value, rows: int, widths: tuple[int, ...], size: int) -> Value:
    """Linear layers between these widths, with an activation function between them that is derived from its output."""
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        trained = [Parameter((outputs, inputs), size), Parameter((outputs,), size)]
        x = tape.does(Value(rows * outputs, size), x, kept=(x,), trained=trained)
        if index < len(widths) - 2:
            x = tape.copy(x)
    return x


def _on(found: Mapping[str, Linear], change: Change, trains=lambda name: False) -> Beside:
    return OnLayers(dict.fromkeys(found, change), trains)


def _chosen(config, method: str, h: dict) -> dict[str, Linear]:
    """The layers that a method of peft works on."""
    found = targets(config, h["target_modules"], defaults(f"{method}_target"))
    return without_saved(found, h.get("modules_to_save"))


def _lora(config, size: int, *, use_dora=False, bias="none", lora_bias=False, lora_dropout=0.0, **h) -> Beside:
    found = _chosen(config, "lora", h)
    change = changes.low_rank(h["r"], size, lora_bias, lora_dropout)
    if use_dora:
        change = changes.dora(h["r"], size, uses_conv1d(config), lora_dropout)
    own = {f"{name}.bias" for name in found}
    return _on(found, change, lambda name: _is_bias(name) and (bias == "all" or (bias == "lora_only" and name in own)))


def _ia3(config, size: int, *, target_modules, feedforward_modules, **h) -> Beside:
    found, inner = _ia3_targets(config, target_modules, feedforward_modules)
    return OnLayers({name: changes.scaled(name in inner, size) for name in found})


def _adapter(config, size: int, *, bottleneck_size, placement, train_norms) -> Beside:
    norms = _norms_train(placement, train_norms)
    found = dict.fromkeys(_adapted(config, placement))
    return _on(
        found, changes.bottleneck(bottleneck_size), lambda name: norms and block(name) is not None and is_norm(name)
    )


def _loha(config, size: int, *, r, **h) -> Beside:
    def parts(layer: Linear):
        return 2 * [(layer.outputs, r), (r, layer.inputs)]

    return _on(_chosen(config, "loha", h), changes.whole_change(size, parts, lambda layer: 0))


def _lokr(config, size: int, *, r, decompose_both, decompose_factor, **h) -> Beside:
    def parts(layer: Linear):
        return lokr_parts(layer, r, decompose_both, decompose_factor)

    def kept(layer: Linear) -> int:
        # The first factor, scaled.
        return factors(layer.inputs, decompose_factor)[0] * factors(layer.outputs, decompose_factor)[0]

    return _on(_chosen(config, "lokr", h), changes.whole_change(size, parts, kept))


def _vera_beside(config, size: int, *, r, **h) -> Beside:
    found = _chosen(config, "vera", h)
    beside = _on(found, changes.vera(r, size))
    shared = max(layer.inputs for layer in found.values()) + max(layer.outputs for layer in found.values())
    beside.frozen_bytes = size * r * shared
    return beside


def _oft(config, size: int, *, r, oft_block_size, block_share, **h) -> Beside:
    def shape(layer: Linear):
        return oft_rotations(layer, r, oft_block_size, block_share)

    return _on(
        _chosen(config, "oft", h), changes.rotated(lambda layer: oft_block(layer, r, oft_block_size), shape, size)
    )


def _prompt(config, size: int, *, num_virtual_tokens, **h) -> Beside:
    def make(net) -> Value:
        return looked_up(net.tape, num_virtual_tokens, num_virtual_tokens, config.hidden_size, size)

    return SoftPrompt(num_virtual_tokens, make)


def _p_tuning(
    config, size: int, *, num_virtual_tokens, encoder_reparameterization_type, encoder_hidden_size, **h
) -> Beside:
    if encoder_reparameterization_type != "MLP":
        raise ValueError("The activations of p_tuning's LSTM are not written down: take the MLP, or trace the model.")
    d, hidden = config.hidden_size, encoder_hidden_size or config.hidden_size

    def make(net) -> Value:
        vectors = looked_up(net.tape, num_virtual_tokens, num_virtual_tokens, d, size)
        return network(net.tape, vectors, num_virtual_tokens, (d, hidden, hidden, d), size)

    return SoftPrompt(num_virtual_tokens, make)


def _multitask(config, size: int, *, num_virtual_tokens, num_tasks, num_ranks, **h) -> Beside:
    d = config.hidden_size
    task = [Parameter((num_tasks, num_virtual_tokens, num_ranks), size), Parameter((num_tasks, num_ranks, d), size)]

    def make(net) -> Value:
        rows = net.tape.batch * num_virtual_tokens
        shared = looked_up(net.tape, rows, num_virtual_tokens, d, size)
        of_task = net.tape.does(Value(rows * d, size), trained=task)
        return net.tape.product(shared, of_task)

    return SoftPrompt(num_virtual_tokens, make)


def _prefix(config, size: int, **h) -> Beside:
    return Prefix(config, size, **h)


def _pasta(config, size: int, *, special_token_ids) -> Beside:
    return SpecialTokens(len(_special_ids(config, special_token_ids)))


def _ladder(config, size: int, *, reduction_factor, **h) -> Beside:
    return Ladder(config.hidden_size // reduction_factor)


def _lt_sft(config, size: int, *, density, target_modules, **h) -> Beside:
    found = targets(config, target_modules)
    shares = _shares({name: layer.weights for name, layer in found.items()}, _entries(config, density, target_modules))
    beside = OnLayers({name: changes.remade([(shares[name],)], copies=0, places=shares[name]) for name in found})
    beside.frozen_bytes = 4 * sum(shares.values())
    return beside


def _diff_pruning(config, size: int, *, target_modules, **h) -> Beside:
    found = targets(config, target_modules)
    return OnLayers({n: changes.remade([_matrix(config, layer)] * 2 + [(1,)], copies=4) for n, layer in found.items()})


def _masked(config, size: int, *, target_modules, **h) -> Beside:
    found = targets(config, target_modules)
    return OnLayers({name: changes.remade([_matrix(config, layer)], copies=0) for name, layer in found.items()})


def _matrix(config, layer: Linear) -> tuple[int, int]:
    return (layer.inputs, layer.outputs) if uses_conv1d(config) else (layer.outputs, layer.inputs)


def _selective(wanted: Callable) -> Callable:
    return lambda config, size, **h: Beside(wanted(config, **h))


# (config, bytes of a number in the method's own parameters, **all hyper-parameters) → Beside.
BESIDE = {
    "full": _selective(lambda config: lambda name: True),
    "feature_based": _selective(lambda config: lambda name: False),
    "last_layers": _selective(lambda config, num_layers: _in_last(num_layers, blocks(config))),
    "bitfit": _selective(lambda config: _is_bias),
    "lora": _lora,
    "qlora": _lora,
    "dora": lambda config, size, **h: _lora(config, size, use_dora=True, **h),
    "adalora": lambda config, size, **h: _on(_chosen(config, "adalora", h), changes.adalora(h["init_r"], size)),
    "dylora": lambda config, size, **h: _on(_chosen(config, "lora", h), changes.nested(h["r"], size)),
    "krona": lambda config, size, **h: _on(_chosen(config, "lora", h), changes.kronecker(h["decompose_factor"])),
    "loha": _loha,
    "lokr": _lokr,
    "vera": _vera_beside,
    "oft": _oft,
    "ia3": _ia3,
    "adapter": _adapter,
    "prompt_tuning": _prompt,
    "p_tuning": _p_tuning,
    "multitask_prompt_tuning": _multitask,
    "prefix_tuning": _prefix,
    "pasta": _pasta,
    "ladder_side_tuning": _ladder,
    "lt_sft": _lt_sft,
    "diff_pruning": _diff_pruning,
    "threshold_mask": _masked,
}
