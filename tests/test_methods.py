"""Closed-form counts equal what the methods make trainable, on real architectures."""

from course_lib import models
from course_lib.methods import FAMILIES, METHODS
from course_lib.methods.shapes import block, blocks, parameter_shapes

import pytest
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("name", models.architectures())
def test_shapes_equal_the_real_network(name):
    real = {n: tuple(p.shape) for n, p in models.skeleton(name).named_parameters()}
    assert parameter_shapes(models.config(name)) == real


@pytest.mark.parametrize("name", models.architectures())
def test_count_rounds_to_the_published_number(name):
    published = models._architectures()[name]["published_parameters"]
    scale = {"M": 1e6, "B": 1e9}[published[-1]]
    counted = METHODS["full"].count(models.config(name)) / scale
    # Papers round, and BERT's count its pre-training heads: 1.5% at most lies between.
    assert counted == pytest.approx(float(published[:-1]), rel=0.015)


def trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "name", ["minilm-l6", "bert-base-uncased", "roberta-base", "gpt2", "llama-3.2-1b", "qwen2.5-0.5b"]
)
@pytest.mark.parametrize(
    ("method", "hparams"),
    [("full", {}), ("feature_based", {}), ("last_layers", {}), ("last_layers", {"num_layers": 1})],
)
def test_count_equals_apply(name, method, hparams):
    chosen = METHODS[method]
    model = chosen.apply(models.skeleton(name), **hparams)
    assert chosen.count(models.config(name), **hparams) == trainable(model)


def test_apply_undoes_the_method_before():
    model = models.skeleton("minilm-l6")
    METHODS["feature_based"].apply(model)
    METHODS["full"].apply(model)
    assert trainable(model) == METHODS["full"].count(model.config)


@given(k=st.integers(-3, 20))
def test_last_layers_takes_only_layers_that_exist(k):
    config = models.config("minilm-l6")
    total = blocks(config)
    if 1 <= k <= total:
        counts = [METHODS["last_layers"].count(config, num_layers=j) for j in range(1, k + 1)]
        assert counts == [counts[0] * j for j in range(1, k + 1)]
    else:
        with pytest.raises(ValueError, match=f"between 1 and {total}"):
            METHODS["last_layers"].count(config, num_layers=k)


def test_registry_names_near_methods():
    with pytest.raises(ValueError, match="Did you mean 'last_layers'"):
        METHODS["last_layer"]


def test_every_method_is_documented():
    for method in METHODS.values():
        assert method.family in FAMILIES
        assert method.paper.title and method.paper.id and method.formula and method.lesson


def test_block():
    assert block("encoder.layer.3.output.dense.weight") == 3
    assert block("transformer.h.11.ln_1.bias") == 11
    assert block("embeddings.LayerNorm.weight") is None


def test_unknown_architectures_and_types():
    with pytest.raises(ValueError, match="llama-2-7b"):
        models.config("llama2-7b")
    odd = models.config("gpt2")
    odd.model_type = "mamba"
    with pytest.raises(ValueError, match="Unknown model type"):
        parameter_shapes(odd)
