"""The closed form, the traced step and the counted one agree: for every architecture, method and setting."""

import json
from itertools import product
from types import SimpleNamespace

from course_lib import models
from course_lib.memory import formats, optimizers
from course_lib.memory.estimate import NO_CHECKPOINTING, PARTS, estimate
from course_lib.memory.ledger import Ledger
from course_lib.memory.measure import count_step
from course_lib.memory.tape import CUDA_BLOCK, Parameter
from course_lib.memory.trace import trace, with_loss
from course_lib.methods import METHODS
from course_lib.methods.shapes import Linear

import pytest
import tiny
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Adafactor, AutoModelForCausalLM

ROWS, LENGTH = 8, 40
ARCHITECTURES = [name for name in tiny.ARCHITECTURES if name != "t5-small"]
SETTINGS = {
    "adalora": {"total_step": 100, "init_r": 4, "target_r": 2},
    "vera": {"r": 16},
    "oft": {"oft_block_size": 8},
    "adapter": {"bottleneck_size": 8},
    "pasta": {"special_token_ids": (1, 2)},
}


def settings(method: str, config) -> dict:
    """Hyper-parameters with which the method works on a small model of this architecture; skips what cannot be."""
    chosen = dict(SETTINGS.get(method, {}))
    for more in ({}, {"target_modules": "all-linear"}, {"target_modules": "all-linear", "feedforward_modules": []}):
        try:
            METHODS[method].count(config, **chosen, **more)
            return chosen | more
        except ValueError as reason:
            refusal = str(reason)
            if "target_modules" not in refusal:
                break
    pytest.skip(refusal[:70])


def rows(model, count: int = ROWS, length: int = LENGTH, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Full rows, and labels as the model wants them."""
    ids = torch.ones(count, length, dtype=torch.long, device=device)
    labels = ids[:, 0] if isinstance(model, models.Classifier) else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def small(name: str):
    """A tiny model on the CPU, without what no loss asks for."""
    model = tiny.tiny(name)
    model.config.use_cache = False
    if getattr(model, "pooler", None) is not None:
        model.pooler, model.config.add_pooling_layer = None, False
    return model


def trainable(model, method: str, checkpointing: bool = False, **hparams):
    """The model with a loss, made trainable by the method."""
    model = with_loss(METHODS[method].apply(model, **hparams))
    if not any(p.requires_grad for p in model.parameters()):
        pytest.skip("nothing trains")
    if checkpointing:
        model.activation_checkpointing_enable()
    return model


def stored(model) -> int:
    """Bytes of a model's parameters and buffers, and of what bitsandbytes keeps beside packed weights."""
    states = [p.quant_state for p in model.parameters() if getattr(p, "quant_state", None) is not None]
    tables = [t for s in states for t in (s.code, s.absmax, s.state2.absmax, s.state2.code, s.offset)]
    tensors = (*model.parameters(), *model.buffers(), *tables)
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def saved(predicted) -> int:
    return predicted.parts["activations"] + predicted.parts["logits and loss"]


def error(predicted: int, real: int) -> float:
    return predicted / real - 1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_the_closed_form_is_what_a_real_step_on_the_cpu_keeps(method, name, checkpointing):
    if checkpointing and method in NO_CHECKPOINTING:
        pytest.skip("does not go together")
    model = small(name)
    config, hparams = model.config, settings(method, model.config)
    model = trainable(model, method, checkpointing, **hparams)
    counted = count_step(model, rows(model))
    predicted = estimate(
        config, method, batch_size=ROWS, seq_len=LENGTH, dtype="fp32", device="cpu",
        gradient_checkpointing=checkpointing, **hparams,
    )  # fmt: skip
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert predicted.parts["gradients"] == counted["gradients"] == 4 * trained
    assert (
        predicted.parts["optimizer states"] - 4 * len([p for p in model.parameters() if p.requires_grad])
        == (counted["optimizer states"])
    )
    assert predicted.parts["weights"] == pytest.approx(stored(model), rel=0.02)
    assert abs(error(saved(predicted), counted["activations"])) < 0.03


def shallow(name: str, blocks: int = 2):
    """The config of a published architecture with few blocks."""
    config = models.config(name)
    config.use_cache = False
    setattr(config, {"distilbert": "n_layers", "gpt2": "n_layer"}.get(config.model_type, "num_hidden_layers"), blocks)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    if config.model_type == "roberta":
        config.add_pooling_layer = False
    return config


def on_meta(config, dtype, attention: str = "sdpa"):
    from transformers import AutoModel

    encoder = config.model_type in ("bert", "roberta", "distilbert")
    kind, options = (AutoModel, {}) if encoder else (AutoModelForCausalLM, {})
    if encoder and hasattr(config, "type_vocab_size"):
        options = {"add_pooling_layer": False}
    with torch.device("meta"):
        # Gemma 2 caps its scores, which no fused kernel does.
        attention = "eager" if config.model_type == "gemma2" else attention
        return kind.from_config(config, dtype=dtype, attn_implementation=attention, **options)


def both(name: str, method: str, dtype: str = "bf16", checkpointing: bool = False, shape=(4, 256), **options):
    """The closed form and the traced step of a published architecture with two blocks."""
    chosen = {key: options.pop(key) for key in ("optimizer", "device") if key in options}
    attention = options.pop("attention", "sdpa")
    config = shallow(name)
    hparams = {**settings(method, config), **options}
    model = on_meta(config, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype], attention)
    with torch.device("meta"):
        model = trainable(model, method, checkpointing, **hparams)
    traced = trace(model, rows(model, *shape, device="meta"), **chosen)
    predicted = estimate(
        config, method, batch_size=shape[0], seq_len=shape[1], dtype=dtype, gradient_checkpointing=checkpointing,
        attention=attention, **chosen, **hparams,
    )  # fmt: skip
    return predicted, traced


PUBLISHED = (
    "minilm-l6",
    "roberta-base",
    "gpt2",
    "llama-3.2-1b",
    "mistral-7b",
    "qwen2.5-0.5b",
    "phi-3-mini",
    "gemma-2-2b",
)


@pytest.mark.parametrize("method", METHODS)
def test_the_closed_form_is_the_traced_peak_on_a_gpu(method):
    errors = []
    for name, dtype, checkpointing in product(("minilm-l6", "gpt2", "llama-3.2-1b"), ("fp32", "bf16"), (False, True)):
        if checkpointing and method in NO_CHECKPOINTING:
            continue
        try:
            predicted, traced = both(name, method, dtype, checkpointing)
        except pytest.skip.Exception:
            continue
        for part in ("gradients", "optimizer states"):
            assert predicted.parts[part] == traced.parts[part]
        assert predicted.parts["weights"] == pytest.approx(traced.parts["weights"], rel=0.002)
        # A few blocks of the allocator for single numbers do not count.
        assert abs(saved(predicted) - saved(traced)) < 0.03 * saved(traced) + 20 * CUDA_BLOCK
        errors.append(abs(error(predicted.allocated_peak, traced.allocated_peak)))
    assert max(errors) < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"lora_dropout": 0.1},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"use_dora": True},
        {"use_dora": True, "lora_dropout": 0.1},
        {"use_rslora": True, "r": 3},
        {"target_modules": ["lm_head", "q_proj"]},
    ],
)
def test_the_variants_of_lora(options):
    for name in ("qwen2.5-0.5b", "minilm-l6"):
        if name == "minilm-l6" and "target_modules" in options:
            continue
        predicted, traced = both(name, "lora", **options)
        assert predicted.parts["gradients"] == traced.parts["gradients"]
        assert abs(error(saved(predicted), saved(traced))) < 0.03
        assert abs(error(predicted.allocated_peak, traced.allocated_peak)) < 0.05


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_architecture_and_attention(name, attention):
    for method, dtype, checkpointing in product(("full", "lora"), ("fp32", "bf16"), (False, True)):
        predicted, traced = both(name, method, dtype, checkpointing, attention=attention)
        assert abs(error(predicted.allocated_peak, traced.allocated_peak)) < 0.03
        assert abs(error(saved(predicted), saved(traced))) < 0.03


def test_grouped_keys_in_fp32_have_no_fused_kernel_on_a_gpu():
    """A trap: PyTorch then writes all scores out, and memory grows with the square of the length."""
    lengths = (256, 512)
    wide, half = ([both("llama-3.2-1b", "lora", dtype, shape=(1, n))[1] for n in lengths] for dtype in ("fp32", "bf16"))
    growth = [t[1].parts["activations"] / t[0].parts["activations"] for t in (wide, half)]
    assert growth[0] > 2.2 > growth[1]


def test_a_sliding_window_needs_a_mask():
    for length in (2048, 4096, 6144):
        predicted, traced = both("mistral-7b", "lora", shape=(1, length))
        assert abs(error(saved(predicted), saved(traced))) < 0.03
        assert abs(error(predicted.allocated_peak, traced.allocated_peak)) < 0.03


def test_without_flash_attention_grouped_keys_have_no_fused_kernel():
    grouped, alike = models.config("llama-3.2-1b"), models.config("llama-2-7b")
    kept = {flash: estimate(grouped, "lora", seq_len=2048, flash=flash).parts["activations"] for flash in (True, False)}
    assert kept[False] > 3 * kept[True]
    assert estimate(alike, "lora", flash=True) == estimate(alike, "lora", flash=False)


def test_int8_holds_its_inputs_even_with_checkpointing():
    """bitsandbytes hangs them on the autograd context, where no checkpoint lets them go."""
    config = models.config("llama-3-8b")
    plain, int8 = (
        estimate(config, "lora", seq_len=2048, gradient_checkpointing=True, quantization=q).parts["activations"]
        for q in (None, "int8")
    )
    # Of each block: what goes into queries, keys and values; the output; gate and up; down.
    inputs = 2 * 2048 * config.num_hidden_layers * (3 * config.hidden_size + config.intermediate_size)
    assert int8 - plain == pytest.approx(inputs, rel=0.01)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", ["minilm-l6", "llama-3.2-1b", "gemma-2-2b"])
def test_four_bits(name, double):
    predicted, traced = both(name, "qlora", bnb_4bit_use_double_quant=double)
    assert predicted.parts["weights"] == pytest.approx(traced.parts["weights"], rel=0.001)
    assert abs(error(predicted.allocated_peak, traced.allocated_peak)) < 0.03


def test_a_large_model_is_traced_in_seconds():
    config = models.config("llama-3-8b")
    config.use_cache = False
    with torch.device("meta"):
        model = trainable(on_meta(config, torch.bfloat16), "qlora", checkpointing=True)
    traced = trace(model, rows(model, 1, 2048, device="meta"))
    predicted = estimate(config, "qlora", batch_size=1, seq_len=2048, gradient_checkpointing=True)
    assert abs(error(predicted.allocated_peak, traced.allocated_peak)) < 0.005


def test_trace_leaves_the_model_as_it_was_and_wants_one_without_memory():
    config = shallow("llama-3.2-1b")
    with torch.device("meta"):
        model = trainable(on_meta(config, torch.bfloat16), "lora")
    traced = [trace(model, rows(model, device="meta")) for _ in range(2)]
    assert traced[0] == traced[1]
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="meta device"):
        trace(nn.Linear(2, 2), {})


def test_with_loss_puts_a_classifier_on_an_encoder_only():
    encoder = with_loss(on_meta(shallow("minilm-l6"), torch.float32))
    assert isinstance(encoder, models.Classifier)
    language_model = on_meta(shallow("gpt2"), torch.float32)
    assert with_loss(language_model) is language_model


class ChunkedLoss(nn.Module):
    """The loss of so many tokens at a time, their logits made again in the backward pass."""

    def __init__(self, model, chunk: int):
        super().__init__()
        self.model, self.chunk, self.config = model, chunk, model.config

    def forward(self, input_ids, attention_mask, labels):
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        states = inner.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.flatten(0, 1)
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten()

        def part(states, labels):
            return nn.functional.cross_entropy(inner.lm_head(states).float(), labels, reduction="sum")

        pairs = zip(states.split(self.chunk), shifted.split(self.chunk), strict=True)
        return SimpleNamespace(loss=sum(checkpoint(part, *pair, use_reentrant=False) for pair in pairs))


@pytest.mark.parametrize("chunk", [64, 256])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_chunked_loss(method, chunk):
    config = shallow("llama-3.2-1b")
    with torch.device("meta"):
        model = trainable(on_meta(config, torch.bfloat16), method)
    traced = trace(ChunkedLoss(model, chunk), rows(model, 4, 512, device="meta"))
    predicted = estimate(config, method, batch_size=4, seq_len=512, loss_chunk=chunk)
    assert abs(error(predicted.allocated_peak, traced.allocated_peak)) < 0.02
    whole = estimate(config, method, batch_size=4, seq_len=512)
    assert predicted.allocated_peak < 0.75 * whole.allocated_peak


SHAPES = ((3,), (64,), (5000,), (7, 11), (300, 400), (2, 3, 5))


def stepped(make, dtype=torch.float32) -> tuple[int, list[Parameter]]:
    """Bytes of tensors in the states of a real optimizer after a step; and the parameters."""
    parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    optimizer = make(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = {id(t): t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)}
    return sum(t.nbytes for t in kept.values()), [Parameter(s, torch.empty(0, dtype=dtype).itemsize) for s in SHAPES]


def bitsandbytes_adamw(bits: int):
    def make(parameters):
        from bitsandbytes.optim import AdamW

        return AdamW(parameters, optim_bits=bits)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw", torch.optim.AdamW),
        ("adamw_8bit", bitsandbytes_adamw(8)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("sgd_momentum", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("adafactor", Adafactor),
    ],
)
def test_optimizer_states_are_those_of_the_real_optimizer(name, make, dtype):
    real, parameters = stepped(make, dtype)
    assert optimizers.states(name, parameters).on_device == real


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adafactors_temporary_copies(dtype):
    """Beside parameter, gradient and states, a step holds so many bytes more at its peak."""
    parameter = nn.Parameter(torch.randn(400, 300).to(dtype))
    optimizer = Adafactor([parameter])
    ledger = Ledger("cpu")
    for step in range(2):
        parameter.grad = torch.ones_like(parameter)
        if step == 1:
            with ledger:
                optimizer.step()
        else:
            optimizer.step()
    expected = optimizers.states("adafactor", [Parameter((400, 300), dtype.itemsize)]).scratch
    assert expected == pytest.approx(ledger.peak.total(), rel=0.02)


def test_adapters_in_half_precision():
    config = shallow("llama-3.2-1b")
    with torch.device("meta"):
        model = trainable(on_meta(config, torch.bfloat16), "lora", target_modules="all-linear")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    traced = trace(model, rows(model, 4, 256, device="meta"))
    predicted = estimate(config, "lora", batch_size=4, seq_len=256, adapter_dtype="bf16", target_modules="all-linear")
    assert predicted.parts["gradients"] == traced.parts["gradients"]
    assert abs(error(saved(predicted), saved(traced))) < 0.01
    assert abs(error(predicted.allocated_peak, traced.allocated_peak)) < 0.01


def test_paged_states_of_large_tensors_lie_outside_the_allocator():
    large, little = Parameter((400, 300), 4), Parameter((300,), 4)
    plain, paged = (optimizers.states(name, [large, little]) for name in ("adamw_8bit", "paged_adamw_8bit"))
    assert paged.paged == 2 * large.numel
    assert paged.on_device == plain.on_device - 2 * large.numel
    assert optimizers.states("paged_adamw", [little]).paged == 0


@pytest.mark.parametrize("quantization", ["nf4", "nf4_double", "fp4", "fp4_double"])
@pytest.mark.parametrize(("out", "inp"), [(64, 64), (384, 1536), (100, 48)])
def test_quantized_bytes_are_those_of_bitsandbytes(out, inp, quantization):
    from bitsandbytes.functional import quantize_4bit

    double = quantization.endswith("_double")
    packed, state = quantize_4bit(torch.randn(out, inp), quant_type=quantization[:3], compress_statistics=double)
    tensors = [packed, state.code, state.absmax]
    tensors += [state.state2.absmax, state.state2.code, state.offset] if double else []
    assert sorted(formats.quantized_tensors(Linear(inp, out), quantization)) == sorted(t.nbytes for t in tensors)


def test_int8_bytes_are_those_of_bitsandbytes():
    from bitsandbytes.functional import int8_vectorwise_quant

    weights, constants, _ = int8_vectorwise_quant(torch.randn(48, 100, dtype=torch.float16))
    assert formats.quantized_tensors(Linear(100, 48), "int8") == [weights.nbytes, constants.nbytes]


def test_bits_a_weight():
    """QLoRA's own numbers: 4.5 bits a weight in blocks of 64, 4.127 with double quantization."""
    layer = Linear(4096, 4096)
    tables = {"nf4": 16 * 4, "nf4_double": 16 * 4 + 256 * 4 + 4}
    bits = {
        name: 8 * (sum(formats.quantized_tensors(layer, name)) - table) / layer.weights
        for name, table in tables.items()
    }
    assert bits["nf4"] == 4.5
    assert bits["nf4_double"] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))


def test_parts_and_peak_are_named_alike():
    predicted = estimate(models.config("llama-3.2-1b"), "lora")
    assert tuple(predicted.parts) == tuple(predicted.peak) == PARTS
    assert predicted.allocated_peak == sum(predicted.peak.values())
    assert predicted.moment in ("forward pass", "backward pass", "optimizer step")
    assert json.dumps(predicted.parts)


def test_checkpointing_and_bits_save_what_they_should():
    config, shape = models.config("llama-3-8b"), {"batch_size": 2, "seq_len": 2048}
    plain = estimate(config, "lora", **shape)
    assert estimate(config, "lora", gradient_checkpointing=True, **shape).parts["activations"] < (
        0.1 * plain.parts["activations"]
    )
    sizes = [
        estimate(config, "lora", quantization=q, **shape).parts["weights"] for q in ("nf4_double", "nf4", "int8", None)
    ]
    assert sizes == sorted(sizes)
    assert estimate(config, "qlora", target_modules=["q_proj"]).parts["weights"] < 0.4 * plain.parts["weights"]


LLAMA = {"config": "llama-3.2-1b", "method": "lora"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": "fp8"}, "Unknown dtype 'fp8'"),
        ({"adapter_dtype": "int4"}, "Unknown adapter_dtype"),
        ({"optimizer": "adam8"}, "Unknown optimizer 'adam8'.*adamw_8bit"),
        ({"method": "qlorra"}, "Unknown method 'qlorra'.*Did you mean 'qlora'"),
        ({"quantization": "int4"}, "Unknown quantization 'int4'"),
        ({"quantization": "double"}, "Unknown quantization 'double'.*nf4_double"),
        ({"method": "full", "quantization": "int8"}, "full on weights that int8 has packed"),
        ({"method": "qlora", "quantization": "int8"}, "hyper-parameters ask for nf4_double"),
        ({"method": "bitfit"}, "BitFit trains biases"),
        ({"method": "feature_based"}, "trains nothing"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more"),
        ({"seq_len": 10**7}, "more than the 131072 positions"),
        ({"config": "roberta-base", "method": "bitfit", "seq_len": 513}, "more than the 512 positions"),
        ({"config": "gpt2", "method": "prompt_tuning", "seq_len": 1010}, "more than the 1004 positions"),
        ({"gradient_checkpointing": "no"}, "gradient_checkpointing must be True or False"),
        ({"labels": 0}, "labels must be"),
        ({"loss_chunk": 8, "target_modules": ["lm_head"]}, "plain output head"),
        ({"config": "minilm-l6", "loss_chunk": 8}, "plain output head"),
        ({"quantization": "nf4", "use_dora": True}, "DoRA on weights that nf4 has packed"),
        ({"loss_chunk": 0}, "loss_chunk must be"),
        ({"attention": "flash"}, "Unknown attention"),
        ({"device": "tpu"}, "Unknown device"),
        ({"r": 0}, "r must be"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not written down"),
        ({"rank": 8}, "Unknown hyper-parameter of lora 'rank'"),
        ({"method": "prefix_tuning", "gradient_checkpointing": True}, "does not go with gradient checkpointing"),
        ({"config": "gpt2", "method": "lora", "quantization": "nf4"}, "Conv1D"),
        ({"config": "t5-small", "method": "lora"}, "Unknown model type with a closed form"),
        ({"config": "gpt2", "method": "p_tuning", "encoder_reparameterization_type": "LSTM"}, "LSTM"),
    ],
)
def test_bad_input_says_what_is_possible(wrong, message):
    arguments = LLAMA | wrong
    with pytest.raises(ValueError, match=message):
        estimate(models.config(arguments.pop("config")), **arguments)
