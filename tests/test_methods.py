"""Closed-form counts equal what the methods make trainable, on real architectures; bad input changes nothing."""

import dataclasses
import inspect

from course_lib import models
from course_lib.methods import FAMILIES, METHODS
from course_lib.methods.shapes import block, blocks, linears, parameter_shapes
from course_lib.methods.targets import targets
from course_lib.methods.with_peft import defaults

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ARCHITECTURES
from transformers.pytorch_utils import Conv1D


@pytest.mark.parametrize("name", models.architectures())
def test_shapes_equal_the_real_network(name):
    real = {n: tuple(p.shape) for n, p in models.skeleton(name).named_parameters()}
    assert parameter_shapes(models.config(name)) == real


@pytest.mark.parametrize("name", models.architectures())
def test_linears_equal_the_real_network(name):
    real = {}
    for path, module in models.skeleton(name).named_modules():
        if isinstance(module, torch.nn.Linear):
            real[path] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            real[path] = (module.nx, module.nf)
    assert linears(models.config(name)) == real


@pytest.mark.parametrize("name", models.architectures())
def test_count_rounds_to_the_published_number(name):
    published = models._architectures()[name]["published_parameters"]
    scale = {"M": 1e6, "B": 1e9}[published[-1]]
    counted = METHODS["full"].count(models.config(name)) / scale
    # Papers round, and BERT's count its pre-training heads: 1.5% at most lies between.
    assert counted == pytest.approx(float(published[:-1]), rel=0.015)


def trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# Methods with no place in an architecture, or none that peft knows by itself.
NO_PLACE = {
    "bitfit": {"t5-small", "llama-3-8b", "llama-3.2-1b", "mistral-7b", "gemma-2-2b", "phi-3-mini"},
    "prefix_tuning": {"distilbert-base-uncased"},
    "ladder_side_tuning": {"t5-small"},
    "pasta": {"t5-small"},
    "qlora": {"gpt2"},
    "lokr": {"gpt2"},
    "loha": {"gpt2"},
    "oft": {"gpt2"},
}
REQUIRED = {"adalora": {"total_step": 100}}


def settings(method: str, name: str) -> dict:
    """Hyper-parameters with which the method can be applied: peft's default targets where it has some."""
    hparams = dict(REQUIRED.get(method, {}))
    hidden = METHODS[method].hparams
    if hidden.get("target_modules", "none") is None:
        own = method in ("adalora", "ia3", "lokr", "loha", "vera", "oft")
        table = defaults(f"{method if own else 'lora'}_target")
        if models.config(name).model_type not in table:
            hparams["target_modules"] = "all-linear"
            if "feedforward_modules" in hidden:
                hparams["feedforward_modules"] = []
    return hparams


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_count_equals_apply(method, name):
    hparams, config = settings(method, name), models.config(name)
    if name in NO_PLACE.get(method, ()):
        with pytest.raises(ValueError, match=r"\w"):
            METHODS[method].count(config, **hparams)
        return
    model = METHODS[method].apply(models.skeleton(name), **hparams)
    assert METHODS[method].count(config, **hparams) == trainable(model)


ALL = {"target_modules": "all-linear"}
VARIANTS = [
    ("last_layers", {"num_layers": 1}),
    ("lt_sft", {"density": 0.001}),
    ("lt_sft", {"density": 1.0}),
    ("threshold_mask", {"initial_sparsity": 0.0}),
    ("adapter", {"placement": "pfeiffer", "bottleneck_size": 16}),
    ("adapter", {"train_norms": False}),
    ("adapter", {"placement": "pfeiffer", "train_norms": True}),
    ("prompt_tuning", {"num_virtual_tokens": 7}),
    ("p_tuning", {"encoder_hidden_size": 48}),
    ("p_tuning", {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 24, "encoder_num_layers": 3}),
    ("prefix_tuning", {"prefix_projection": True}),
    ("prefix_tuning", {"prefix_projection": True, "encoder_hidden_size": 100, "num_virtual_tokens": 5}),
    ("multitask_prompt_tuning", {"num_tasks": 4, "num_ranks": 3}),
    ("ladder_side_tuning", {"reduction_factor": 16}),
    ("pasta", {"special_token_ids": (5, 6, 7)}),
    ("lora", {"r": 1} | ALL),
    ("lora", {"r": 16, "use_dora": True} | ALL),
    ("lora", {"lora_bias": True} | ALL),
    ("lora", {"bias": "all"} | ALL),
    ("lora", {"bias": "lora_only"} | ALL),
    ("lora", {"target_modules": r".*\.1\..*(q|k|v|query|key|value|c_attn|q_lin|qkv_proj|q_proj)"}),
    ("dora", {"r": 2} | ALL),
    ("qlora", {"r": 64}),
    ("krona", {"decompose_factor": 8} | ALL),
    ("dylora", {"r": 5} | ALL),
    ("adalora", {"init_r": 6, "target_r": 2, "total_step": 100} | ALL),
    ("lokr", {"r": 2, "decompose_both": True} | ALL),
    ("lokr", {"r": 4, "decompose_factor": 16} | ALL),
    ("loha", {"r": 3} | ALL),
    ("vera", {"r": 11} | ALL),
    ("oft", {"oft_block_size": 0, "r": 8} | ALL),
    ("oft", {"oft_block_size": 48} | ALL),
    ("oft", {"block_share": True} | ALL),
]


@pytest.mark.filterwarnings("ignore:Invalid `")
@pytest.mark.parametrize("name", ["minilm-l6", "bert-base-uncased", "t5-small", "gpt2", "llama-3.2-1b", "qwen2.5-0.5b"])
@pytest.mark.parametrize(("method", "hparams"), VARIANTS)
def test_count_equals_apply_for_other_hyper_parameters(method, hparams, name):
    if name in NO_PLACE.get(method, ()):
        pytest.skip("no place in this architecture")
    model = METHODS[method].apply(models.skeleton(name), **hparams)
    assert METHODS[method].count(models.config(name), **hparams) == trainable(model)


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("gpt2", ["lm_head"]),
        ("llama-3.2-1b", ["lm_head"]),
        ("llama-3-8b", ["lm_head", "embed_tokens"]),
        ("qwen2.5-0.5b", ["embed_tokens"]),
        ("bert-base-uncased", ["pooler"]),
        ("minilm-l6", ["word_embeddings", "intermediate"]),
        ("llama-3.2-1b", ["norm"]),
        ("t5-small", ["layer_norm"]),
        ("bert-base-uncased", ["pooler", "pooler.dense"]),
    ],
)
@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "vera", "ia3", "loha", "lokr", "oft"])
def test_modules_to_save_are_counted_whole(method, name, saved):
    if name in NO_PLACE.get(method, ()):
        pytest.skip("no place in this architecture")
    hparams = settings(method, name) | {"modules_to_save": saved}
    if "target_modules" in METHODS[method].hparams and method != "ia3":
        hparams["target_modules"] = "all-linear"
    model = METHODS[method].apply(models.skeleton(name), **hparams)
    assert METHODS[method].count(models.config(name), **hparams) == trainable(model)


def test_biases_in_saved_modules_are_counted_once():
    hparams = {"target_modules": "all-linear", "bias": "all", "modules_to_save": ["pooler"]}
    model = METHODS["lora"].apply(models.skeleton("bert-base-uncased"), **hparams)
    assert METHODS["lora"].count(models.config("bert-base-uncased"), **hparams) == trainable(model)


@pytest.mark.parametrize(
    ("method", "name", "hparams"),
    [
        ("ia3", "t5-small", {"target_modules": ["o", "wo"], "feedforward_modules": ["o"]}),
        ("ia3", "bert-base-uncased", {"target_modules": "all-linear", "feedforward_modules": ["output.dense"]}),
        ("lora", "bert-base-uncased", {"target_modules": ".*attention.*"}),
        ("lora", "gpt2", {"target_modules": (name for name in ["c_attn", "c_fc"])}),
    ],
)
def test_targets_that_peft_reads_otherwise(method, name, hparams):
    hparams = {key: list(value) if not isinstance(value, str) else value for key, value in hparams.items()}
    model = METHODS[method].apply(models.skeleton(name), **hparams)
    assert METHODS[method].count(models.config(name), **hparams) == trainable(model)


def test_a_model_with_more_than_its_config_says_is_refused():
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(models.config("bert-base-uncased"))
    before = trainable(model)
    with pytest.raises(ValueError, match="BertForSequenceClassification and its config differ in"):
        METHODS["krona"].apply(model)
    assert trainable(model) == before


@pytest.mark.parametrize("target", [["q_proj", "v_proj"], ["k_proj"], ["model.layers.3.mlp.up_proj"], ["lm_head"]])
def test_targets_are_peft_s(target):
    model = METHODS["lora"].apply(models.skeleton("llama-3.2-1b"), target_modules=target)
    real = set(model.targeted_module_names)
    assert set(targets(models.config("llama-3.2-1b"), target)) == real


def test_the_issue_s_example():
    config = models.config("llama-3.2-3b")
    count = METHODS["lora"].count(config, r=32, target_modules=["q_proj", "v_proj"])
    # 28 layers; q is 3072 × 3072, v with grouped-query attention 3072 → 1024.
    assert count == 28 * 32 * ((3072 + 3072) + (3072 + 1024))


def test_gpt2_numbers_of_the_literature():
    config = models.config("gpt2")
    per_matrix = 8 * (768 + 768)
    assert per_matrix == 12_288
    # The fused projection makes queries, keys and values at once: 768 → 2304.
    assert METHODS["lora"].count(config, r=8) == 12 * 8 * (768 + 2304) == 294_912


PEFT_CONFIGS = {
    "prompt_tuning": "PromptTuningConfig",
    "p_tuning": "PromptEncoderConfig",
    "prefix_tuning": "PrefixTuningConfig",
    "multitask_prompt_tuning": "MultitaskPromptTuningConfig",
    "ia3": "IA3Config",
    "lora": "LoraConfig",
    "dora": "LoraConfig",
    "adalora": "AdaLoraConfig",
    "lokr": "LoKrConfig",
    "loha": "LoHaConfig",
    "vera": "VeraConfig",
    "oft": "OFTConfig",
}


@pytest.mark.parametrize(("method", "config"), PEFT_CONFIGS.items())
def test_defaults_are_peft_s(method, config):
    theirs = {f.name: f.default for f in dataclasses.fields(getattr(peft, config))}
    for name, default in METHODS[method].hparams.items():
        # peft has no default for the number of virtual tokens.
        if name != "num_virtual_tokens":
            assert getattr(theirs[name], "value", theirs[name]) == default, name


def test_apply_undoes_the_method_before():
    model = models.skeleton("minilm-l6")
    METHODS["feature_based"].apply(model)
    METHODS["full"].apply(model)
    assert trainable(model) == METHODS["full"].count(model.config)


def test_a_second_structure_is_refused():
    model = METHODS["lora"].apply(models.skeleton("minilm-l6"))
    with pytest.raises(ValueError, match="carries lora already"):
        METHODS["bitfit"].apply(model)


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


@given(r=st.integers(-2, 500))
def test_ranks_lie_between_one_and_the_matrix(r):
    config = models.config("minilm-l6")
    for method in ("lora", "dora", "dylora", "loha"):
        if 1 <= r <= 384:
            each = METHODS[method].count(config, r=1) - (12 * 384 if method == "dora" else 0)
            assert METHODS[method].count(config, r=r) == r * each + (12 * 384 if method == "dora" else 0)
        else:
            with pytest.raises(ValueError, match=f"r.*{r}|got {r}"):
                METHODS[method].count(config, r=r)


BAD = [
    ("lora", {"rank": 8}, "Did you mean 'r'|Known: .*\\br\\b"),
    ("lora", {"r": 0}, "r must be a whole number of 1 or more; got 0"),
    ("lora", {"r": 2.5}, "got 2.5"),
    ("lora", {"r": True}, "got True"),
    ("lora", {"r": 385}, "largest rank that .*384 × 384.* must be 384 or less"),
    ("lora", {"target_modules": ["q_proj"]}, "Unknown target module 'q_proj'"),
    ("lora", {"target_modules": ["querry"]}, "Did you mean 'query'"),
    ("lora", {"target_modules": "query"}, "regular expression for whole module names.*'all-linear'"),
    ("lora", {"target_modules": "quer("}, "no regular expression"),
    ("lora", {"target_modules": []}, "name no linear layer"),
    ("lora", {"lora_alpha": 0}, "lora_alpha must be greater than 0"),
    ("lora", {"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
    ("lora", {"bias": "some"}, "Unknown bias 'some'"),
    ("lora", {"modules_to_save": ["pooler"]}, "Unknown module to save 'pooler'"),
    ("lora", {"modules_to_save": ["query", "value"]}, "leaves no target module"),
    ("lora", {"lora_bias": True, "use_dora": True}, "choose one"),
    ("lora", {"lora_bias": True, "bias": "all"}, "needs bias='none'"),
    ("qlora", {"bnb_4bit_quant_type": "int4"}, "Unknown bnb_4bit_quant_type"),
    ("adalora", {"init_r": 4, "target_r": 8}, "less than init_r=4"),
    ("adalora", {"tinit": 50, "tfinal": 50, "total_step": 100}, "leave no step"),
    ("ia3", {"target_modules": ["key"]}, "Give both"),
    ("ia3", {"target_modules": ["key"], "feedforward_modules": ["value"]}, "must be among target_modules"),
    ("lokr", {"decompose_factor": 0}, "decompose_factor must be 1 or more, or -1"),
    ("krona", {"decompose_factor": -3}, "decompose_factor must be 1 or more, or -1"),
    ("krona", {"scale": 0}, "scale must be greater than 0"),
    ("vera", {"r": 0}, "r must be a whole number of 1 or more"),
    ("oft", {"r": 8}, "Give r .* or oft_block_size"),
    ("oft", {"oft_block_size": 1}, "nothing to rotate"),
    ("oft", {"oft_block_size": 2.5}, "oft_block_size must be a whole number"),
    ("lokr", {"rank_dropout": 5.0}, "rank_dropout must be at least 0 and below 1"),
    ("adalora", {"beta1": 0.0}, "beta1 must be greater than 0"),
    ("adalora", {"deltaT": 0.3}, "deltaT must be a whole number"),
    ("adalora", {"tinit": -5}, "must not be negative"),
    ("lora", {"init_lora_weights": "loftq"}, "Unknown init_lora_weights 'loftq'"),
    ("lora", {"lora_alpha": "x"}, "wrong type"),
    ("lora", {"modules_to_save": "intermediate"}, "must be a list of names"),
    ("adapter", {"train_norms": "no"}, "train_norms must be True, False, or None"),
    ("last_layers", {"num_layers": 1.5}, "num_layers must be between 1 and 6"),
    ("p_tuning", {"encoder_dropout": 2.0}, "encoder_dropout must be at least 0"),
    ("pasta", {"special_token_ids": (101.5,)}, "must be whole numbers"),
    ("lt_sft", {"density": float("nan")}, "density must be above 0"),
    ("prompt_tuning", {"num_virtual_tokens": 0}, "num_virtual_tokens must be a whole number"),
    ("prefix_tuning", {"num_virtual_tokens": 512}, "leaves no place for text: this model has 512"),
    ("p_tuning", {"encoder_reparameterization_type": "GRU"}, "Unknown encoder_reparameterization_type"),
    ("p_tuning", {"encoder_num_layers": 4}, "is for the LSTM"),
    ("multitask_prompt_tuning", {"num_tasks": 0}, "num_tasks must be a whole number"),
    ("adapter", {"placement": "parallel"}, "Unknown placement 'parallel'"),
    ("adapter", {"bottleneck_size": 384}, "is no bottleneck: it must be less than 384"),
    ("ladder_side_tuning", {"reduction_factor": 1000}, "leaves no side network"),
    ("ladder_side_tuning", {"temperature": 0}, "temperature must be greater than 0"),
    ("pasta", {"special_token_ids": ()}, "names no special tokens"),
    ("pasta", {"special_token_ids": (99_999,)}, "must be whole numbers in 0..30521; got 99999"),
    ("lt_sft", {"density": 0}, "density must be above 0"),
    ("lt_sft", {"dense": {}}, "give the state_dict"),
    ("diff_pruning", {"sparsity_pen": -1}, "sparsity_pen must not be negative"),
    ("threshold_mask", {"threshold": 0}, "threshold must be greater than 0"),
    ("threshold_mask", {"initial_sparsity": 1}, "initial_sparsity must be at least 0 and below 1"),
    ("full", {"r": 8}, "full has no hyper-parameters; got 'r'"),
]


@pytest.mark.parametrize(("method", "hparams", "says"), BAD)
def test_bad_input_is_named_and_changes_nothing(method, hparams, says):
    model = models.skeleton("minilm-l6")
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match=says):
        METHODS[method].apply(model, **hparams)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize(
    ("method", "name", "says"),
    [
        ("bitfit", "llama-3-8b", "trains biases, and llama has none"),
        ("bitfit", "t5-base", "t5 has none"),
        ("ladder_side_tuning", "t5-base", "one stack of blocks; t5 has two"),
        ("qlora", "gpt2", "Conv1D"),
        ("lokr", "gpt2", "Conv1D"),
        ("prefix_tuning", "distilbert-base-uncased", "takes none"),
        ("lora", "phi-3-mini", "no default target_modules for phi3.*all-linear.*qkv_proj"),
    ],
)
def test_methods_say_where_they_have_no_place(method, name, says):
    with pytest.raises(ValueError, match=says):
        METHODS[method].count(models.config(name))


def test_adalora_needs_its_schedule():
    with pytest.raises(ValueError, match="needs total_step"):
        METHODS["adalora"].apply(models.skeleton("minilm-l6"))


def test_registry_names_near_methods():
    with pytest.raises(ValueError, match="Did you mean 'last_layers'"):
        METHODS["last_layer"]


def test_every_method_is_documented():
    for method in METHODS.values():
        assert method.family in FAMILIES
        assert method.paper.title and method.paper.id and method.formula and method.words and method.lesson
        assert all(p.kind is p.KEYWORD_ONLY for p in list(inspect.signature(method.counter).parameters.values())[1:])


def test_block():
    assert block("encoder.layer.3.output.dense.weight") == 3
    assert block("transformer.h.11.ln_1.bias") == 11
    assert block("decoder.block.4.layer.1.EncDecAttention.q.weight") == 4
    assert block("embeddings.LayerNorm.weight") is None


def test_unknown_architectures_and_types():
    with pytest.raises(ValueError, match="llama-2-7b"):
        models.config("llama2-7b")
    odd = models.config("gpt2")
    odd.model_type = "mamba"
    with pytest.raises(ValueError, match="Unknown model type"):
        parameter_shapes(odd)
