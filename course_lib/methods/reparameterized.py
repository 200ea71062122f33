"""Reparameterized methods: a frozen matrix, and a small description of what is added to it or turned in it.

LoRA and most of its kin are peft's; KronA and DyLoRA are built in `added_linear`.
"""

from course_lib.errors import unknown
from course_lib.methods import METHODS, Method, Paper
from course_lib.methods.added_linear import Kronecker, NestedLoRA, Rank, factors
from course_lib.methods.shapes import Linear, parameter_shapes, size, uses_conv1d
from course_lib.methods.targets import Modules, check_positive, check_rank, saved, saved_names, targets, without_saved
from course_lib.methods.with_peft import defaults, wrap

import torch
from torch import nn

BIASES = ("none", "all", "lora_only")
# peft has more, which need data or change the model's own weights.
INITIALIZATIONS = (True, False, "gaussian")


def _chosen(config, method: str, target_modules: Modules, modules_to_save) -> dict[str, Linear]:
    return without_saved(targets(config, target_modules, defaults(f"{method}_target")), modules_to_save)


def _biases(config, bias: str, found: dict[str, Linear], modules_to_save) -> int:
    """Biases of the model itself that train too."""
    if bias not in BIASES:
        raise unknown("bias", bias, BIASES)
    shapes = parameter_shapes(config)
    if bias == "all":
        whole = saved_names(config, modules_to_save)
        return sum(size(shape) for name, shape in shapes.items() if name.endswith(".bias") and name not in whole)
    return sum(size(shapes.get(f"{name}.bias", (0,))) for name in found) if bias == "lora_only" else 0


def _count_lora(
    config,
    *,
    r: int = 8,
    lora_alpha: int = 8,
    target_modules: Modules = None,
    lora_dropout: float = 0.0,
    bias: str = "none",
    use_rslora: bool = False,
    use_dora: bool = False,
    lora_bias: bool = False,
    init_lora_weights: bool | str = True,
    modules_to_save=None,
) -> int:
    found = _chosen(config, "lora", target_modules, modules_to_save)
    check_rank("r", r, found)
    _check_scale(lora_alpha=lora_alpha)
    _check_dropout(lora_dropout=lora_dropout)
    if init_lora_weights not in INITIALIZATIONS:
        raise unknown("init_lora_weights", init_lora_weights, map(str, INITIALIZATIONS))
    if lora_bias and use_dora:
        raise ValueError("peft has no lora_bias=True together with use_dora=True: choose one.")
    if bias != "none" and lora_bias and bias in BIASES:
        raise ValueError("lora_bias=True needs bias='none'.")
    count = sum(r * (layer.inputs + layer.outputs) for layer in found.values())
    extra = sum(layer.outputs for layer in found.values()) * (bool(use_dora) + bool(lora_bias))
    return count + extra + _biases(config, bias, found, modules_to_save) + saved(config, modules_to_save)


def _check_scale(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0; got {value}.")


def _check_dropout(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1; got {value}.")


def _count_dora(
    config,
    *,
    r: int = 8,
    lora_alpha: int = 8,
    target_modules: Modules = None,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    modules_to_save=None,
) -> int:
    return _count_lora(
        config, r=r, lora_alpha=lora_alpha, target_modules=target_modules, lora_dropout=lora_dropout,
        use_rslora=use_rslora, use_dora=True, modules_to_save=modules_to_save,
    )  # fmt: skip


def _count_qlora(
    config,
    *,
    r: int = 8,
    lora_alpha: int = 8,
    target_modules: Modules = "all-linear",
    lora_dropout: float = 0.0,
    bnb_4bit_quant_type: str = "nf4",
    bnb_4bit_use_double_quant: bool = True,
) -> int:
    if bnb_4bit_quant_type not in ("nf4", "fp4"):
        raise unknown("bnb_4bit_quant_type", bnb_4bit_quant_type, ("nf4", "fp4"))
    if uses_conv1d(config):
        raise ValueError("bitsandbytes quantizes nn.Linear, and GPT-2's projections are Conv1D. Choose lora.")
    return _count_lora(config, r=r, lora_alpha=lora_alpha, target_modules=target_modules, lora_dropout=lora_dropout)


def _build_qlora(model, *, bnb_4bit_quant_type, bnb_4bit_use_double_quant, **hparams):
    return wrap(quantize(model, bnb_4bit_quant_type, bnb_4bit_use_double_quant), "LoraConfig", **hparams)


def quantize(model, quant_type: str = "nf4", double: bool = True):
    """The model with its linear layers in 4 bits, in place; output head, embeddings, norms and biases stay.

    So do the layers that the architecture wants in fp32 (T5's wo). double: quantize the quantization constants too.
    """
    wide = getattr(model, "_keep_in_fp32_modules", None) or ()
    for name in targets(model.config, "all-linear"):
        if name.rsplit(".", 1)[-1] not in wide:
            model.set_submodule(name, _quantized(model.get_submodule(name), quant_type, double))
    return model


def _quantized(linear: nn.Linear, quant_type: str, double: bool) -> nn.Module:
    """The layer with its weight in 4 bits; a layer on the meta device keeps its shape."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantized = Linear4bit(linear.in_features, linear.out_features, compute_dtype=linear.weight.dtype, device="meta")
    quantized.weight = Params4bit(
        linear.weight.data,
        requires_grad=False,
        compress_statistics=double,
        quant_type=quant_type,
        module=quantized,
    )
    # Else one forward pass in eval mode on some processors repacks the weights, and no gradient passes them any more.
    quantized.support_avx512bf16_for_cpu = False
    quantized.bias = None if linear.bias is None else linear.bias.requires_grad_(False)
    # Moving the layer to a device, even to the one it is on, is what packs the weight.
    return quantized if linear.weight.is_meta else quantized.to(linear.weight.device)


def _count_adalora(
    config,
    *,
    target_r: int = 8,
    init_r: int = 12,
    tinit: int = 0,
    tfinal: int = 0,
    deltaT: int = 1,  # noqa: N803
    beta1: float = 0.85,
    beta2: float = 0.85,
    orth_reg_weight: float = 0.5,
    total_step: int | None = None,
    lora_alpha: int = 8,
    target_modules: Modules = None,
    lora_dropout: float = 0.0,
    modules_to_save=None,
) -> int:
    found = _chosen(config, "adalora", target_modules, modules_to_save)
    check_rank("init_r", init_r, found)
    check_rank("target_r", target_r, found)
    check_positive(deltaT=deltaT)
    _check_scale(lora_alpha=lora_alpha, beta1=beta1, beta2=beta2)
    _check_dropout(lora_dropout=lora_dropout, beta1=beta1, beta2=beta2)
    if target_r >= init_r:
        raise ValueError(f"target_r={target_r} must be less than init_r={init_r}: AdaLoRA takes ranks away.")
    if min(tinit, tfinal) < 0 or not orth_reg_weight >= 0:
        raise ValueError(
            f"tinit, tfinal and orth_reg_weight must not be negative; got {tinit}, {tfinal}, {orth_reg_weight}."
        )
    if total_step is not None and tinit >= total_step - tfinal:
        raise ValueError(
            f"tinit={tinit} and tfinal={tfinal} leave no step of total_step={total_step} in which ranks are taken away."
        )
    return sum(init_r * (layer.inputs + layer.outputs + 1) for layer in found.values()) + saved(config, modules_to_save)


def _adalora_bytes(config, *, target_r, target_modules, modules_to_save, **_) -> int:
    """Of the ranks that are left at the end: target_r for each matrix on average; exact where all have one shape."""
    found = _chosen(config, "adalora", target_modules, modules_to_save).values()
    return 4 * (sum(target_r * (layer.inputs + layer.outputs + 1) for layer in found) + saved(config, modules_to_save))


def _build_adalora(model, *, total_step, **hparams):
    if total_step is None:
        raise ValueError("AdaLoRA needs total_step, the number of training steps: its ranks follow a schedule.")
    wrapped = wrap(model, "AdaLoraConfig", total_step=total_step, **hparams)
    for name, parameter in wrapped.named_parameters():
        # The number of ranks, a constant that peft neither saves nor means to train.
        if "ranknum" in name:
            parameter.requires_grad_(False)
    return wrapped


def _adalora_penalty(model) -> torch.Tensor:
    """The mean distance of P and Q from orthogonal, times `orth_reg_weight`: peft's form of arXiv 2303.10512's
    regularizer, which sums squares.

    For models that have no loss of their own; to a language model's loss peft adds it by itself.
    """
    weight = model.peft_config["default"].orth_reg_weight
    total, parts = 0.0, 0
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            total = total + (gram - torch.eye(len(gram), device=p.device)).norm()
            parts += 1
    return weight * total / parts


def _adalora_step(model, step: int) -> None:
    model.base_model.update_and_allocate(step)


def _count_loha(
    config,
    *,
    r: int = 8,
    alpha: int = 8,
    rank_dropout: float = 0.0,
    module_dropout: float = 0.0,
    target_modules: Modules = None,
    modules_to_save=None,
) -> int:
    found = _linear_only(config, "loha", target_modules, modules_to_save)
    check_rank("r", r, found)
    _check_dropout(rank_dropout=rank_dropout, module_dropout=module_dropout)
    _check_scale(alpha=alpha)
    return sum(2 * r * (layer.inputs + layer.outputs) for layer in found.values()) + saved(config, modules_to_save)


def _linear_only(config, method: str, target_modules: Modules, modules_to_save) -> dict[str, Linear]:
    if uses_conv1d(config):
        raise ValueError(f"peft's {method} adapts nn.Linear, and GPT-2's projections are Conv1D. Choose lora.")
    return _chosen(config, method, target_modules, modules_to_save)


def _check_factor(decompose_factor: int) -> None:
    if not isinstance(decompose_factor, int) or (decompose_factor != -1 and decompose_factor < 1):
        raise ValueError(f"decompose_factor must be 1 or more, or -1 for the most even split; got {decompose_factor}.")


def _count_lokr(
    config,
    *,
    r: int = 8,
    alpha: int = 8,
    rank_dropout: float = 0.0,
    module_dropout: float = 0.0,
    decompose_both: bool = False,
    decompose_factor: int = -1,
    target_modules: Modules = None,
    modules_to_save=None,
) -> int:
    found = _linear_only(config, "lokr", target_modules, modules_to_save)
    check_rank("r", r, found)
    _check_dropout(rank_dropout=rank_dropout, module_dropout=module_dropout)
    _check_scale(alpha=alpha)
    _check_factor(decompose_factor)

    parts = (part for layer in found.values() for part in lokr_parts(layer, r, decompose_both, decompose_factor))
    return sum(map(size, parts)) + saved(config, modules_to_save)


def lokr_parts(layer: Linear, r: int, decompose_both: bool, decompose_factor: int) -> list[tuple[int, int]]:
    """Shapes of the trained matrices of one layer: two factors, each split into two of rank r where that is smaller."""
    sides = zip(factors(layer.outputs, decompose_factor), factors(layer.inputs, decompose_factor), strict=True)
    parts = []
    for may_split, (out, inp) in zip((decompose_both, True), sides, strict=True):
        parts += [(out, r), (r, inp)] if may_split and r < max(out, inp) / 2 else [(out, inp)]
    return parts


def _count_vera(
    config,
    *,
    r: int = 256,
    target_modules: Modules = None,
    projection_prng_key: int = 0,
    save_projection: bool = True,
    vera_dropout: float = 0.0,
    d_initial: float = 0.1,
    modules_to_save=None,
) -> int:
    found = _chosen(config, "vera", target_modules, modules_to_save)
    # The shared random matrices are not trained, so that r may exceed the sides of a layer.
    check_positive(r=r)
    _check_dropout(vera_dropout=vera_dropout)
    return sum(r + layer.outputs for layer in found.values()) + saved(config, modules_to_save)


def _vera_bytes(config, *, r, target_modules, save_projection, modules_to_save, **_) -> int:
    found = _chosen(config, "vera", target_modules, modules_to_save).values()
    shared = r * (max(layer.inputs for layer in found) + max(layer.outputs for layer in found))
    return 4 * (
        _count_vera(config, r=r, target_modules=target_modules, modules_to_save=modules_to_save)
        + shared * save_projection
    )


def _near_divisor(inputs: int, wanted: int) -> int:
    """The divisor of `inputs` nearest to what is wanted, the smaller in a tie; peft's rule."""
    if wanted >= inputs:
        return inputs
    below = max(n for n in range(1, wanted + 1) if inputs % n == 0)
    above = min(n for n in range(wanted, inputs + 1) if inputs % n == 0)
    return below if wanted - below <= above - wanted else above


def oft_rotations(layer: Linear, r: int, oft_block_size: int, block_share: bool) -> tuple[int, int]:
    """Shape of a layer's trained rotations: blocks, and the numbers above the diagonal of each."""
    block = oft_block(layer, r, oft_block_size)
    return (1 if block_share else layer.inputs // block), block * (block - 1) // 2


def oft_block(layer: Linear, r: int, oft_block_size: int) -> int:
    """The side of a block."""
    return _near_divisor(layer.inputs, oft_block_size) if r == 0 else layer.inputs // _near_divisor(layer.inputs, r)


def _count_oft(
    config,
    *,
    r: int = 0,
    oft_block_size: int = 32,
    module_dropout: float = 0.0,
    target_modules: Modules = None,
    coft: bool = False,
    eps: float = 6e-5,
    block_share: bool = False,
    use_cayley_neumann: bool = True,
    num_cayley_neumann_terms: int = 5,
    modules_to_save=None,
) -> int:
    found = _linear_only(config, "oft", target_modules, modules_to_save)
    check_positive(**({"oft_block_size": oft_block_size} if r == 0 else {"r": r}))
    _check_dropout(module_dropout=module_dropout)
    if r != 0 and oft_block_size != 0:
        raise ValueError(
            f"Give r (blocks) or oft_block_size, and 0 for the other; got r={r}, oft_block_size={oft_block_size}."
        )

    rotations = sum(size(oft_rotations(layer, r, oft_block_size, block_share)) for layer in found.values())
    if not rotations:
        raise ValueError("Blocks of one number have nothing to rotate: oft_block_size must be 2 or more.")
    return rotations + saved(config, modules_to_save)


def _count_krona(config, *, decompose_factor: int = -1, scale: float = 1.0, target_modules: Modules = None) -> int:
    found = targets(config, target_modules, defaults("lora_target"))
    _check_factor(decompose_factor)
    _check_scale(scale=scale)
    pairs = [
        (factors(layer.inputs, decompose_factor), factors(layer.outputs, decompose_factor)) for layer in found.values()
    ]
    return sum(out_1 * in_1 + out_2 * in_2 for (in_1, in_2), (out_1, out_2) in pairs)


def _build_krona(model, *, decompose_factor, scale, target_modules):
    model.requires_grad_(False)
    for name, layer in targets(model.config, target_modules, defaults("lora_target")).items():
        model.set_submodule(name, Kronecker(model.get_submodule(name), layer, decompose_factor, scale))
    return model


def _count_dylora(config, *, r: int = 8, lora_alpha: int = 8, target_modules: Modules = None) -> int:
    return _count_lora(config, r=r, lora_alpha=lora_alpha, target_modules=target_modules)


def _build_dylora(model, *, r, lora_alpha, target_modules):
    model.requires_grad_(False)
    rank = Rank(r)
    for name, layer in targets(model.config, target_modules, defaults("lora_target")).items():
        model.set_submodule(name, NestedLoRA(model.get_submodule(name), layer, rank, lora_alpha))
    rank.hook = model.register_forward_pre_hook(rank.draw)
    return model


def _add(
    name: str, title: str, paper: Paper, formula: str, words: str, counter, build, mergeable: bool = True, **more
) -> None:
    lesson = {"lora": "03_lora", "qlora": "04_qlora"}.get(name, "03_lora")
    METHODS.add(
        Method(
            name=name,
            title=title,
            family="reparameterized",
            paper=paper,
            formula=formula,
            words=words,
            mergeable=mergeable,
            lesson=lesson,
            build=build,
            counter=counter,
            **more,
        )
    )


def _peft(config_name: str, **fixed):
    return lambda model, **hparams: wrap(model, config_name, **fixed, **hparams)


_add(
    "lora", "LoRA", Paper("LoRA: Low-Rank Adaptation of Large Language Models", "2106.09685"),
    r"W = W_0 + \tfrac{\alpha}{r} B A",
    "a change of low rank, the product of two thin matrices",
    _count_lora, _peft("LoraConfig"),
)  # fmt: skip
_add(
    "qlora", "QLoRA", Paper("QLoRA: Efficient Finetuning of Quantized LLMs", "2305.14314"),
    r"W = \mathrm{dequantize}(W_0^{\mathrm{NF4}}) + \tfrac{\alpha}{r} B A",
    "LoRA on weights that are kept in 4 bits",
    _count_qlora, _build_qlora,
    # Into 4-bit weights it merges with a rounding error only.
    mergeable=False,
)  # fmt: skip
_add(
    "krona", "KronA", Paper("KronA: Parameter Efficient Tuning with Kronecker Adapter", "2212.10650"),
    r"W = W_0 + s\,(A \otimes B)",
    "a change that is the Kronecker product of two smaller matrices",
    _count_krona, _build_krona,
)  # fmt: skip
_add(
    "dylora", "DyLoRA",
    Paper(
        "DyLoRA: Parameter Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank Adaptation",
        "2210.07558",
    ),
    r"W = W_0 + \tfrac{\alpha}{b} B_{:,:b} A_{:b},\quad b \sim \{1..r\}",
    "LoRA with a rank drawn anew at each step, so that it can be cut to any later",
    _count_dylora, _build_dylora,
)  # fmt: skip
_add(
    "adalora", "AdaLoRA",
    Paper("AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", "2303.10512"),
    r"W = W_0 + P \Lambda Q,\quad \Lambda\ \text{pruned}",
    "a change in the form of an SVD, whose least important values are pruned while it trains",
    _count_adalora, _build_adalora,
    stored=_adalora_bytes, penalty=_adalora_penalty, after_step=_adalora_step,
)  # fmt: skip
_add(
    "dora", "DoRA",
    Paper("DoRA: Weight-Decomposed Low-Rank Adaptation", "2402.09353"),
    r"W = m\,\frac{V}{\lVert V \rVert_c},\quad V = W_0 + \tfrac{\alpha}{r} B A",
    "length and direction of each column apart; LoRA changes the direction",
    _count_dora, _peft("LoraConfig", use_dora=True),
)  # fmt: skip
_add(
    "lokr", "LoKr",
    Paper("Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", "2309.14859"),
    r"W = W_0 + \tfrac{\alpha}{r}\, C \otimes (B A)",
    "a Kronecker product, one factor of which has low rank",
    _count_lokr, _peft("LoKrConfig"),
)  # fmt: skip
_add(
    "loha", "LoHa",
    Paper("FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", "2108.06098"),
    r"W = W_0 + \tfrac{\alpha}{r}\, (B_1 A_1) \odot (B_2 A_2)",
    "two changes of low rank, multiplied entry by entry: rank up to r²",
    _count_loha, _peft("LoHaConfig"),
)  # fmt: skip
_add(
    "vera", "VeRA", Paper("VeRA: Vector-based Random Matrix Adaptation", "2310.11454"),
    r"W = W_0 + \Lambda_b B \Lambda_d A,\quad A, B\ \text{random and shared}",
    "random matrices that layers share; of each layer only two vectors of scales move",
    _count_vera, _peft("VeraConfig"),
    stored=_vera_bytes,
)  # fmt: skip
_add(
    "oft", "OFT", Paper("Controlling Text-to-Image Diffusion by Orthogonal Finetuning", "2306.07280"),
    r"W = W_0 R,\quad R^\top R = I,\ R\ \text{block-diagonal}",
    "the weights rotated, block by block: their lengths and angles to each other stay",
    _count_oft, _peft("OFTConfig"),
)  # fmt: skip
