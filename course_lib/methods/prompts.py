"""Additive methods that add vectors instead of layers: soft prompts in the input, prefixes in every attention.

All are peft's. Their sizes follow the width of the embeddings, or for prefixes that of keys and values.
"""

from course_lib.errors import unknown
from course_lib.methods import METHODS, Method, Paper
from course_lib.methods.shapes import blocks, head_dim
from course_lib.methods.targets import check_positive
from course_lib.methods.with_peft import wrap

import torch


def _virtual(config, num_virtual_tokens: int) -> int:
    """Virtual tokens in all: an encoder–decoder has its own for each half."""
    return num_virtual_tokens * (2 if config.is_encoder_decoder else 1)


def _kv_width(config) -> int:
    """Width of the keys of one layer: with grouped-query attention less than that of the model."""
    heads = getattr(config, "num_key_value_heads", None)
    return heads * head_dim(config) if heads else config.hidden_size


def _count_prompt(config, *, num_virtual_tokens: int = 20) -> int:
    check_positive(num_virtual_tokens=num_virtual_tokens)
    _check_room(config, num_virtual_tokens)
    return _virtual(config, num_virtual_tokens) * config.hidden_size


def _check_room(config, num_virtual_tokens: int) -> None:
    room = getattr(config, "max_position_embeddings", None)
    if room is not None and num_virtual_tokens >= room:
        raise ValueError(
            f"num_virtual_tokens={num_virtual_tokens} leaves no place for text: this model has {room} positions."
        )


ENCODERS = ("MLP", "LSTM")


def _count_p_tuning(
    config,
    *,
    num_virtual_tokens: int = 20,
    encoder_reparameterization_type: str = "MLP",
    encoder_hidden_size: int | None = None,
    encoder_num_layers: int = 2,
    encoder_dropout: float = 0.0,
) -> int:
    d = config.hidden_size
    h = d if encoder_hidden_size is None else encoder_hidden_size
    check_positive(encoder_hidden_size=h, encoder_num_layers=encoder_num_layers)
    embedding = _count_prompt(config, num_virtual_tokens=num_virtual_tokens)
    if not 0 <= encoder_dropout < 1:
        raise ValueError(f"encoder_dropout must be at least 0 and below 1; got {encoder_dropout}.")
    if encoder_reparameterization_type not in ENCODERS:
        raise unknown("encoder_reparameterization_type", encoder_reparameterization_type, ENCODERS)
    if encoder_reparameterization_type == "MLP":
        if encoder_num_layers != 2:
            raise ValueError("encoder_num_layers is for the LSTM: peft's MLP has a fixed depth. Leave it at 2.")
        return embedding + (d * h + h) + (h * h + h) + (h * d + d)
    # An LSTM direction has four gates, each with weights for input and state and two biases.
    inputs = [d] + [2 * h] * (encoder_num_layers - 1)
    lstm = sum(2 * 4 * h * (width + h + 2) for width in inputs)
    return embedding + lstm + (2 * h * 2 * h + 2 * h) + (2 * h * d + d)


def _count_prefix(
    config, *, num_virtual_tokens: int = 20, prefix_projection: bool = False, encoder_hidden_size: int | None = None
) -> int:
    check_positive(num_virtual_tokens=num_virtual_tokens)
    _check_room(config, num_virtual_tokens)
    if config.model_type == "distilbert":
        raise ValueError("Prefix tuning hands keys and values to the attention, and DistilBERT's takes none.")
    width = _kv_width(config)
    per_token = 2 * blocks(config) * width
    if not prefix_projection:
        return num_virtual_tokens * per_token
    h = width if encoder_hidden_size is None else encoder_hidden_size
    check_positive(encoder_hidden_size=h)
    return num_virtual_tokens * width + (width * h + h) + (h * per_token + per_token)


def _count_multitask(config, *, num_virtual_tokens: int = 20, num_tasks: int = 1, num_ranks: int = 1) -> int:
    check_positive(num_tasks=num_tasks, num_ranks=num_ranks)
    shared = _count_prompt(config, num_virtual_tokens=num_virtual_tokens)
    tokens = _virtual(config, num_virtual_tokens)
    return shared + num_tasks * num_ranks * (tokens + config.hidden_size)


def _build(config_name: str):
    def build(model, **hparams):
        config = model.config
        # peft looks these up in the config too, under fewer names than there are.
        sizes = {"token_dim": config.hidden_size, "num_attention_heads": config.num_attention_heads}
        return wrap(model, config_name, num_layers=blocks(config), **sizes, **hparams)

    return build


def _build_multitask(model, **hparams):
    wrapped = _build("MultitaskPromptTuningConfig")(model, **hparams)
    serve_one_task(wrapped)
    return wrapped


def serve_one_task(wrapped) -> None:
    """Let a multitask prompt be that of task 0 where no task is named: peft hands task_ids on for language models only.

    Does nothing to a model with another method.
    """
    if wrapped.active_peft_config.peft_type != "MULTITASK_PROMPT_TUNING":
        return
    inner = wrapped.get_prompt

    def get_prompt(batch_size, task_ids=None, **rest):
        if task_ids is None:
            task_ids = torch.zeros(batch_size, dtype=torch.long, device=wrapped.device)
        return inner(batch_size, task_ids, **rest)

    wrapped.get_prompt = get_prompt


def start_from_text(wrapped, tokenizer, text: str) -> None:
    """Let the vectors of a prefix or a soft prompt start as what the model makes of a text, repeated until it is long
    enough: keys and values of its first tokens, or their embeddings.

    Raises ValueError for other methods, for what goes through an encoder, and for a text without tokens.
    """
    config = wrapped.active_peft_config
    kind = config.peft_type.value
    if kind not in ("PREFIX_TUNING", "PROMPT_TUNING") or getattr(config, "prefix_projection", False):
        raise ValueError("Only prefixes without projection and plain soft prompts can start from a text.")
    ids = tokenizer(text)["input_ids"]
    if not ids:
        raise ValueError("The text to start from has no tokens.")
    ids = (ids * config.num_virtual_tokens)[: config.num_virtual_tokens]
    if kind == "PROMPT_TUNING":
        embedded = wrapped.word_embeddings(torch.tensor(ids, device=wrapped.device))
        wrapped.prompt_encoder[wrapped.active_adapter].embedding.weight.data.copy_(embedded)
        return
    from peft import initialize_kv_prefix_from_past_key_values

    with torch.no_grad(), wrapped.disable_adapter():
        read = wrapped(input_ids=torch.tensor([ids], device=wrapped.device), use_cache=True)
    initialize_kv_prefix_from_past_key_values(wrapped, past_key_values=read.past_key_values)


def _prompt_bytes(config, *, num_virtual_tokens, **_) -> int:
    """The vectors that the encoder gives at the end; the encoder itself is dropped."""
    return 4 * _virtual(config, num_virtual_tokens) * config.hidden_size


def _prefix_bytes(config, *, num_virtual_tokens, **_) -> int:
    return 4 * num_virtual_tokens * 2 * blocks(config) * _kv_width(config)


METHODS.add(
    Method(
        name="prompt_tuning",
        title="Prompt tuning",
        family="additive",
        paper=Paper("The Power of Scale for Parameter-Efficient Prompt Tuning", "2104.08691"),
        formula=r"X' = [\,P;\, X\,],\quad P \in \mathbb{R}^{n \times d}",
        words="vectors before the embeddings of the text",
        mergeable=False,
        lesson="05_prefix_tuning",
        build=_build("PromptTuningConfig"),
        counter=_count_prompt,
    )
)
METHODS.add(
    Method(
        name="p_tuning",
        title="P-tuning",
        family="additive",
        paper=Paper("GPT Understands, Too", "2103.10385"),
        formula=r"X' = [\,g_\phi(P);\, X\,]",
        words="vectors before the embeddings, made by a small network that is dropped after training",
        mergeable=False,
        lesson="05_prefix_tuning",
        build=_build("PromptEncoderConfig"),
        counter=_count_p_tuning,
        stored=_prompt_bytes,
    )
)
METHODS.add(
    Method(
        name="prefix_tuning",
        title="Prefix tuning",
        family="additive",
        paper=Paper("Prefix-Tuning: Optimizing Continuous Prompts for Generation", "2101.00190"),
        formula=r"\mathrm{Att}(Q,\, [P_K; K],\, [P_V; V])\ \text{in every layer}",
        words="keys and values in every block, for all tokens to attend to",
        mergeable=False,
        lesson="05_prefix_tuning",
        build=lambda model, **hparams: wrap(model, "PrefixTuningConfig", **hparams),
        counter=_count_prefix,
        stored=_prefix_bytes,
    )
)
METHODS.add(
    Method(
        name="multitask_prompt_tuning",
        title="Multitask prompt tuning",
        family="additive",
        paper=Paper("Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning", "2303.02861"),
        formula=r"X' = [\,P \odot (u_t v_t^\top);\, X\,]",
        words="a prompt that tasks share, scaled for each by a matrix of rank one",
        mergeable=False,
        lesson="05_prefix_tuning",
        build=_build_multitask,
        counter=_count_multitask,
    )
)
