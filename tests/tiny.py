"""Small random models of every architecture of the course, for tests that train."""

from course_lib import models
from course_lib.models import mean_pool

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

ARCHITECTURES = (
    "minilm-l6", "bert-base-uncased", "roberta-base", "distilbert-base-uncased", "t5-small", "gpt2",
    "llama-3-8b", "llama-3.2-1b", "mistral-7b", "qwen2.5-0.5b", "gemma-2-2b", "phi-3-mini",
)  # fmt: skip
# Rows of 64: bitsandbytes quantizes blocks of that many weights.
_SMALL = {
    "distilbert": {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    | {"dropout_rate": 0.0},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
_USUAL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_SPECIAL = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tiny(name: str, seed: int = 0, **settings):
    """The architecture with two blocks of width 64 and random weights, in training mode; dropout off."""
    config = models.config(name)
    small = dict(_SMALL.get(config.model_type, _USUAL)) | {"vocab_size": 60, "max_position_embeddings": 64}
    if config.model_type in ("bert", "roberta"):
        small |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    elif getattr(config, "num_key_value_heads", None):
        grouped = config.num_key_value_heads < config.num_attention_heads
        small |= {"num_key_value_heads": 2 if grouped else 4}
    if getattr(config, "layer_types", None):
        small["layer_types"] = config.layer_types[:2]
    small |= {key: value for key, value in _SPECIAL.items() if getattr(config, key, None) is not None}
    if getattr(config, "head_dim", None):
        small["head_dim"] = 16
    settings = models.AutoConfig.for_model(**(models._architectures()[name]["config"] | small | settings))
    kind = {"causal-lm": AutoModelForCausalLM, "seq2seq-lm": AutoModelForSeq2SeqLM}
    torch.manual_seed(seed)
    if (chosen := kind.get(models._architectures()[name]["kind"])) is not None:
        return chosen.from_config(settings).train()
    options = {} if getattr(settings, "add_pooling_layer", True) else {"add_pooling_layer": False}
    return AutoModel.from_config(settings, **options).train()


def batch(rows: int = 3, length: int = 7) -> dict[str, torch.Tensor]:
    """Token ids that begin with 1 and end with 2, the last row padded."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (rows, length), generator=draw)
    ids[:, 0], ids[:, -1] = 1, 2
    mask = torch.ones_like(ids)
    ids[-1, -2:], mask[-1, -2:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model says of the real tokens: pooled vectors of an encoder, logits of a language model."""
    mask = rows["attention_mask"]
    if model.config.is_encoder_decoder:
        # peft's multitask prompt for an encoder–decoder shifts the labels itself, and takes no decoder input.
        multitask = getattr(model, "peft_type", None) == "MULTITASK_PROMPT_TUNING"
        target = "labels" if multitask else "decoder_input_ids"
        return model(**rows, **{target: rows["input_ids"]}).logits[:2, -mask.shape[1] :]
    out = model(**rows)
    if getattr(out, "logits", None) is not None:
        return out.logits[:2, -mask.shape[1] :]
    pooled = mean_pool(out.last_hidden_state[:, -mask.shape[1] :], mask)
    # BERT's own pooler sees the first token alone; with both, every parameter matters.
    return pooled if getattr(out, "pooler_output", None) is None else torch.cat([pooled, out.pooler_output])
