"""Selective methods: some of the model's own parameters move, the rest stay."""

from course_lib.methods import METHODS, Method, Paper
from course_lib.methods.shapes import block, blocks, parameter_shapes, size


def _in_last(name: str, num_layers: int, total: int) -> bool:
    index = block(name)
    return index is not None and index >= total - num_layers


def _check(num_layers: int, total: int) -> None:
    if not 1 <= num_layers <= total:
        raise ValueError(
            f"num_layers must be between 1 and {total}, the number of blocks of this model; got {num_layers}."
        )


def _train_last(model, num_layers: int = 2):
    total = blocks(model.config)
    _check(num_layers, total)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_in_last(name, num_layers, total))
    return model


def _count_last(config, num_layers: int = 2) -> int:
    total = blocks(config)
    _check(num_layers, total)
    return sum(size(shape) for name, shape in parameter_shapes(config).items() if _in_last(name, num_layers, total))


METHODS.add(
    Method(
        name="last_layers",
        title="Last layers",
        family="selective",
        paper=Paper("What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", "1911.03090"),
        formula=r"\theta_{>L-k} = \theta_{0,>L-k} + \Delta\theta,\quad \theta_{\le L-k} = \theta_{0,\le L-k}",
        mergeable=True,
        lesson="01_full_vs_feature_based",
        apply=_train_last,
        count=_count_last,
    )
)
