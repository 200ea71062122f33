"""The memory of one training step predicted from a config alone, by part: nothing is built, nothing is run.

Sources: ZeRO (arXiv 1910.02054, section 3.1) for weights, gradients and the states of AdamW; the rules of `tape` for
activations.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from course_lib.errors import unknown
from course_lib.memory import formats, optimizers
from course_lib.memory.beside import BESIDE
from course_lib.memory.blocks import ATTENTIONS, Network
from course_lib.memory.tape import ACTIVATIONS, CUDA_BLOCK, FP32, GRADIENTS, LOGITS, WORKSPACE, Replay, Tape, rounded
from course_lib.methods import METHODS
from course_lib.methods.shapes import has_lm_head, parameter_shapes, size
from course_lib.methods.targets import check_positive

WEIGHTS, STATES = "weights", "optimizer states"
PARTS = (WEIGHTS, GRADIENTS, STATES, ACTIVATIONS, LOGITS, WORKSPACE)

# Bytes of optimizer state for each trainable parameter, in fp32.
STATE_BYTES = {"adamw": 8, "sgd": 0, "sgd_momentum": 4, "rmsprop": 4}


def predict(parameters: int, trainable: int, *, bytes_per_weight: int = 4, optimizer: str = "adamw") -> dict[str, int]:
    """Bytes of weights, gradients and optimizer states; activations depend on the batch and are not in it.

    parameters: all of them; trainable: those with a gradient, which has the weights' own type. Raises ValueError
    if more are trainable than there are, KeyError for an optimizer that is not in STATE_BYTES.
    """
    if not 0 <= trainable <= parameters:
        raise ValueError(f"trainable must lie between 0 and {parameters}, the number of parameters; got {trainable}.")
    return {
        WEIGHTS: bytes_per_weight * parameters,
        GRADIENTS: bytes_per_weight * trainable,
        STATES: STATE_BYTES[optimizer] * trainable,
    }


@dataclass(frozen=True)
class Estimate:
    """Bytes of one training step, by part.

    parts: of weights, gradients and optimizer states all that there is in the course of the step; of activations and
    "logits and loss" what is kept between forward and backward pass; of workspace what there is at the peak, or in the
    optimizer's step if that is more. peak: what each part holds at the moment when most is held in all, and `moment` is
    when that is. paged: optimizer states outside PyTorch's allocator.
    """

    parts: dict[str, int]
    peak: dict[str, int]
    moment: str
    paged: int = 0

    @property
    def allocated_peak(self) -> int:
        """What torch.cuda.max_memory_allocated would say, without the workspace of cuBLAS."""
        return sum(self.peak.values())

    @classmethod
    def of_step(cls, *, weights: int, saved: Mapping, gradients: int, peak: Mapping, moment: str, states) -> "Estimate":
        """From what was held between the two passes, at the peak of both (the optimizer's states left out), and what
        the optimizer needs."""
        peak = peak | {STATES: states.on_device}
        update = {WEIGHTS: weights, GRADIENTS: gradients, STATES: states.on_device, WORKSPACE: states.scratch}
        if sum(update.values()) > sum(peak.values()):
            peak, moment = update, "optimizer step"
        parts = update | {part: saved[part] for part in (ACTIVATIONS, LOGITS)}
        parts[WORKSPACE] = max(states.scratch, peak.get(WORKSPACE, 0))
        return cls(*({part: table.get(part, 0) for part in PARTS} for table in (parts, peak)), moment, states.paged)


NO_CHECKPOINTING = {
    "prefix_tuning": "peft hands the prefixes on as a cache, which a second forward pass would fill again",
    "ladder_side_tuning": "the model keeps nothing for its backward pass, since it has none",
}


def estimate(
    config,
    method: str,
    *,
    batch_size: int = 1,
    seq_len: int = 512,
    dtype: str = "bf16",
    adapter_dtype: str = "fp32",
    optimizer: str = "adamw",
    quantization: str | None = None,
    gradient_checkpointing: bool = False,
    attention: str = "sdpa",
    loss_chunk: int | None = None,
    device: str = "cuda",
    flash: bool = True,
    labels: int = 2,
    **hparams,
) -> Estimate:
    """Memory of training the model of `config` by a method of the registry, on full rows of `seq_len` tokens.

    dtype: of the weights that are not quantized, and of all computation. adapter_dtype: of what a method adds (peft's
    default is fp32 on a model in half precision). optimizer: see `optimizers`. quantization: of the linear layers.
    attention: "sdpa" or "eager". loss_chunk: tokens whose logits are made at a time; None: all, as in transformers.
    device: "cuda" or "cpu", whose kernels keep different things. flash: whether the GPU has flash attention (Ampere and
    newer; a T4 has not). labels: classes of the head on an encoder. hparams: the method's. Key-value caches and
    autocast are off. Raises ValueError for what cannot be.
    """
    settings = METHODS[method].complete(hparams)
    METHODS[method].count(config, **hparams)
    _check(
        batch_size, seq_len, loss_chunk, labels, dtype, adapter_dtype, attention, device,
        gradient_checkpointing=gradient_checkpointing, flash=flash,
    )  # fmt: skip
    quantization = _quantization(method, quantization, settings)
    if gradient_checkpointing and method in NO_CHECKPOINTING:
        raise ValueError(f"{method} does not go with gradient checkpointing: {NO_CHECKPOINTING[method]}. Leave it out.")
    if loss_chunk is not None and not _plain_head(config, settings):
        raise ValueError("loss_chunk is for a language model with a plain output head: leave it out.")
    if settings.get("modules_to_save"):
        raise ValueError("The memory of modules_to_save is not written down: leave it out, or trace the model.")
    width = formats.BYTES[dtype]
    layers = formats.quantized_layers(config) if quantization else {}
    beside = BESIDE[method](config, width if width == FP32 else formats.BYTES[adapter_dtype], **settings)
    longest = positions(config)
    if longest is not None and seq_len + beside.virtual_tokens > longest:
        fits = longest - beside.virtual_tokens
        raise ValueError(
            f"seq_len={seq_len} is more than the {fits} positions that this model has for text: make it {fits} or less."
        )
    tape = Tape(batch_size, seq_len + beside.virtual_tokens, width, beside.trains, fused=device == "cuda")
    Network(
        config,
        tape,
        beside,
        attention=attention,
        labels=labels,
        written_out={name: width * layer.weights for name, layer in layers.items()},
        keeps_inputs=quantization == "int8",
        input_grads=gradient_checkpointing,
        loss_chunk=loss_chunk,
        flash=flash,
    ).run()
    block = CUDA_BLOCK if device == "cuda" else 1
    replay = Replay(tape, range(1, len(tape.segments) - 1) if gradient_checkpointing else (), block)
    trained = tape.trained
    if not trained:
        raise ValueError(f"{method} trains nothing of this model, so that there is no training step to estimate.")
    whole = (width * size(shape) for name, shape in parameter_shapes(config).items() if _module(name) not in layers)
    packed = (part for layer in layers.values() for part in formats.quantized_tensors(layer, quantization))
    added = (p.bytes for p in trained if not p.own)
    weights = sum(rounded(part, block) for part in (*whole, *packed, *added, beside.frozen_bytes))
    return Estimate.of_step(
        weights=weights,
        saved=replay.saved,
        gradients=sum(rounded(p.bytes, block) for p in trained),
        peak=replay.peak | {WEIGHTS: weights},
        moment=replay.moment,
        states=optimizers.states(optimizer, trained, block),
    )


def _plain_head(config, settings: dict) -> bool:
    capped = getattr(config, "final_logit_softcapping", None)
    adapted = "lm_head" in str(settings.get("target_modules"))
    return has_lm_head(config) and not capped and not adapted


def _module(name: str) -> str:
    """The layer whose weight a parameter is; a layer's bias is not quantized."""
    return name.removesuffix(".weight")


# Methods that leave the model's linear layers as they are, or put something beside them that peft can compute there.
ON_QUANTIZED = (
    "lora",
    "qlora",
    "feature_based",
    "prompt_tuning",
    "p_tuning",
    "prefix_tuning",
    "multitask_prompt_tuning",
)


def _quantization(method: str, asked: str | None, settings: dict) -> str | None:
    """The format of the linear layers; raises ValueError for one that does not go with the method."""
    if asked is not None and asked not in formats.QUANTIZATIONS:
        raise unknown("quantization", asked, formats.QUANTIZATIONS)
    if asked is not None and (method not in ON_QUANTIZED or settings.get("use_dora")):
        what = "DoRA" if settings.get("use_dora") else method
        raise ValueError(
            f"{what} on weights that {asked} has packed is impossible, or not written down here: packed weights have "
            f"no gradient. Leave quantization out, or choose one of {', '.join(ON_QUANTIZED)}."
        )
    if method != "qlora":
        return asked
    own = settings["bnb_4bit_quant_type"] + "_double" * settings["bnb_4bit_use_double_quant"]
    if asked not in (None, own):
        raise ValueError(f"qlora's own hyper-parameters ask for {own}, and quantization for {asked}: give one of them.")
    return own


def _check(batch_size, seq_len, loss_chunk, labels, dtype, adapter_dtype, attention, device, **switches) -> None:
    chunk = {} if loss_chunk is None else {"loss_chunk": loss_chunk}
    check_positive(batch_size=batch_size, seq_len=seq_len, labels=labels, **chunk)
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False; got {value!r}.")
    for name, value, known in (
        ("dtype", dtype, formats.BYTES),
        ("adapter_dtype", adapter_dtype, formats.BYTES),
        ("attention", attention, ATTENTIONS),
        ("device", device, ("cuda", "cpu")),
    ):
        if value not in known:
            raise unknown(name, value, known)


def positions(config) -> int | None:
    """The most tokens that a text may have; None where there is no limit."""
    longest = getattr(config, "max_position_embeddings", None)
    # RoBERTa's tables begin behind the padding's place.
    return longest - config.pad_token_id - 1 if config.model_type == "roberta" else longest
