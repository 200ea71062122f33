"""Every parameter of an architecture, by name and shape, from its config alone.

Closed-form counts are sums over this table. It never builds a model; tests hold it against the real ones.
"""

import math
import re

from course_lib.errors import unknown

Shapes = dict[str, tuple[int, ...]]

_BLOCK = re.compile(r"(?:^|\.)(?:layer|layers|h)\.(\d+)\.")


def block(name: str) -> int | None:
    """The index of the transformer block that a parameter belongs to; None outside the blocks."""
    found = _BLOCK.search(name)
    return int(found.group(1)) if found else None


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


def _llama(c) -> Shapes:
    d, f = c.hidden_size, c.intermediate_size
    head = getattr(c, "head_dim", None) or d // c.num_attention_heads
    queries, keys = c.num_attention_heads * head, c.num_key_value_heads * head
    bias = getattr(c, "attention_bias", c.model_type == "qwen2")
    table = {"model.embed_tokens.weight": (c.vocab_size, d)}
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        table |= _linear(f"{at}.self_attn.q_proj", queries, d, bias)
        table |= _linear(f"{at}.self_attn.k_proj", keys, d, bias) | _linear(f"{at}.self_attn.v_proj", keys, d, bias)
        table |= _linear(f"{at}.self_attn.o_proj", d, queries, bias and c.model_type != "qwen2")
        table |= _linear(f"{at}.mlp.gate_proj", f, d, False) | _linear(f"{at}.mlp.up_proj", f, d, False)
        table |= _linear(f"{at}.mlp.down_proj", d, f, False)
        table |= {f"{at}.{norm}.weight": (d,) for norm in ("input_layernorm", "post_attention_layernorm")}
    table["model.norm.weight"] = (d,)
    return table if c.tie_word_embeddings else table | {"lm_head.weight": (c.vocab_size, d)}


_FAMILIES = {
    "bert": _bert,
    "roberta": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
}


def parameter_shapes(config) -> Shapes:
    """Name → shape of every parameter of the model that `config` describes (tied weights once).

    Raises ValueError for a `model_type` whose shapes are not written down here.
    """
    if config.model_type not in _FAMILIES:
        raise unknown("model type", config.model_type, _FAMILIES)
    return _FAMILIES[config.model_type](config)


def blocks(config) -> int:
    """Number of transformer blocks."""
    return 1 + max(i for i in map(block, parameter_shapes(config)) if i is not None)
