"""Additive methods that add layers: bottleneck adapters, a side network, vectors for special tokens, (IA)³'s scales."""

import math

from course_lib.errors import unknown
from course_lib.methods import METHODS, Method, Paper
from course_lib.methods.selective import train_only
from course_lib.methods.shapes import block, blocks, is_norm, linears, parameter_shapes, size
from course_lib.methods.targets import Modules, check_positive, saved, targets, without_saved
from course_lib.methods.with_peft import defaults, wrap

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

PLACEMENTS = ("houlsby", "pfeiffer")
# Where a sub-layer's output comes back to the model's width: of attention, and of the feed-forward network.
_SUBLAYERS = {
    "bert": (("attention.output.dense",), ("output.dense",)),
    "roberta": (("attention.output.dense",), ("output.dense",)),
    "distilbert": (("attention.out_lin",), ("ffn.lin2",)),
    "t5": (("SelfAttention.o", "EncDecAttention.o"), ("DenseReluDense.wo",)),
    "gpt2": (("attn.c_proj",), ("mlp.c_proj",)),
}
_DEFAULT_SUBLAYERS = (("self_attn.o_proj",), ("mlp.down_proj",))


class BottleneckAdapter(nn.Module):
    """A sub-layer's last projection, and on its output h + W_up ReLU(W_down h).

    W_up starts at zero, so that the model starts unchanged. Arguments: the projection, its output width, the
    bottleneck's width.
    """

    def __init__(self, base: nn.Module, width: int, bottleneck: int):
        super().__init__()
        self.base = base
        self.down = nn.Linear(width, bottleneck).to(base.weight)
        self.up = nn.Linear(bottleneck, width).to(base.weight)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.base(x)
        return h + self.up(torch.relu(self.down(h)))


def _adapted(config, placement: str) -> list[str]:
    """Names of the projections that get an adapter: of both sub-layers (arXiv 1902.00751, section 2.1), or of the
    feed-forward network alone (arXiv 2005.00247; there it stands behind residual and norm, here before them)."""
    if placement not in PLACEMENTS:
        raise unknown("placement", placement, PLACEMENTS)
    attention, feedforward = _SUBLAYERS.get(config.model_type, _DEFAULT_SUBLAYERS)

    def wanted(name: str) -> bool:
        after = any(name.endswith(f".{end}") for end in attention)
        return placement == "houlsby" if after else any(name.endswith(f".{end}") for end in feedforward)

    return [name for name in linears(config) if block(name) is not None and wanted(name)]


def _norms_train(placement: str, train_norms: bool | None) -> bool:
    return placement == "houlsby" if train_norms is None else train_norms


def _count_adapter(
    config, *, bottleneck_size: int = 64, placement: str = "houlsby", train_norms: bool | None = None
) -> int:
    check_positive(bottleneck_size=bottleneck_size)
    if train_norms not in (None, True, False):
        raise ValueError(
            f"train_norms must be True, False, or None for what the placement's paper does; got {train_norms!r}."
        )
    adapted, d = _adapted(config, placement), config.hidden_size
    if bottleneck_size >= d:
        raise ValueError(f"bottleneck_size={bottleneck_size} is no bottleneck: it must be less than {d}, the width.")
    count = len(adapted) * (2 * d * bottleneck_size + bottleneck_size + d)
    if _norms_train(placement, train_norms):
        shapes = parameter_shapes(config).items()
        count += sum(size(shape) for name, shape in shapes if block(name) is not None and is_norm(name))
    return count


def _build_adapter(model, *, bottleneck_size, placement, train_norms):
    norms = _norms_train(placement, train_norms)
    train_only(model, lambda name: norms and block(name) is not None and is_norm(name))
    for name in _adapted(model.config, placement):
        base = model.get_submodule(name)
        model.set_submodule(name, BottleneckAdapter(base, model.config.hidden_size, bottleneck_size))
    return model


class LadderSideTuned(nn.Module):
    """A frozen model that only looks, and a small trained network beside it (arXiv 2206.06522, section 3).

    Side block i reads μ_i · down_i(h_i) + (1 − μ_i) · its predecessor's output, with h_i the model's own hidden state
    and μ_i = σ(gate_i / temperature). No gradient enters the model. The side blocks are plain pre-norm transformer
    blocks without dropout and with random weights; the paper prunes them out of the model.
    """

    def __init__(self, backbone: nn.Module, reduction_factor: int, temperature: float):
        super().__init__()
        config = backbone.config
        self.backbone, self.config, self.temperature = backbone.requires_grad_(False), config, temperature
        d, layers = config.hidden_size, blocks(config)
        width = d // reduction_factor
        self.down = nn.ModuleList(nn.Linear(d, width) for _ in range(layers + 1))
        self.side = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, _heads(config, width), 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.gate = nn.Parameter(torch.zeros(layers))
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, d)
        self.to(device=backbone.device, dtype=backbone.dtype)

    @property
    def device(self) -> torch.device:
        return self.gate.device

    def _hidden_from(self, input_ids, attention_mask, causal: bool) -> torch.Tensor:
        """What each token must not look at, (batch · heads, length, length); every token may look at itself."""
        rows, length = input_ids.shape
        seen = torch.ones(rows, length, length, dtype=torch.bool, device=input_ids.device)
        if attention_mask is not None:
            seen &= attention_mask.bool().unsqueeze(1)
        if causal:
            seen = seen.tril()
        seen |= torch.eye(length, dtype=torch.bool, device=seen.device)
        return ~seen.repeat_interleave(self.side[0].self_attn.num_heads, dim=0)

    def forward(self, input_ids, attention_mask=None, labels=None, output_hidden_states=True):
        head = self.backbone.get_output_embeddings()
        trunk = self.backbone if head is None else self.backbone.base_model
        with torch.no_grad():
            seen = trunk(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        hidden = self._hidden_from(input_ids, attention_mask, causal=head is not None)
        state = self.down[0](seen[0])
        for i, layer in enumerate(self.side):
            share = torch.sigmoid(self.gate[i] / self.temperature)
            state = layer(share * self.down[i + 1](seen[i + 1]) + (1 - share) * state, src_mask=hidden)
        state = self.up(self.norm(state))
        if head is None:
            return BaseModelOutput(last_hidden_state=state, hidden_states=seen)
        logits = head(state)
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = self.backbone.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits)


def _heads(config, width: int) -> int:
    """As many heads as the model has, or the most that divide the side network's width."""
    return math.gcd(config.num_attention_heads, width)


def _one_stack(config, method: str) -> None:
    if config.is_encoder_decoder:
        raise ValueError(f"{method} is built here for one stack of blocks; {config.model_type} has two.")


def _count_ladder(config, *, reduction_factor: int = 8, temperature: float = 0.1) -> int:
    _one_stack(config, "Ladder side-tuning")
    check_positive(reduction_factor=reduction_factor)
    d, layers = config.hidden_size, blocks(config)
    if d // reduction_factor < 1:
        raise ValueError(f"reduction_factor={reduction_factor} leaves no side network: it must be {d} or less.")
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0; got {temperature}.")
    w = d // reduction_factor
    # A block has 12 w² weights and 13 w biases and norms; ladders go down, one more than blocks; norm, and one goes up.
    return layers * (12 * w * w + 13 * w) + (layers + 1) * (d * w + w) + layers + 2 * w + (w * d + d)


class SpecialTokenVectors(nn.Module):
    """Vectors (blocks, kinds, width) that are added to the hidden states of the special tokens before each block
    (arXiv 2210.04382). One for each kind of token; the authors tell the first separator from the second, too."""

    def __init__(self, layers: int, ids: tuple[int, ...], like: torch.Tensor):
        super().__init__()
        self.vectors = nn.Parameter(like.new_zeros(layers, len(ids), like.shape[-1]))
        self.register_buffer("ids", torch.tensor(ids, device=like.device))

    def see(self, module, args, kwargs) -> None:
        """Forward hook of the model: where the special tokens stand, (batch, length, kinds)."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        self.places = ids.unsqueeze(-1) == self.ids

    def add_to(self, layer: int):
        """Forward hook of one block."""

        def hook(module, args, kwargs):
            added = self.places.to(self.vectors.dtype) @ self.vectors[layer]
            if args:
                return (args[0] + added, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": kwargs["hidden_states"] + added}

        return hook


def _special_ids(config, given: tuple[int, ...] | None) -> tuple[int, ...]:
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
    ids = given if given is not None else [getattr(config, name, None) for name in names]
    # Some models have several tokens that end a text.
    flat = [token for entry in ids for token in (entry if isinstance(entry, list) else [entry])]
    ids = tuple(dict.fromkeys(token for token in flat if token is not None))
    if not ids:
        raise ValueError("This config names no special tokens: give special_token_ids=(…), from the tokenizer.")
    for token in ids:
        if not isinstance(token, int) or not 0 <= token < config.vocab_size:
            raise ValueError(f"special_token_ids must be whole numbers in 0..{config.vocab_size - 1}; got {token}.")
    return ids


def _count_pasta(config, *, special_token_ids: tuple[int, ...] | None = None) -> int:
    _one_stack(config, "PASTA")
    return blocks(config) * len(_special_ids(config, special_token_ids)) * config.hidden_size


def _build_pasta(model, *, special_token_ids):
    model.requires_grad_(False)
    ids = _special_ids(model.config, special_token_ids)
    added = SpecialTokenVectors(blocks(model.config), ids, model.get_input_embeddings().weight)
    model.add_module("special_token_vectors", added)
    model.register_forward_pre_hook(added.see, with_kwargs=True)
    paths = dict.fromkeys(
        ".".join(name.split(".")[: _block_depth(name)]) for name in linears(model.config) if block(name) is not None
    )
    for layer, path in enumerate(paths):
        model.get_submodule(path).register_forward_pre_hook(added.add_to(layer), with_kwargs=True)
    return model


def _block_depth(name: str) -> int:
    """How many parts of a module's name lead to its block: up to the first number."""
    return 1 + next(i for i, part in enumerate(name.split(".")) if part.isdigit())


def _ia3_targets(config, target_modules: Modules, feedforward_modules: Modules):
    if (target_modules is None) != (feedforward_modules is None):
        raise ValueError("Give both target_modules and feedforward_modules, or neither; feedforward_modules may be [].")
    found = targets(config, target_modules, defaults("ia3_target"))
    if feedforward_modules is None:
        return found, targets(config, None, defaults("ia3_feedforward"))
    if not isinstance(feedforward_modules, str) and not list(feedforward_modules):
        return found, {}
    inner = targets(config, feedforward_modules)
    stray = sorted(set(inner) - set(found))
    if stray:
        raise ValueError(f"feedforward_modules must be among target_modules; {stray[0]} is not.")
    return found, inner


def _count_ia3(
    config,
    *,
    target_modules: Modules = None,
    feedforward_modules: Modules = None,
    init_ia3_weights: bool = True,
    modules_to_save=None,
) -> int:
    found, inner = _ia3_targets(config, target_modules, feedforward_modules)
    found = without_saved(found, modules_to_save)
    # Attention is scaled where it comes out, the feed-forward network where it goes in.
    scales = sum(layer.inputs if name in inner else layer.outputs for name, layer in found.items())
    return scales + saved(config, modules_to_save)


def _build_ia3(model, *, target_modules, feedforward_modules, **hparams):
    found, inner = _ia3_targets(model.config, target_modules, feedforward_modules)
    # By their full names: peft's own match of feedforward_modules takes parts of words.
    return wrap(model, "IA3Config", target_modules=list(found), feedforward_modules=list(inner), **hparams)


METHODS.add(
    Method(
        name="adapter",
        title="Bottleneck adapter",
        family="additive",
        paper=Paper("Parameter-Efficient Transfer Learning for NLP", "1902.00751"),
        formula=r"h' = h + W_\mathrm{up}\,\sigma(W_\mathrm{down} h)",
        words="small networks after the sublayers: down, nonlinearity, up, added to what came in",
        mergeable=False,
        lesson="02_peft_taxonomy",
        build=_build_adapter,
        counter=_count_adapter,
    )
)
METHODS.add(
    Method(
        name="ladder_side_tuning",
        title="Ladder side-tuning",
        family="additive",
        paper=Paper("LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", "2206.06522"),
        formula=r"s_i = f_i(\mu_i\, D_i h_i + (1 - \mu_i)\, s_{i-1})",
        words="a small network beside the model reads its states, block by block",
        mergeable=False,
        lesson="02_peft_taxonomy",
        build=lambda model, **hparams: LadderSideTuned(model, **hparams),
        counter=_count_ladder,
    )
)
METHODS.add(
    Method(
        name="pasta",
        title="PASTA",
        family="additive",
        paper=Paper("Parameter-Efficient Tuning with Special Token Adaptation", "2210.04382"),
        formula=r"h^{(l)}_p \mathrel{+}= v^{(l)}_p\ \text{for special tokens}\ p",
        words="vectors added to the states of special tokens in each block",
        mergeable=False,
        lesson="02_peft_taxonomy",
        build=_build_pasta,
        counter=_count_pasta,
    )
)
METHODS.add(
    Method(
        name="ia3",
        title="(IA)³",
        family="additive",
        paper=Paper(
            "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", "2205.05638"
        ),
        formula=r"k' = l_k \odot k,\quad v' = l_v \odot v,\quad u' = l_\mathrm{ff} \odot u",
        words="scales for keys, values and the feed-forward's inner units",
        mergeable=True,
        lesson="02_peft_taxonomy",
        build=_build_ia3,
        counter=_count_ia3,
        undecayed=("ia3_l",),
    )
)
