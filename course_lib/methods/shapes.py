"""Every parameter of an architecture, by name and shape, from its config alone.

Closed-form counts are sums over this table. It never builds a model; tests hold it against the real ones.
"""

import math
import re
from typing import NamedTuple

from course_lib.errors import unknown

Shapes = dict[str, tuple[int, ...]]

# T5's blocks hold sub-layers that are called "layer" too: the first match is the block.
_BLOCK = re.compile(r"(?:^|\.)(?:block|layer|layers|h)\.(\d+)(?:\.|$)")
_EMBEDDINGS = ("embed", "wte", "wpe", "shared", "relative_attention_bias")


def block(name: str) -> int | None:
    """The index of the transformer block that a parameter belongs to; None outside the blocks."""
    found = _BLOCK.search(name)
    return int(found.group(1)) if found else None


def is_embedding(name: str) -> bool:
    """Whether a parameter is a table that rows are looked up in."""
    return any(part in name for part in _EMBEDDINGS)


def is_norm(name: str) -> bool:
    """Whether a parameter belongs to a layer norm."""
    return "norm" in name.lower() or ".ln_" in name


def size(shape: tuple[int, ...]) -> int:
    """Number of entries of a tensor of this shape."""
    return math.prod(shape)


def _linear(name: str, out: int, inp: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, inp)} | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _bert(c) -> Shapes:
    d, f = c.hidden_size, c.intermediate_size
    table = {
        "embeddings.word_embeddings.weight": (c.vocab_size, d),
        "embeddings.position_embeddings.weight": (c.max_position_embeddings, d),
        "embeddings.token_type_embeddings.weight": (c.type_vocab_size, d),
        **_norm("embeddings.LayerNorm", d),
    }
    for i in range(c.num_hidden_layers):
        at = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            table |= _linear(f"{at}.attention.self.{part}", d, d)
        table |= _linear(f"{at}.attention.output.dense", d, d) | _norm(f"{at}.attention.output.LayerNorm", d)
        table |= _linear(f"{at}.intermediate.dense", f, d)
        table |= _linear(f"{at}.output.dense", d, f) | _norm(f"{at}.output.LayerNorm", d)
    return table | (_linear("pooler.dense", d, d) if getattr(c, "add_pooling_layer", True) else {})


def _distilbert(c) -> Shapes:
    d, f = c.dim, c.hidden_dim
    table = {
        "embeddings.word_embeddings.weight": (c.vocab_size, d),
        "embeddings.position_embeddings.weight": (c.max_position_embeddings, d),
        **_norm("embeddings.LayerNorm", d),
    }
    for i in range(c.n_layers):
        at = f"transformer.layer.{i}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            table |= _linear(f"{at}.attention.{part}", d, d)
        table |= _linear(f"{at}.ffn.lin1", f, d) | _linear(f"{at}.ffn.lin2", d, f)
        table |= _norm(f"{at}.sa_layer_norm", d) | _norm(f"{at}.output_layer_norm", d)
    return table


def _gpt2(c) -> Shapes:
    d = c.n_embd
    f = c.n_inner or 4 * d
    table = {"transformer.wte.weight": (c.vocab_size, d), "transformer.wpe.weight": (c.n_positions, d)}
    for i in range(c.n_layer):
        at = f"transformer.h.{i}"
        table |= _norm(f"{at}.ln_1", d) | _norm(f"{at}.ln_2", d)
        # GPT-2 stores its projections as Conv1D: (inputs, outputs), with query, key and value fused.
        for part, inp, out in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, f),
            ("mlp.c_proj", f, d),
        ):
            table |= {f"{at}.{part}.weight": (inp, out), f"{at}.{part}.bias": (out,)}
    table |= _norm("transformer.ln_f", d)
    return table if c.tie_word_embeddings else table | {"lm_head.weight": (c.vocab_size, d)}


def head_dim(c) -> int:
    """Width of one attention head."""
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def _llama(c) -> Shapes:
    d, f = c.hidden_size, c.intermediate_size
    queries, keys = c.num_attention_heads * head_dim(c), c.num_key_value_heads * head_dim(c)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if c.model_type == "gemma2":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    bias = getattr(c, "attention_bias", c.model_type == "qwen2")
    table = {"model.embed_tokens.weight": (c.vocab_size, d)}
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        table |= _linear(f"{at}.self_attn.q_proj", queries, d, bias)
        table |= _linear(f"{at}.self_attn.k_proj", keys, d, bias) | _linear(f"{at}.self_attn.v_proj", keys, d, bias)
        table |= _linear(f"{at}.self_attn.o_proj", d, queries, bias and c.model_type != "qwen2")
        table |= _linear(f"{at}.mlp.gate_proj", f, d, False) | _linear(f"{at}.mlp.up_proj", f, d, False)
        table |= _linear(f"{at}.mlp.down_proj", d, f, False)
        table |= {f"{at}.{norm}.weight": (d,) for norm in norms}
    table["model.norm.weight"] = (d,)
    return table if c.tie_word_embeddings else table | {"lm_head.weight": (c.vocab_size, d)}


def _phi3(c) -> Shapes:
    d, f = c.hidden_size, c.intermediate_size
    queries, keys = c.num_attention_heads * head_dim(c), c.num_key_value_heads * head_dim(c)
    table = {"model.embed_tokens.weight": (c.vocab_size, d), "model.norm.weight": (d,)}
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        # Phi-3 fuses query, key and value into one matrix, and gate and up into another.
        table |= _linear(f"{at}.self_attn.qkv_proj", queries + 2 * keys, d, False)
        table |= _linear(f"{at}.self_attn.o_proj", d, queries, False)
        table |= _linear(f"{at}.mlp.gate_up_proj", 2 * f, d, False) | _linear(f"{at}.mlp.down_proj", d, f, False)
        table |= {f"{at}.{norm}.weight": (d,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return table if c.tie_word_embeddings else table | {"lm_head.weight": (c.vocab_size, d)}


def _t5(c) -> Shapes:
    d, f, inner = c.d_model, c.d_ff, c.num_heads * c.d_kv
    table = {"shared.weight": (c.vocab_size, d)}

    def attention(at: str, name: str) -> Shapes:
        parts = {f"{at}.{name}.{part}.weight": (inner, d) for part in ("q", "k", "v")}
        return parts | {f"{at}.{name}.o.weight": (d, inner), f"{at}.layer_norm.weight": (d,)}

    for stack, layers in (("encoder", c.num_layers), ("decoder", c.num_decoder_layers)):
        # The relative positions are learned in each stack's first block and used in all.
        shared = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table[shared] = (c.relative_attention_num_buckets, c.num_heads)
        for i in range(layers):
            at = f"{stack}.block.{i}.layer"
            table |= attention(f"{at}.0", "SelfAttention")
            last = 1
            if stack == "decoder":
                table |= attention(f"{at}.1", "EncDecAttention")
                last = 2
            for part in ("wi_0", "wi_1") if c.is_gated_act else ("wi",):
                table[f"{at}.{last}.DenseReluDense.{part}.weight"] = (f, d)
            table[f"{at}.{last}.DenseReluDense.wo.weight"] = (d, f)
            table[f"{at}.{last}.layer_norm.weight"] = (d,)
        table[f"{stack}.final_layer_norm.weight"] = (d,)
    return table if c.tie_word_embeddings else table | {"lm_head.weight": (c.vocab_size, d)}


_FAMILIES = {
    "bert": _bert,
    "roberta": _bert,
    "distilbert": _distilbert,
    "t5": _t5,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "gemma2": _llama,
    "phi3": _phi3,
}


def parameter_shapes(config) -> Shapes:
    """Name → shape of every parameter of the model that `config` describes (tied weights once).

    Raises ValueError for a `model_type` whose shapes are not written down here.
    """
    if config.model_type not in _FAMILIES:
        raise unknown("model type", config.model_type, _FAMILIES)
    return _FAMILIES[config.model_type](config)


def blocks(config) -> int:
    """Number of transformer blocks; of an encoder–decoder, those of its deeper stack."""
    return 1 + max(i for i in map(block, parameter_shapes(config)) if i is not None)


class Linear(NamedTuple):
    """A linear layer: how many numbers go in and come out."""

    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


def linears(config) -> dict[str, Linear]:
    """Module name → size of every linear layer, GPT-2's Conv1D and the output head included, embeddings not."""
    table = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith(".weight") and len(shape) == 2 and not is_embedding(name):
            out, inp = shape[::-1] if uses_conv1d(config) and name != "lm_head.weight" else shape
            table[name.removesuffix(".weight")] = Linear(inp, out)
    if has_lm_head(config):
        # A tied head has no parameter of its own, and is a layer all the same.
        table["lm_head"] = Linear(config.hidden_size, config.vocab_size)
    return table


def uses_conv1d(config) -> bool:
    """Whether the projections are transformers' Conv1D, whose weight is (inputs, outputs)."""
    return config.model_type == "gpt2"


def has_lm_head(config) -> bool:
    """Whether the course's model of this architecture predicts tokens; the others are bare encoders."""
    return config.model_type not in ("bert", "roberta", "distilbert")
