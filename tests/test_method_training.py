"""Every method trains for real: on small models of every architecture, and through `fit`."""

import json
import struct
from dataclasses import replace
from pathlib import Path

from course_lib import models, tasks, training
from course_lib.errors import CourseError
from course_lib.methods import METHODS, added_linear, additive, sparse, storage
from course_lib.methods.shapes import Linear
from course_lib.methods.targets import targets

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods import NO_PLACE, settings
from tiny import ARCHITECTURES, batch, outputs, tiny
from torch import nn

# Sizes that fit a width of 64.
SMALL = {
    "adapter": {"bottleneck_size": 4},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 3},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "multitask_prompt_tuning": {"num_virtual_tokens": 3},
    "lora": {"r": 4},
    "dora": {"r": 4},
    "dylora": {"r": 4},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "adalora": {"init_r": 6, "target_r": 3},
    "vera": {"r": 8},
    "oft": {"oft_block_size": 8},
}
UNCHANGED_AT_FIRST = {
    "full", "feature_based", "last_layers", "bitfit", "lt_sft", "diff_pruning", "adapter", "pasta", "ia3", "lora",
    "krona", "dylora", "adalora", "dora", "lokr", "loha", "vera", "oft",
}  # fmt: skip


def applied(method: str, name: str):
    """A small model with the method, and its hyper-parameters."""
    hparams = settings(method, name) | SMALL.get(method, {})
    torch.manual_seed(3)
    return METHODS[method].apply(tiny(name), **hparams), hparams


def look(model) -> torch.Tensor:
    """Its outputs in evaluation."""
    training = model.training
    model.eval()
    with torch.no_grad():
        seen = outputs(model, batch())
    model.train(training)
    return seen


def train_a_little(method: str, model, steps: int = 12) -> list[float]:
    """Losses of a few steps towards random targets."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    wanted, losses = None, []
    for step in range(steps):
        torch.manual_seed(step)
        seen = outputs(model, batch())
        if wanted is None:
            wanted = torch.randn(seen.shape, generator=torch.Generator().manual_seed(5))
        loss = nn.functional.mse_loss(seen, wanted)
        losses.append(loss.item())
        if METHODS[method].penalty:
            loss = loss + METHODS[method].penalty(model)
        loss.backward()
        optimizer.step()
        if METHODS[method].after_step:
            METHODS[method].after_step(model, step + 1)
        optimizer.zero_grad()
    return losses


CASES = [(m, n) for m in METHODS for n in ARCHITECTURES if n not in NO_PLACE.get(m, ())]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "name"), CASES)
def test_from_the_first_step_to_a_file_and_back(method, name, tmp_path):
    model, hparams = applied(method, name)
    if method in UNCHANGED_AT_FIRST:
        torch.testing.assert_close(look(model), look(tiny(name)), atol=1e-5, rtol=1e-5)
    if method != "feature_based":
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        losses = train_a_little(method, model)
        assert losses[-1] < losses[0]
        for key, p in model.named_parameters():
            # LT-SFT's few weights may leave a matrix without any.
            assert torch.equal(p, before[key]) != (p.requires_grad and p.numel() > 0), key
    trained = look(model)
    size = storage.save(model, tmp_path)
    torch.testing.assert_close(look(storage.load(tiny(name), tmp_path)), trained, atol=1e-5, rtol=1e-5)
    # AdaLoRA's file shrinks with its ranks, and diff pruning's by pruning; both are tested below.
    if method not in ("adalora", "diff_pruning"):
        assert tensor_bytes(tmp_path, size) == METHODS[method].file_bytes(tiny(name).config, **hparams)
    if METHODS[method].mergeable:
        merged = storage.merge(model)
        torch.testing.assert_close(look(merged), trained, atol=1e-4, rtol=1e-4)
        assert set(merged.state_dict()) == set(tiny(name).state_dict())
    else:
        with pytest.raises(ValueError, match="cannot be merged"):
            storage.merge(model)


def tensor_bytes(folder: Path, size: int) -> int:
    """The file's size without its header."""
    (file,) = folder.glob("*.safetensors")
    return size - 8 - struct.unpack("<Q", file.read_bytes()[:8])[0]


def test_adalora_takes_ranks_away_and_the_file_shrinks(tmp_path):
    hparams = {"init_r": 6, "target_r": 2, "total_step": 20, "tfinal": 5}
    model = METHODS["adalora"].apply(tiny("minilm-l6"), **hparams)
    untrained = storage.save(model, tmp_path / "before")
    train_a_little("adalora", model, steps=18)
    ranks = [int((module.lora_E["default"] != 0).sum()) for module in model.modules() if hasattr(module, "lora_E")]
    assert sum(ranks) <= 2 * len(ranks) and len(set(ranks)) > 1
    size = storage.save(model, tmp_path / "after")
    assert size < untrained
    assert tensor_bytes(tmp_path / "after", size) == METHODS["adalora"].file_bytes(model.config, **hparams)
    torch.testing.assert_close(look(storage.load(tiny("minilm-l6"), tmp_path / "after")), look(model))


def test_diff_pruning_keeps_the_largest_differences(tmp_path):
    model, _ = applied("diff_pruning", "minilm-l6")
    train_a_little("diff_pruning", model)
    dense = look(model)
    pruned = sparse.prune(model, density=0.1)
    k = METHODS["lt_sft"].count(model.config, density=0.1)
    assert sum(p.numel() for p in pruned.parameters() if p.requires_grad) == k
    origin = tiny("minilm-l6")
    moved = (look(origin) - dense).norm()
    assert (look(pruned) - dense).norm() < moved
    size = storage.save(pruned, tmp_path)
    assert tensor_bytes(tmp_path, size) == 8 * k
    torch.testing.assert_close(look(storage.load(tiny("minilm-l6"), tmp_path)), look(pruned))


def test_prune_wants_a_model_of_diff_pruning():
    with pytest.raises(ValueError, match="diff_pruning"):
        sparse.prune(tiny("minilm-l6"))


def test_lottery_ticket_takes_the_weights_that_moved_most():
    dense, origin = tiny("minilm-l6", seed=1), tiny("minilm-l6")
    model = METHODS["lt_sft"].apply(tiny("minilm-l6"), density=0.02, dense=dense.state_dict())
    chosen, others = [], []
    for name in targets(model.config, "all-linear"):
        moved = (dense.get_submodule(name).weight - origin.get_submodule(name).weight).abs().flatten()
        taken = torch.zeros_like(moved, dtype=torch.bool)
        taken[model.get_submodule(name).parametrizations.weight[0].indices.long()] = True
        chosen.append(moved[taken])
        others.append(moved[~taken])
    assert torch.cat(chosen).min() >= torch.cat(others).max()


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=8), share=st.floats(0, 1))
def test_random_shares_add_up(sizes, share):
    named = {str(i): size for i, size in enumerate(sizes)}
    k = round(share * sum(sizes))
    shares = sparse._shares(named, k)
    assert sum(shares.values()) == k and all(0 <= shares[name] <= named[name] for name in named)


def test_hard_concrete_gates():
    gates = sparse.HardConcrete(torch.zeros(200, 300), alpha_init=0.0, sparsity_pen=1.0)
    torch.manual_seed(0)
    drawn = gates.gate(gates.alpha)
    # The stretched value lies symmetrically in (−1.5, 1.5): half of it is cut to 0, a sixth above 1.
    closed, opened = (drawn == 0).float().mean().item(), (drawn == 1).float().mean().item()
    assert closed == pytest.approx(0.5, abs=0.01) and opened == pytest.approx(1 / 6, abs=0.01)
    # The expected number of open gates, of weights and of the matrix.
    assert gates.penalty().item() == pytest.approx(0.5 * (200 * 300 + 1))


@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.5])
def test_threshold_mask_starts_with_its_sparsity(sparsity):
    torch.manual_seed(0)
    weight = torch.ones(300, 400)
    mask = sparse.ThresholdMask(weight, 0.01, sparsity)
    assert (mask(weight) == 0).float().mean().item() == pytest.approx(sparsity, abs=0.005)
    mask(weight).sum().backward()
    torch.testing.assert_close(mask.scores.grad, weight)


@given(inputs=st.integers(1, 60), outputs_=st.integers(1, 60), factor=st.sampled_from([-1, 1, 2, 5, 8]))
def test_kronecker_equals_the_product_written_out(inputs, outputs_, factor):
    torch.manual_seed(0)
    base = nn.Linear(inputs, outputs_)
    layer = added_linear.Kronecker(base, Linear(inputs, outputs_), factor, scale=0.7)
    nn.init.normal_(layer.b)
    assert layer.delta_weight().shape == base.weight.shape
    x = torch.randn(3, 4, inputs)
    torch.testing.assert_close(layer.delta(x), x @ (0.7 * torch.kron(layer.a, layer.b)).T, atol=1e-5, rtol=1e-5)


@given(dimension=st.integers(1, 3000), factor=st.sampled_from([-1, 1, 2, 3, 4, 8, 16, 37]))
def test_factors_are_peft_s(dimension, factor):
    from peft.tuners.lokr.layer import factorization

    assert added_linear.factors(dimension, factor) == factorization(dimension, factor)


def test_dylora_at_every_rank_is_the_lora_of_its_first_rows():
    model, _ = applied("dylora", "minilm-l6")
    train_a_little("dylora", model)
    for rank in (1, 2, 4):
        added_linear.set_rank(model, rank)
        cut = METHODS["lora"].apply(tiny("minilm-l6"), r=rank, lora_alpha=8)
        for name, module in model.named_modules():
            if isinstance(module, added_linear.NestedLoRA):
                lora = cut.base_model.model.get_submodule(name)
                lora.lora_A["default"].weight.data = module.lora_a[:rank].clone()
                lora.lora_B["default"].weight.data = module.lora_b[:, :rank].clone()
        torch.testing.assert_close(look(model), look(cut), atol=1e-5, rtol=1e-5)
    for rank in (0, 5, 2.5):
        with pytest.raises(ValueError, match="between 1 and 4"):
            added_linear.set_rank(model, rank)
    with pytest.raises(ValueError, match="no DyLoRA layers"):
        added_linear.set_rank(tiny("minilm-l6"), 1)


def test_dylora_draws_one_rank_a_pass_in_training_only():
    model, _ = applied("dylora", "minilm-l6")
    rank = next(m for m in model.modules() if isinstance(m, added_linear.NestedLoRA)).rank
    seen = set()
    for _ in range(40):
        outputs(model, batch())
        seen.add(rank.now)
    assert seen == {1, 2, 3, 4}
    look(model)
    assert rank.now == 4


def test_no_gradient_enters_the_backbone_of_a_side_network():
    model, _ = applied("ladder_side_tuning", "minilm-l6")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape[-1:]) or t, lambda t: t):
        outputs(model, batch()).sum().backward()
    # Feed-forward activations of the backbone (128 wide) are not among what autograd keeps; the side's (32) are.
    assert (128,) not in kept and (32,) in kept
    assert all(p.grad is None for p in model.backbone.parameters())


def test_a_side_network_of_a_language_model_does_not_look_ahead():
    model, _ = applied("ladder_side_tuning", "llama-3.2-1b")
    model.eval()
    ids = batch()["input_ids"]
    later = ids.clone()
    later[:, 4:] = 9
    torch.testing.assert_close(model(ids).logits[:, :4], model(later).logits[:, :4])
    assert model(ids, labels=ids).loss.ndim == 0


def test_a_side_network_takes_padding_on_the_left():
    model, _ = applied("ladder_side_tuning", "llama-3.2-1b")
    ids, mask = batch()["input_ids"], torch.ones(3, 7, dtype=torch.long)
    mask[0, :3] = 0
    model.eval()
    with torch.no_grad():
        assert model(ids, attention_mask=mask).logits.isfinite().all()


def test_pasta_touches_special_tokens_only():
    model, _ = applied("pasta", "minilm-l6")
    with torch.no_grad():
        model.special_token_vectors.vectors[-1] += 1.0
    model.eval()
    changed = torch.zeros(1)

    def see(module, args, kwargs):
        nonlocal changed
        changed = (args[0] if args else kwargs["hidden_states"]).detach()

    last = model.encoder.layer[-1]
    last.register_forward_pre_hook(see, with_kwargs=True)
    plain = tiny("minilm-l6").eval()
    states = plain(**batch(), output_hidden_states=True).hidden_states[-2]
    model(**batch())
    moved = (changed - states).abs().amax(-1) > 1e-6
    assert torch.equal(moved, (batch()["input_ids"] == 1) | (batch()["input_ids"] == 2))


def test_adapters_sit_after_both_sublayers_or_one():
    both, _ = applied("adapter", "bert-base-uncased")
    one = METHODS["adapter"].apply(tiny("bert-base-uncased"), placement="pfeiffer", bottleneck_size=4)
    places = [
        [n for n, m in model.named_modules() if isinstance(m, additive.BottleneckAdapter)] for model in (both, one)
    ]
    assert places[0] == [f"encoder.layer.{i}.{part}.dense" for i in (0, 1) for part in ("attention.output", "output")]
    assert places[1] == [f"encoder.layer.{i}.output.dense" for i in (0, 1)]


def test_qlora_trains_after_an_evaluation():
    # On processors with AVX512-BF16, bitsandbytes repacks weights at the first evaluation, and no gradient passes.
    model, _ = applied("qlora", "minilm-l6")
    look(model)
    train_a_little("qlora", model, steps=2)
    outputs(model, batch()).sum().backward()
    assert all(p.grad.abs().max() > 0 for n, p in model.named_parameters() if "lora_A" in n)


def test_storage_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="No method was applied"):
        storage.save(tiny("minilm-l6"), tmp_path)
    with pytest.raises(ValueError, match="No method was applied"):
        storage.merge(tiny("minilm-l6"))
    with pytest.raises(CourseError, match="holds no fine-tuned model"):
        storage.load(tiny("minilm-l6"), tmp_path / "nothing")
    storage.save(applied("bitfit", "minilm-l6")[0], tmp_path)
    with pytest.raises(CourseError, match="saved from another model"):
        storage.load(tiny("gpt2"), tmp_path)
    (tmp_path / "fine_tuned.json").write_text("{}")
    with pytest.raises(CourseError, match="holds no fine-tuned model"):
        storage.load(tiny("minilm-l6"), tmp_path)


def test_a_folder_can_be_written_again(tmp_path):
    for method in ("krona", "lora", "prompt_tuning", "bitfit"):
        model, _ = applied(method, "minilm-l6")
        storage.save(model, tmp_path)
        torch.testing.assert_close(look(storage.load(tiny("minilm-l6"), tmp_path)), look(model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["lora", "krona", "dylora", "lt_sft", "threshold_mask"])
def test_a_change_of_a_tied_head_is_not_merged(method):
    model = METHODS[method].apply(tiny("llama-3.2-1b"), target_modules=["lm_head"])
    with pytest.raises(ValueError, match="table of embeddings too"):
        storage.merge(model)
    untied = METHODS[method].apply(tiny("llama-3-8b"), target_modules=["lm_head"])
    before = look(untied)
    torch.testing.assert_close(look(storage.merge(untied)), before, atol=1e-4, rtol=1e-4)


def test_merging_leaves_a_plain_model():
    for method in ("dylora", "lora", "krona"):
        merged = storage.merge(applied(method, "minilm-l6")[0])
        assert not hasattr(merged, "fine_tuned_by") and not merged._forward_pre_hooks
        METHODS["full"].apply(merged)


def test_peft_reads_the_files_of_its_own_methods(tmp_path):
    model, _ = applied("lora", "minilm-l6")
    train_a_little("lora", model, steps=2)
    storage.save(model, tmp_path)
    assert json.loads((tmp_path / "fine_tuned.json").read_text())["method"] == "lora"
    torch.testing.assert_close(look(peft.PeftModel.from_pretrained(tiny("minilm-l6"), tmp_path)), look(model))


@pytest.fixture(scope="module")
def few():
    task = tasks.load("reviews").smaller(train=24, validation=12, test=12)
    # Short texts: MiniLM reads them in a fifth of the time.
    parts = {
        name: replace(part, texts=tuple(" ".join(text.split()[:8]) for text in part.texts))
        for name in ("train", "validation", "test")
        for part in [getattr(task, name)]
    }
    return replace(task, **parts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["diff_pruning", "multitask_prompt_tuning", "adalora", "vera", "qlora", "pasta"])
def test_fit_takes_every_kind_of_method(few, method):
    # Penalties, hooks, shared buffers, wrapped and quantized models: one method of each kind.
    model, tokenizer = models.classifier(len(few.labels))
    run = training.fit(model, tokenizer, few, method, learning_rate=1e-3, epochs=2, progress=False)
    counted = METHODS[method].count(models.encoder()[0].config, **({"total_step": 4} if method == "adalora" else {}))
    assert run.trainable == counted + sum(p.numel() for p in model.head.parameters())
    assert run.losses[0] > 0 and len(run.predictions) == 12


@pytest.mark.filterwarnings("ignore")
def test_fit_goes_on_with_what_a_model_carries(few):
    model, tokenizer = models.classifier(len(few.labels))
    for _ in range(2):
        training.fit(model, tokenizer, few, "lora", learning_rate=1e-2, epochs=1, progress=False)
    assert isinstance(model.encoder, peft.PeftModel) and not isinstance(model.encoder.get_base_model(), peft.PeftModel)


@pytest.mark.filterwarnings("ignore")
def test_the_seed_draws_a_method_s_own_parameters(few):
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model, tokenizer = models.classifier(len(few.labels))
        found.append(training.fit(model, tokenizer, few, "lora", learning_rate=1e-3, epochs=1, progress=False).losses)
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore")
def test_what_was_loaded_can_train_on(few, tmp_path):
    # The network that made P-tuning's vectors was dropped: they go on as a plain prompt.
    for method, goes_on_as in (("lora", "lora"), ("krona", "krona"), ("p_tuning", "prompt_tuning")):
        model, tokenizer = models.classifier(len(few.labels))
        head = sum(p.numel() for p in model.head.parameters())
        model.encoder = METHODS[method].apply(model.encoder)
        storage.save(model.encoder, tmp_path / method)
        again, _ = models.classifier(len(few.labels))
        again.encoder = storage.load(again.encoder, tmp_path / method)
        run = training.fit(again, tokenizer, few, method, learning_rate=1e-3, epochs=1, progress=False)
        assert run.trainable == METHODS[goes_on_as].count(again.config) + head


def test_fit_refuses_a_method_that_was_frozen(few):
    model, tokenizer = models.classifier(len(few.labels))
    model.encoder = METHODS["lora"].apply(model.encoder).requires_grad_(False)
    with pytest.raises(ValueError, match="is frozen, and cannot train on"):
        training.fit(model, tokenizer, few, "lora", learning_rate=1e-3, epochs=1, progress=False)


def test_fit_refuses_other_sizes_than_a_model_carries(few):
    model, tokenizer = models.classifier(len(few.labels))
    model.encoder = METHODS["lora"].apply(model.encoder, r=2)
    with pytest.raises(ValueError, match="goes on with that: leave hparams out"):
        training.fit(model, tokenizer, few, "lora", learning_rate=1e-3, epochs=1, hparams={"r": 64})


def test_gradual_unfreezing_is_for_full_fine_tuning(few):
    model, tokenizer = models.classifier(len(few.labels))
    with pytest.raises(ValueError, match="it goes with 'full', not 'lora'"):
        training.fit(model, tokenizer, few, "lora", learning_rate=1e-3, epochs=2, gradual_unfreezing=True)


@pytest.mark.parametrize(
    ("method", "part"), [("ia3", "ia3_l"), ("threshold_mask", "scores"), ("diff_pruning", "alpha")]
)
def test_weight_decay_leaves_alone_what_is_not_zero_at_rest(few, method, part):
    model, _ = models.classifier(len(few.labels))
    model.encoder = METHODS[method].apply(model.encoder)
    groups = training._groups(model, method, training.Recipe(learning_rate=1e-3))
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            if part in names[id(parameter)]:
                assert group["weight_decay"] == 0
                assert group["lr"] == METHODS[method].own_rates.get(part, 1e-3)


@pytest.mark.filterwarnings("ignore")
def test_adalora_keeps_its_last_epoch_and_starts_over(few, tmp_path):
    runs = []
    for _ in range(2):
        model, tokenizer = models.classifier(len(few.labels))
        runs.append(
            training.fit(
                model, tokenizer, few, "adalora", learning_rate=1e-2, epochs=2, folder=tmp_path, progress=False,
                hparams={"tfinal": 1},
            )
        )  # fmt: skip
    assert runs[0].kept_last and runs[0].best_validation == runs[0].validation[-1]
    assert runs[0].losses == runs[1].losses and not runs[1].resumed
