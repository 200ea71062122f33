"""Selective methods that choose by name: some of the model's own parameters move, the rest stay."""

from collections.abc import Callable

from course_lib.methods import METHODS, Method, Paper
from course_lib.methods.shapes import block, blocks, parameter_shapes, size


def train_only(model, wanted: Callable[[str], bool]):
    """The model with a gradient for the parameters whose names are wanted, and for no other."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))
    return model


def _in_last(num_layers: int, total: int) -> Callable[[str], bool]:
    return lambda name: block(name) is not None and block(name) >= total - num_layers


def _is_bias(name: str) -> bool:
    return name.endswith(".bias")


def _total(config, wanted: Callable[[str], bool]) -> int:
    return sum(size(shape) for name, shape in parameter_shapes(config).items() if wanted(name))


def _count_last(config, *, num_layers: int = 2) -> int:
    total = blocks(config)
    if not isinstance(num_layers, int) or not 1 <= num_layers <= total:
        raise ValueError(
            f"num_layers must be between 1 and {total}, the number of blocks of this model; got {num_layers}."
        )
    return _total(config, _in_last(num_layers, total))


def _count_biases(config) -> int:
    count = _total(config, _is_bias)
    if not count:
        raise ValueError(
            f"BitFit trains biases, and {config.model_type} has none. Choose another method, such as lora."
        )
    return count


METHODS.add(
    Method(
        name="last_layers",
        title="Last layers",
        family="selective",
        paper=Paper("What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", "1911.03090"),
        formula=r"\theta_{>L-k} = \theta_{0,>L-k} + \Delta\theta,\quad \theta_{\le L-k} = \theta_{0,\le L-k}",
        words="the top layers move, those below stay frozen",
        mergeable=True,
        lesson="01_full_vs_feature_based",
        build=lambda model, num_layers: train_only(model, _in_last(num_layers, blocks(model.config))),
        counter=_count_last,
    )
)
METHODS.add(
    Method(
        name="bitfit",
        title="BitFit",
        family="selective",
        paper=Paper(
            "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", "2106.10199"
        ),
        formula=r"h = W_0 x + b_0 + \Delta b",
        words="bias vectors move, no matrix does",
        mergeable=True,
        lesson="02_peft_taxonomy",
        build=lambda model: train_only(model, _is_bias),
        counter=_count_biases,
    )
)
